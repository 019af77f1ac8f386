"""NVRTC: CUDA C++ → a cubin, on any host, GPU or none.

Cubins are kept in a cache of their own content: what was compiled once is not compiled again.
NVRTC is the oldest of CUDA 13 (see pyproject.toml): its cubins load on every driver since 580.
"""

import hashlib
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cuda.bindings import nvrtc

from looprnn.engines.fused_source import Unit
from looprnn.errors import EngineError

log = logging.getLogger("looprnn.fused")
ELF: Final = b"\x7fELF"
OPTIONS: Final = ("--std=c++17", "--ptxas-options=-v")
# What ptxas says of each kernel.
SAID: Final = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Usage:
    """One kernel's registers a thread, and bytes of local memory: its frame and what it spills."""

    registers: int
    stack: int
    spilled: int


def missing() -> str | None:
    """Why NVRTC cannot be used here, in words, or None."""
    try:
        nvrtc_version()
    except Exception as error:  # cuda-python raises RuntimeError where it finds no library
        return f"NVRTC does not load here ({error}). Type: pip install 'looprnn[fused]'"
    return None


def nvrtc_version() -> str:
    major, minor = _check(nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


def cubin(unit: Unit, capability: str) -> bytes:
    """The unit for a GPU of that compute capability, from the cache where it is there.

    Raises EngineError with the compiler's log.
    """
    key = "\0".join((unit.text, capability, nvrtc_version(), *OPTIONS))
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    try:
        if (found := path.read_bytes()).startswith(ELF):
            return found
    except OSError:
        pass  # not there yet
    made, _ = compile_unit(unit, capability)
    try:
        _write(path, made)
    except OSError as error:  # a full or read-only disk costs time at the next load, no more
        log.info("%s: not kept: %s", path, error)
    return made


def compile_unit(unit: Unit, capability: str) -> tuple[bytes, dict[str, Usage]]:
    """The cubin, and what each kernel uses. Raises EngineError with the compiler's log."""
    program = _check(nvrtc.nvrtcCreateProgram(unit.text.encode(), unit.name.encode(), 0, [], []))
    try:
        options = [f"--gpu-architecture={architecture(capability)}", *OPTIONS]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        said = b" " * int(_check(nvrtc.nvrtcGetProgramLogSize(program)))
        _check(nvrtc.nvrtcGetProgramLog(program, said))
        text = said.decode(errors="replace").strip("\0 \n")
        if status.value != 0:
            raise EngineError(f"{unit.name} does not compile for {capability}: {text}")
        made = b" " * int(_check(nvrtc.nvrtcGetCUBINSize(program)))
        _check(nvrtc.nvrtcGetCUBIN(program, made))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    used = {
        m["kernel"]: Usage(int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]))
        for m in SAID.finditer(text)
    }
    return made, used


def architecture(capability: str) -> str:
    """ "9.0" → "sm_90a": the a opens what Hopper alone has."""
    return f"sm_{capability.replace('.', '')}{'a' if capability == '9.0' else ''}"


def cache_folder() -> Path:
    """XDG's place for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "looprnn" / "fused"


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _check(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status.value != 0:
        raise EngineError(f"NVRTC: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)

"""Finds a tritonserver: the container's own, or the one inside the nvidia-pytriton wheel.

The wheel's server is used as a program, not through PyTriton's API. It needs a backend directory
that joins its python backend with the stub of this Python, and the wheel's libraries beside
libpython on LD_LIBRARY_PATH.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from looprnn.errors import ServerError


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver, the backends to give it (None: its own) and the libraries it needs."""

    program: Path
    backends: Path | None
    libraries: tuple[Path, ...]


def find(scratch: Path) -> Installation:
    """The container's tritonserver, else the embedded one with its backends laid out in `scratch`.

    Raises ServerError that says what to install.
    """
    for place in (shutil.which("tritonserver"), "/opt/tritonserver/bin/tritonserver"):
        if place and Path(place).exists():
            return Installation(Path(place), None, ())
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise ServerError("no tritonserver here. Type: pip install 'looprnn[embedded]'")
    wheel = Path(found.origin).parent
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        there = ", ".join(sorted(p.name for p in stub.parent.parent.iterdir()))
        raise ServerError(
            f"the embedded tritonserver has no stub for Python {version}; it has {there}"
        )
    backend = scratch / "python"
    shutil.copytree(wheel / "tritonserver/backends/python", backend)
    shutil.copy2(stub, backend)
    # What the loader finds by itself stays out: there, it would come before the wheel's own.
    python = [] if libpython().is_relative_to("/usr/lib") else [libpython().parent]
    return Installation(
        wheel / "tritonserver/bin/tritonserver",
        scratch,
        (wheel.parent / "nvidia_pytriton.libs", *python),
    )


def libpython() -> Path:
    """The shared library of this Python, which the stub loads. Raises ServerError in words."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [sysconfig.get_config_var(key) for key in ("LIBDIR", "LIBPL")]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        folders += [f"/usr/lib/{multiarch}", f"/lib/{multiarch}"]
    for folder in folders:
        if folder and (Path(folder) / name).exists():
            return Path(folder) / name
    raise ServerError(
        f"{sys.executable} comes without {name}, which Triton's Python backend needs. On Debian "
        f"and Ubuntu: apt-get install {name.removesuffix('.so.1.0')}; for pyenv: "
        "PYTHON_CONFIGURE_OPTS=--enable-shared"
    )


def can_forbid_shm(installed: Installation) -> bool:
    """From 26.04 on, clients may share memory only where a flag allows it; before, always."""
    command = [str(installed.program), "--help"]
    answer = subprocess.run(command, env=environment(installed), capture_output=True, text=True)
    return "allow-client-shm" in answer.stdout + answer.stderr


def environment(installed: Installation) -> dict[str, str]:
    """This process's environment, with the server's libraries and this Python's packages first.

    The embedded stub runs isolated: it ignores PYTHONPATH, and takes the packages of the first
    python3 on PATH. The container's reads PYTHONPATH.
    """
    import looprnn

    def joined(first: Iterable[str | Path], key: str) -> str:
        return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get(key)])])

    packages: list[str | Path] = [Path(looprnn.__path__[0]).parent, sysconfig.get_path("purelib")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": joined(installed.libraries, "LD_LIBRARY_PATH"),
        "PATH": joined([Path(sys.executable).parent], "PATH"),
        "PYTHONPATH": joined(packages, "PYTHONPATH"),
    }

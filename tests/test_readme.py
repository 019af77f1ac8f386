"""What the README shows is run: its Python, its commands, its TOML and its tables."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, VARIANTS
from rich.console import Console

from looprnn.cli import main
from looprnn.demo import run_demo
from looprnn.server import Server
from looprnn.variants import load_spec
from looprnn.weights import save_weights, shapes

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def without_numbers(text: str) -> list[str]:
    """Lines with measured numbers masked and space folded: the rest must be equal."""
    masked = re.sub(r"\d\.\de[-+]\d\d|\d+\.\d\d(?!\d)", "#", text)
    ruled = re.sub("─+", "─", masked)
    return [" ".join(line.split()) for line in ruled.splitlines() if line.strip()]


@pytest.mark.live
def test_the_python_runs_and_prints_what_it_says(server, capsys):
    (code,) = blocks("python")
    exec(code.replace("localhost:8001", server.grpc), {})
    printed = re.search(r"print\(.*\)\s+# (.*)", code)[1]
    assert capsys.readouterr().out.strip() == printed


@pytest.mark.live
def test_the_client_command_runs(server, tmp_path):
    (block,) = [b for b in blocks("bash") if "looprnn-client" in b]
    for line in block.replace("localhost:8001", server.grpc).splitlines():
        command = shlex.split(line)
        beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        program = (
            sys.executable if command[0] == "python" else shutil.which(command[0], path=beside)
        )
        subprocess.run([program, *command[1:]], cwd=tmp_path, check=True, capture_output=True)
    with np.load(tmp_path / "y.npz") as answer:
        assert {name: answer[name].shape for name in answer} == {
            "output": (3, 4, 5), "h_n": (3, 1, 5), "c_n": (3, 1, 5),
        }  # fmt: skip


@pytest.mark.live
def test_the_demo_prints_what_the_readme_shows(server, repository):
    if not isinstance(server, Server):
        pytest.skip("shows the embedded server")
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    assert run_demo(server, list(VARIANTS.values()), repository, console) == 0
    shown = next(text for text in blocks("console") if text.startswith("$ make demo"))
    assert without_numbers(shown)[1:] == without_numbers(printed.getvalue())


def test_the_toml_is_a_variant_that_builds(tmp_path, capsys):
    (text,) = blocks("toml")
    path = tmp_path / "variants/mine.toml"
    path.parent.mkdir()
    path.write_text(text)
    spec = load_spec(path)
    arrays = {n: np.full(s, 0.01, np.float32) for n, s in shapes(spec).items()}
    save_weights(path.parent / "mine.safetensors", arrays)
    (command,) = [b for b in blocks("bash") if "build_engines.py" in b]
    program, script, *arguments = shlex.split(command)
    assert (program, script) == ("python", "build_engines.py")
    assert main(["build", *arguments], root=tmp_path) == 0
    assert (tmp_path / "model_repository/mine/1/model.onnx").exists()


def test_every_make_target_and_file_it_names_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)`|\$ make ([a-z-]+)", README)) != set()
    for pair in re.findall(r"`make ([a-z-]+)`|\$ make ([a-z-]+)", README):
        assert "".join(pair) in targets
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link

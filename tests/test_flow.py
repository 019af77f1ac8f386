"""The flow is a test: imports go one way, the oracle imports NumPy alone, and importing is
light.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "looprnn"
# Each may import those before it. errors, spec … client: the line that data follows.
FLOW = [
    "errors",
    "layer",
    "profile",
    "stream",
    "spec",
    "variants",
    "weights",
    "reference",
    "parity",
    "cells",
    "network_ops",
    "network",
    "card",
    "cuda",
    "batching",
    "decoding",
    "every",
    "watchdog",
    "metrics",
    "engines",
    "repository",
    "mirror",
    "triton_model",
    "states",
    "slots",
    "stream_metrics",
    "stream_model",
    "importers",
    "build",
    "installation",
    "server",
    "supervisor",
    "demo",
    "commands",
    "verify_cases",
    "verify",
    "inspect_tables",
    "inspect",
    "importing",
    "refit",
    "cli",
]


def imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or ".")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str | None:
    """looprnn.engines.tensorrt → engines; other packages → None."""
    parts = name.split(".")
    return parts[1] if parts[0] == "looprnn" and len(parts) > 1 and parts[1] in FLOW else None


def test_the_oracle_shares_nothing_with_the_product():
    assert {name.split(".")[0] for name in imports(PACKAGE / "reference.py")} == {
        "collections", "numpy", "typing",
    }  # fmt: skip


def test_the_interpreter_shares_nothing_with_the_product():
    for path in ROOT.glob("tests/interpreter*.py"):
        assert not any(name.startswith("looprnn") for name in imports(path)), path


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    inside = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if inside == "__init__":
        return
    rank = FLOW.index(inside)
    later = {name for name in imports(path) if room(name) and FLOW.index(room(name)) > rank}
    assert later == set(), f"{path.name} imports what comes after it"


def test_only_network_opens_a_loop():
    assert [p.name for p in PACKAGE.rglob("*.py") if "add_loop(" in p.read_text()] == ["network.py"]


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        (
            "looprnn",
            [
                "tensorrt",
                "tensorrt_rtx",
                "onnx",
                "onnxruntime",
                "cuda",
                "rich",
                "tritonclient",
                "safetensors",
                "looprnn_client",
            ],
        ),
        ("looprnn_client", ["tritonclient", "grpc", "gevent", "looprnn"]),
    ],
)
def test_importing_is_light(package, heavy):
    code = f"import sys, {package}; print(*[m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == ""

"""A repository with broken models: each says why it is not served, and the whole ones are served
beside it.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import VARIANTS
from looprnn_client import Client, NotReady

from looprnn import parity
from looprnn.build import build_variant, buildable
from looprnn.card import CARDS
from looprnn.errors import ServerError
from looprnn.server import Server
from looprnn.weights import load_weights

pytestmark = pytest.mark.live


def cards(version: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = version / CARDS
    content = json.loads(path.read_text())
    change(content["engines"])
    path.write_text(json.dumps(content))


def ask_for(model: Path, engine: str) -> None:
    path = model / "config.pbtxt"
    path.write_text(path.read_text().replace('"auto"', f'"{engine}"'))


def truncated_engine(model: Path) -> None:
    path = model / "1/model.onnx"
    path.write_bytes(path.read_bytes()[:100])


def missing_engine(model: Path) -> None:
    (model / "1/model.onnx").unlink()


def never_built(model: Path) -> None:
    (model / "1" / CARDS).unlink()


def another_file(model: Path) -> None:
    cards(model / "1", lambda engines: engines["onnxruntime"].update(sha256="0" * 64))


def engine_not_built(model: Path) -> None:
    ask_for(model, "tensorrt")


def plan_from_elsewhere(model: Path) -> None:
    """A card of a GPU and a TensorRT that no host has."""
    ask_for(model, "tensorrt_rtx")
    elsewhere = {
        "engine": "tensorrt_rtx", "file": "model.rtx.plan", "capabilities": ["5.0"],
        "libraries": {"tensorrt_rtx": "1.0"},
    }  # fmt: skip
    (model / "1/model.rtx.plan").write_bytes(b"a plan")
    cards(model / "1", lambda e: e.update(tensorrt_rtx={**e["onnxruntime"], **elsewhere}))


# The model broken, how, and what the reader is told.
BROKEN = {
    "relu_rnn": (truncated_engine, "100 bytes with SHA-256"),
    "tanh_rnn": (missing_engine, "the card names it, but it is not there"),
    "bilstm": (never_built, "no engine was built here"),
    "lstm_random": (another_file, "truncated or replaced since it was built"),
    "bilstm_random": (engine_not_built, "asks for the engine 'tensorrt'; built are"),
    "relu_rnn_random": (plan_from_elsewhere, "the engine 'tensorrt_rtx', which cannot run here"),
}
# What to type, where it is not a build: that would not bring the GPU.
TYPE = {"relu_rnn_random": 'onnxruntime can: write "auto" there'}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A repository of CPU engines alone, the same on every host."""
    folder = tmp_path_factory.mktemp("whole")
    for name in (*BROKEN, "lstm"):
        build_variant(
            VARIANTS[name], buildable(["onnxruntime"])[0], folder, progress=lambda *_: None
        )
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory, whole) -> Iterator[Server]:
    copy = tmp_path_factory.mktemp("broken") / "repository"
    shutil.copytree(whole, copy)
    for name, (breaks, _) in BROKEN.items():
        breaks(copy / name)
    with Server(copy, strict=False) as server:
        yield server


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_broken_model_says_why_and_what_to_type(broken, name, protocol):
    x = parity.draw_inputs(VARIANTS[name], 1, 2)["input"]
    url = f"{protocol}://{getattr(broken, protocol)}"
    with pytest.raises(NotReady) as caught, Client(url, model=name, timeout_s=10) as client:
        client.infer(x)
    assert BROKEN[name][1] in str(caught.value)
    assert TYPE.get(name, "uild it: python build_engines.py ") in str(caught.value)
    assert "Then start the server again: Ctrl-C, then looprnn serve" in str(caught.value)


def test_a_model_built_while_the_server_runs_needs_another_start(tmp_path, whole):
    shutil.copytree(whole / "lstm", tmp_path / "lstm")
    with Server(tmp_path) as server:
        shutil.copytree(whole / "tanh_rnn", tmp_path / "tanh_rnn")
        for url in (server.grpc, f"http://{server.http}"):
            with pytest.raises(NotReady) as caught, Client(url, "tanh_rnn", timeout_s=10) as client:
                client.infer(parity.draw_inputs(VARIANTS["tanh_rnn"], 1, 2)["input"])
            assert "Start it again: Ctrl-C, then looprnn serve" in str(caught.value)
            assert str(caught.value).endswith("Served there: lstm")
    with Server(tmp_path) as server, Client(server.grpc, "tanh_rnn", timeout_s=10) as client:
        client.infer(parity.draw_inputs(VARIANTS["tanh_rnn"], 1, 2)["input"])


def test_the_whole_model_is_served_beside_them(broken):
    spec = VARIANTS["lstm"]
    inputs = parity.draw_inputs(spec, 2, 4)
    with Client(broken.grpc, model="lstm", timeout_s=10) as client:
        result = client.infer(inputs["input"], inputs["h_0"], inputs["c_0"])
    got = {name: getattr(result, name) for name in spec.output_names}
    found = parity.differences(spec, load_weights(spec), inputs, got)
    assert all(parity.agrees(value) for value in found.values())


def test_the_server_lists_what_is_served_and_why_the_rest_is_not(broken):
    models = broken.models()
    assert models["lstm"] == ""
    for name, (_, words) in BROKEN.items():
        assert words in models[name]


@pytest.mark.parametrize(
    "breaks", [truncated_engine, plan_from_elsewhere], ids=lambda f: f.__name__
)
def test_a_strict_server_refuses_to_start_with_the_models_own_words(tmp_path, whole, breaks):
    shutil.copytree(whole / "lstm", tmp_path / "lstm")
    breaks(tmp_path / "lstm")
    with pytest.raises(ServerError, match="lstm: "), Server(tmp_path):
        pass

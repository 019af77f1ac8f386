"""`engine: auto` on a host with a GPU: what runs there is timed, and the fastest taken."""

import pytest
from cases import CASES

from looprnn import engines
from looprnn.build import build_variant, buildable
from looprnn.card import Cards
from looprnn.engines import fastest
from looprnn.errors import EngineError


@pytest.fixture
def version(tmp_path):
    """A version that holds a model.onnx and a plan."""
    wanted, _ = buildable(["onnxruntime", "tensorrt_rtx"])
    build_variant(CASES[0].spec, wanted, tmp_path, progress=lambda *_: None)
    return tmp_path / CASES[0].spec.name / "1"


@pytest.fixture
def gpu(monkeypatch):
    """gpu(rtx=…, cpu=…) → a host on which both run, in so many seconds."""

    def host(**seconds):
        names = {"rtx": "tensorrt_rtx", "cpu": "onnxruntime"}
        found = {names[short]: value for short, value in seconds.items()}
        monkeypatch.setattr(engines, "cannot_run", lambda name, card, device: None)
        monkeypatch.setattr(fastest, "timed", lambda *_: found)

    return host


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        ({"rtx": 2e-4, "cpu": 3e-4}, "tensorrt_rtx"),
        ({"rtx": 3e-4, "cpu": 2e-4}, "onnxruntime"),
        ({"rtx": "out of memory", "cpu": 9.0}, "onnxruntime"),
        ({"rtx": "out of memory", "cpu": "neither"}, "tensorrt_rtx"),
    ],
)
def test_auto_takes_the_fastest_and_says_the_table(version, gpu, seconds, taken):
    gpu(**seconds)
    said = []
    cards = Cards.read(version)
    assert engines.choose(cards, "auto", folder=version, say=said.append) == taken
    assert len(said) == 1
    assert "B = 2, T = 4: tensorrt_rtx" in said[0]
    for value in seconds.values():
        assert (f"{value * 1e6:.0f} µs" if isinstance(value, float) else value) in said[0]


def test_a_named_engine_is_not_timed(version, gpu):
    gpu(rtx=2e-4, cpu=1e-4)
    cards = Cards.read(version)
    found = engines.choose(cards, "tensorrt_rtx", folder=version, say=pytest.fail)
    assert found == "tensorrt_rtx"


def test_without_a_gpu_nothing_is_timed(version, monkeypatch):
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: "no GPU, says the test")
    monkeypatch.setattr(fastest, "timed", pytest.fail)
    assert engines.choose(Cards.read(version), "auto", folder=version) == "onnxruntime"


def test_one_that_cannot_load_is_named_with_its_reason(version, monkeypatch):
    def refuse(*_):
        raise EngineError("no memory, says the test")

    cards = Cards.read(version)
    monkeypatch.setattr(type(engines.get("tensorrt_rtx")), "session", refuse)
    found = fastest.timed(cards, version, ["onnxruntime", "tensorrt_rtx"], 0)
    assert isinstance(found["onnxruntime"], float)
    assert found["tensorrt_rtx"] == "no memory, says the test"

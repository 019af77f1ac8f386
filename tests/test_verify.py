"""verify: a wrong engine is found, with the first step where it is wrong, and is never called
well.
"""

import argparse
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES
from rich.console import Console

from looprnn import build, parity, verify, verify_cases
from looprnn.card import Cards
from looprnn.engines.onnxruntime import OnnxSession
from looprnn.errors import EngineMissing, SpecError
from looprnn.spec import Activation, Head, Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.variants import dump_spec

SPEC = RNNSpec(
    name="small",
    input_size=3,
    layers=(Layer(cell="lstm", hidden_size=4, direction="bidirectional"),),
    lengths=True,
    weights=WeightSource(seed=1),
    profile=Profile(batch=Range(1, 2, 4), time=Range(2, 3, 8)),
)


@pytest.fixture
def built(tmp_path):
    """built(spec, …) writes the variant and builds it; built.folder is where."""

    def make(spec=SPEC, engines=("onnxruntime",)):
        (tmp_path / "variants").mkdir(exist_ok=True)
        (tmp_path / f"variants/{spec.name}.toml").write_text(dump_spec(spec))
        wanted, _ = build.buildable(engines)
        build.build_variant(spec, wanted, tmp_path / "models", progress=lambda *_: None)
        return tmp_path / "models" / spec.name / "1"

    return make


@pytest.fixture
def say(tmp_path):
    """say("small", "--json") → exit status and what was printed."""

    def ask(*words):
        parser = argparse.ArgumentParser()
        verify.add_arguments(parser)
        options = parser.parse_args(words)
        options.variants, options.repository = tmp_path / "variants", tmp_path / "models"
        options.verbose = False
        out = io.StringIO()
        return verify.run(options, Console(file=out, width=200)), out.getvalue()

    return ask


def spoil(monkeypatch, change):
    """Every answer of the engine goes through change(answer, inputs)."""
    right = OnnxSession.run
    monkeypatch.setattr(
        OnnxSession, "run", lambda self, inputs: change(dict(right(self, inputs)), inputs)
    )


def test_a_right_engine_agrees_on_random_ragged_and_extreme_input(built, say):
    built()
    status, text = say("small", "--json")
    (engine,) = json.loads(text)["engines"]
    assert (status, engine["status"]) == (0, "agrees")
    kinds = {case.split(",")[0] for case in engine["cases"]}
    assert kinds == {"random", "ragged", "only empty rows", "zeros", "large", "tiny"}
    assert {case.split(", ", 1)[1] for case in engine["cases"]} >= {
        "B=1, T=2", "B=2, T=3", "B=4, T=2", "B=1, T=8", "B=4, T=8",
    }  # fmt: skip
    assert {o["name"] for o in engine["outputs"]} == set(SPEC.output_names)
    assert any(o["difference"] > 0 for o in engine["outputs"]), "the reference was asked twice"
    assert all(o["difference"] < 1e-6 and o["first"] is None for o in engine["outputs"])


def test_the_first_wrong_step_and_row_are_named(built, say, monkeypatch):
    built()

    def wrong(answer, inputs):
        if answer["output"].shape[:2] == (4, 8):
            answer["output"][2:, 5:, 1] += 0.25
            answer["output"][3, 6, 0] += 4.0
            answer["c_n"][1] += 0.5
        return answer

    spoil(monkeypatch, wrong)
    status, text = say("small", "--json")
    (engine,) = json.loads(text)["engines"]
    found = {o["name"]: o for o in engine["outputs"]}
    assert (status, engine["status"]) == (1, "differs")
    assert found["output"]["first"] == {"case": "random, B=4, T=8", "row": 2, "step": 5}
    assert found["output"]["difference"] == pytest.approx(4.0, rel=0.1)
    assert found["c_n"]["first"] == {"case": "random, B=4, T=8", "row": 1, "step": None}
    assert found["h_n"]["first"] is None
    status, text = say("small")
    assert "row 2, step 5" in text and "row 1 (" in text and status == 1


@pytest.mark.parametrize(
    ("kind", "spoils"),
    [
        ("ragged", lambda i: len(set(i["lengths"])) > 1),
        ("only empty rows", lambda i: not i["lengths"].any()),
        ("large", lambda i: np.abs(i["input"]).max() == 50),
        ("zeros", lambda i: not i["input"].any() and not i["h_0"].any()),
        ("tiny", lambda i: 0 < np.abs(i["input"]).max() < 1e-5),
    ],
)
def test_an_engine_that_is_wrong_on_one_kind_of_input_alone_is_noticed(
    built, say, monkeypatch, kind, spoils
):
    built()

    def wrong(answer, inputs):
        if spoils(inputs):
            answer["h_n"][0] += 0.01
        return answer

    spoil(monkeypatch, wrong)
    status, text = say("small", "--json")
    (engine,) = json.loads(text)["engines"]
    (h_n,) = (o for o in engine["outputs"] if o["name"] == "h_n")
    assert status == 1
    assert h_n["first"]["case"].startswith(kind)


@pytest.mark.parametrize(
    ("mistake", "difference"),
    [
        (lambda a: np.full_like(a, np.nan), "inf"),
        (lambda a: np.full_like(a, np.inf), "inf"),
        (np.zeros_like, None),
        (lambda a: a * np.float32(1.0001), None),
    ],
    ids=["nan", "inf", "zeros", "slightly_off"],
)
def test_nan_does_not_pass(built, say, monkeypatch, mistake, difference):
    built()
    spoil(monkeypatch, lambda answer, _: {**answer, "output": mistake(answer["output"])})
    status, text = say("small", "--json")
    (output, *_) = json.loads(text)["engines"][0]["outputs"]
    assert status == 1
    assert output["first"] is not None
    assert difference is None or output["difference"] == difference


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {n: x for n, x in a.items() if n != "h_n"}, "no h_n in the answer"),
        (lambda a: {**a, "output": a["output"][..., :-1]}, "the answer is [1, 2, 7], the refer"),
    ],
    ids=["missing", "misshapen"],
)
def test_an_answer_of_another_shape_is_a_failure_in_words(built, say, monkeypatch, change, words):
    built()
    spoil(monkeypatch, lambda answer, _: change(answer))
    status, text = say("small")
    assert status == 1
    assert words in text


def test_an_engine_that_cannot_run_here_is_named_and_no_failure(built, say, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="type: pip install 'looprnn[rtx]'")
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: "no GPU, says the test")
    built(engines=("onnxruntime", "tensorrt_rtx"))
    status, text = say("small")
    assert status == 0
    assert "small/1 tensorrt_rtx: not run here: no GPU, says the test" in text
    assert "small/1 onnxruntime: agrees" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": WeightSource(seed=2)}, "built from another weights; rebuild: python build_"),
        ({"h_0": 0.5}, "built from another spec; rebuild: python build_engines.py --variant small"),
    ],
    ids=["weights", "spec"],
)
def test_a_variant_changed_since_the_build_is_not_called_wrong_but_stale(
    built, say, change, words, tmp_path
):
    built()
    (tmp_path / "variants/small.toml").write_text(dump_spec(replace(SPEC, **change)))
    status, text = say("small")
    assert status == 1
    assert words in text


def test_a_file_that_is_not_its_cards_is_said(built, say):
    folder = built()
    (folder / "model.onnx").write_bytes(b"other")
    status, text = say("small")
    assert status == 1
    assert "5 bytes with SHA-256" in text and "truncated or replaced" in text


def test_a_version_without_engines_is_not_well(built, say):
    folder = built()
    replace(Cards.read(folder), engines={}).write(folder)
    assert say("small")[0] == 1


def test_what_was_never_built_says_what_to_type(built, say, tmp_path):
    built()
    with pytest.raises(SpecError, match="no such variant. There are: small"):
        say("smal")
    (tmp_path / "variants/other.toml").write_text(dump_spec(SPEC))
    with pytest.raises(EngineMissing, match="nothing was built.*--variant other"):
        say("small", "other")


def test_the_cards_precision_decides_the_tolerance(built, say, monkeypatch):
    folder = built()
    cards = Cards.read(folder)
    half = replace(cards.engines["onnxruntime"], precision="fp16")
    replace(cards, engines={"onnxruntime": half}).write(folder)
    nudge = 0.5 * parity.TOLERANCE["fp16"]
    spoil(monkeypatch, lambda answer, _: {n: a + np.float32(nudge) for n, a in answer.items()})
    status, text = say("small", "--json")
    (engine,) = json.loads(text)["engines"]
    assert (status, engine["tolerance"]) == (0, parity.TOLERANCE["fp16"])
    assert not any("50" in case for case in engine["cases"])


def test_a_truth_that_float32_cannot_hold_is_skipped_and_said(built, say):
    # Doubles every state at least 4 · 8 times: the reference goes on where float32 ends.
    layer = Layer(cell="rnn", hidden_size=4, activations=(Activation("affine", 1e6, 0.0),))
    built(replace(SPEC, layers=(layer,), lengths=False))
    status, text = say("small", "--json")
    (engine,) = json.loads(text)["engines"]
    assert any("the truth is beyond fp32" in s for s in engine["skipped"])
    assert engine["cases"], "the short ones are compared"
    assert status in (0, 1)


def test_what_large_input_is_allowed_more_of_no_other_is(built, say, monkeypatch):
    built()
    off = np.float32(3e-4)

    def wrong(answer, inputs, least=0.0):
        large = np.abs(inputs["input"]).max() == 50
        return {n: a + off * (large or least > 0) for n, a in answer.items()}

    spoil(monkeypatch, wrong)
    assert say("small")[0] == 0
    spoil(monkeypatch, lambda answer, inputs: wrong(answer, inputs, least=1))
    assert say("small")[0] == 1
    off = np.float32(6e-4)
    spoil(monkeypatch, wrong)
    assert say("small")[0] == 1


def test_ids_go_to_both_ends_of_the_vocabulary(built, say):
    spec = replace(SPEC, vocabulary=7, head=Head(size=2))
    built(spec)
    seen = {
        c.kind: c.inputs["input"] for c in verify_cases.cases(spec, verify_arrays(spec), "fp32")
    }
    assert seen["zeros"].max() == 0 and seen["large"].min() == 6
    assert say("small")[0] == 0


def verify_arrays(spec):
    return build.weights.load_weights(spec)


def test_a_slow_reference_gets_fewer_steps_but_never_fewer_than_the_profile_allows(monkeypatch):
    monkeypatch.setattr(verify_cases, "seconds_per_step", lambda *_: verify_cases.SECONDS / 7)
    drawn = list(verify_cases.cases(SPEC, verify_arrays(SPEC), "fp32"))
    assert max(c.batch * c.time for c in drawn) <= 7
    assert min(c.time for c in drawn) >= SPEC.profile.time.min
    assert max(c.time for c in drawn) == 7 and max(c.batch for c in drawn) == 3


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_cases_are_inputs_of_the_spec_within_its_profile(case, monkeypatch):
    monkeypatch.setattr(verify_cases, "seconds_per_step", lambda *_: 1.0)
    for found in verify_cases.cases(case.spec, case.weights, "fp32"):
        shapes = case.spec.shapes(found.batch, found.time)
        for name in case.spec.input_names:
            assert found.inputs[name].shape == shapes[name]
            assert found.inputs[name].dtype == case.spec.dtype(name)

"""inspect: what it counts is counted another way here, and what it cannot see it says."""

import argparse
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES
from conftest import ROOT
from inspector_double import WORDS, Double, trt
from rich.console import Console
from safetensors.numpy import save_file

from looprnn import build, inspect
from looprnn.errors import EngineMissing, LoopRNNError, SpecError, WeightsError
from looprnn.spec import Activation, Head, Layer, RNNSpec, WeightSource
from looprnn.variants import dump_spec
from looprnn.weights import load_weights, save_weights

SPEC = RNNSpec(
    name="small",
    input_size=3,
    layers=(
        Layer(cell="lstm", hidden_size=5, direction="bidirectional", proj_size=4, clip=0.7),
        Layer(cell="gru", hidden_size=6, reset="before",
              activations=(Activation("hard_sigmoid", 0.25, 0.5), Activation("tanh"))),
    ),
    head=Head(size=7),
    lengths=True,
    h_0=0.5,
    weights=WeightSource(seed=1),
)  # fmt: skip


@pytest.fixture
def say(tmp_path):
    """say("small", "--json") → what was printed; the status must be 0."""
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants/small.toml").write_text(dump_spec(SPEC))

    def ask(*words):
        parser = argparse.ArgumentParser()
        inspect.add_arguments(parser)
        options = parser.parse_args([str(w) for w in words])
        options.variants, options.repository = tmp_path / "variants", tmp_path / "models"
        options.verbose = False
        out = io.StringIO()
        assert inspect.run(options, Console(file=out, width=80)) == 0
        return out.getvalue()

    return ask


@pytest.fixture
def look(say):
    return lambda *words: json.loads(say(*words, "--json"))


def build_it(tmp_path, engines=("onnxruntime",)):
    wanted, _ = build.buildable(engines)
    build.build_variant(SPEC, wanted, tmp_path / "models", progress=lambda *_: None)
    return tmp_path / "models/small/1"


def test_a_variant_layer_by_layer(look):
    found = look("small")
    first, second = found["layers"]
    assert (first["cell"], first["gates"], first["output_size"]) == ("lstm", "ifgo", 8)
    assert first["options"] == {"proj_size": 4, "clip": 0.7}
    assert (second["input_size"], second["options"]) == (8, {"reset": "before"})
    assert second["activations"] == {"forward": ["hard_sigmoid(0.25, 0.5)", "tanh"]}
    assert found["states"] == {
        "h_0": {"value": 0.5, "dims": [1, 14]},
        "c_0": {"value": 0.0, "dims": [2, 5]},
    }
    assert found["inputs"]["input"] == ["B", "T", 3]
    assert found["outputs"]["head"] == ["B", "T", 7]
    assert found["profile"]["time"] == {"min": 1, "opt": 32, "max": 256}
    assert found["notes"] == ["not built: python build_engines.py --variant small"]


def test_flops_by_hand(look):
    # LSTM: 20 rows of W by 3 and of R by 4, V 4 by 5, both directions. GRU: 18 rows by 8 and by 6.
    lstm, gru, head = 2 * 2 * (20 * 3 + 20 * 4 + 4 * 5), 2 * (18 * 8 + 18 * 6), 2 * 7 * 6
    found = look("small")
    assert [layer["flops_per_step"] for layer in found["layers"]] == [lstm, gru]
    assert found["flops"]["per_step_and_row"] == lstm + gru + head
    assert found["flops"]["per_sequence_and_row"] == 0
    last = inspect.described(replace(SPEC, head=Head(size=7, on="last")))["flops"]
    assert last["per_step_and_row"] == lstm + gru
    assert last["per_sequence_and_row"] == head


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parameters_are_those_of_the_arrays(case):
    found = inspect.described(case.spec)
    arrays = load_weights(case.spec)
    assert found["parameters"] == sum(a.size for a in arrays.values())
    assert found["weight_bytes"] == sum(a.nbytes for a in arrays.values())
    assert {a["name"]: tuple(a["shape"]) for a in found["arrays"]} == {
        n: a.shape for n, a in arrays.items()
    }
    rest = sum(a.size for n, a in arrays.items() if n.startswith(("embedding", "head")))
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"] - rest


def test_people_see_the_same_numbers(say, tmp_path):
    build_it(tmp_path)
    text = say("small")
    for words in (
        "3 → 5 → 8", "i f g o", "proj_size = 4; clip = 0.7", "hard_sigmoid(0.25, 0.5), tanh",
        "h_0 = 0.5 [1, 14]", "weight_hr_l0_reverse", "1,228 a step and row", "seed = 1",
        "onnxruntime", "model.onnx", "any CPU", "GRU + Scan",
    ):  # fmt: skip
        assert words in text, words
    assert "not built" not in text


def test_engines_with_their_cards_by_name_by_file_and_by_folder(look, tmp_path):
    folder = build_it(tmp_path)
    (card,) = look("small")["engines"]
    assert card["bytes"] == (folder / "model.onnx").stat().st_size
    assert card["runs_here"] and card["problem"] is None
    assert card["largest_difference"] == max(card["difference"].values()) > 0
    for what in (folder, folder / "engine.json", folder.parent):
        found = look(what)
        assert (found["kind"], found["engines"]) == ("version", [card])
        assert found["layers"] == look("small")["layers"]


def test_a_folder_that_holds_no_engine_says_what_it_is(look, tmp_path):
    folder = build_it(tmp_path)
    (folder / "engine.json").unlink()
    with pytest.raises(EngineMissing, match="nothing was built.* --variant small$"):
        look(folder.parent)
    with pytest.raises(EngineMissing, match="neither a model's folder nor a version's"):
        look(tmp_path)


def test_a_variant_changed_since_the_build_and_a_broken_file_are_said(look, say, tmp_path):
    folder = build_it(tmp_path)
    other = replace(SPEC, weights=WeightSource(seed=2))
    (tmp_path / "variants/small.toml").write_text(dump_spec(other))
    assert "onnxruntime was built from another spec or weights" in look("small")["notes"][0]
    (folder / "model.onnx").write_bytes(b"other")
    (card,) = look(folder)["engines"]
    assert "5 bytes with SHA-256" in card["problem"] and not card["runs_here"]
    assert "truncated or replaced" in say("small")
    (folder / "engine.json").write_text("{")
    assert "not an engine card" in look("small")["notes"][0]


def test_a_weights_file_lists_its_arrays_and_the_layer_they_suggest(look, say, tmp_path):
    plain = RNNSpec(name="a", input_size=3, layers=(Layer(cell="gru", hidden_size=4),),
                    weights=WeightSource(seed=1))  # fmt: skip
    save_weights(tmp_path / "a.safetensors", load_weights(plain))
    found = look(tmp_path / "a.safetensors")
    assert {a["name"]: a["shape"] for a in found["arrays"]}["weight_ih_l0"] == [12, 3]
    assert [(x["cell"], x["hidden_size"]) for x in found["layers"]] == [("gru", 4)]
    assert "looprnn import" in found["notes"][-1]
    assert "weight_hh_l0" in say(tmp_path / "a.safetensors")


def test_several_layers_are_an_answer_and_one_can_be_chosen(look, tmp_path):
    plain = RNNSpec(name="a", input_size=3, layers=(Layer(cell="gru", hidden_size=4),),
                    weights=WeightSource(seed=1))  # fmt: skip
    arrays = load_weights(plain)
    both = {f"{p}.{n}": a for p in ("encoder", "decoder") for n, a in arrays.items()}
    save_file(both, tmp_path / "both.safetensors")
    found = look(tmp_path / "both.safetensors")
    assert "layers" not in found and len(found["arrays"]) == 8
    assert "--layer encoder" in found["notes"][0] and "--layer decoder" in found["notes"][0]
    assert look(tmp_path / "both.safetensors", "--layer", "decoder")["layers"][0]["cell"] == "gru"


def test_weights_that_no_importer_knows_are_still_listed(look, tmp_path):
    save_file({"anything": np.zeros((2, 3), np.float32)}, tmp_path / "x.safetensors")
    found = look(tmp_path / "x.safetensors")
    assert [a["shape"] for a in found["arrays"]] == [[2, 3]]
    assert "no recurrent layer" in found["notes"][0]


def test_a_trained_model_goes_through_its_importer(look, tmp_path):
    folder = build_it(tmp_path)
    lstm = RNNSpec(name="a", input_size=3, layers=(Layer(cell="lstm", hidden_size=4),),
                   weights=WeightSource(seed=1))  # fmt: skip
    wanted, _ = build.buildable(["onnxruntime"])
    build.build_variant(lstm, wanted, folder.parent, progress=lambda *_: None)
    found = look(folder.parent / "a/1/model.onnx")
    assert (found["kind"], found["layers"][0]["cell"]) == ("trained", "lstm")


def test_a_variant_is_not_taken_for_a_folder_of_its_name(look, tmp_path, monkeypatch):
    (tmp_path / "elsewhere/small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert look("small")["kind"] == "variant"


@pytest.mark.parametrize("content", [b"", b"\xff" * 20])
@pytest.mark.parametrize("name", ["x.safetensors", "x.onnx", "x.npz"])
def test_a_file_that_is_not_what_it_is_called_is_an_error(say, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoopRNNError, match=name.replace(".", r"\.")):
        say(tmp_path / name)


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("smal", SpecError, "no such variant. There are: small"),
        ("gone.toml", SpecError, "no such variant"),
        ("gone.onnx", WeightsError, "no such file"),
        ("gone.plan", EngineMissing, "no such file"),
        ("README.md", WeightsError, "nothing that looprnn reads; known are .pt"),
    ],
)
def test_what_is_not_there_is_an_error_in_words(say, what, error, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(error, match=words):
        say(what)


def test_the_double_has_no_method_that_tensorrt_lacks():
    real = {*dir(trt.Runtime), *dir(trt.ICudaEngine), *dir(trt.EngineInspector), *dir(trt)}
    assert {name for name in vars(Double) if not name.startswith("_")} - real == set()


def test_a_plan_has_its_card_and_says_why_tensorrt_cannot_look_into_it(
    look, say, tmp_path, monkeypatch
):
    folder = build_it(tmp_path, ("onnxruntime", "tensorrt_rtx"))
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: "no GPU, says the test")
    for words in ("tensorrt_rtx  model.rtx.plan ", "onnxruntime   model.onnx "):
        assert words in say("small"), "a name is broken in 80 columns"
    found = look(folder / "model.rtx.plan")
    assert [c["engine"] for c in found["engines"]] == ["tensorrt_rtx"]
    assert found["layers"] == look("small")["layers"]
    assert found["inspector"] is None
    assert found["notes"] == ["TensorRT's inspector cannot run here: no GPU, says the test"]


def test_where_there_is_a_gpu_tensorrts_inspector_speaks(look, say, tmp_path, monkeypatch):
    from looprnn import engines

    (tmp_path / "model.rtx.plan").write_bytes(b"plan")
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: None)
    engine = engines.get("tensorrt_rtx")
    engine.trt = Double()
    monkeypatch.setattr(engines, "get", {"tensorrt_rtx": engine}.__getitem__)
    found = look(tmp_path / "model.rtx.plan")
    assert found["inspector"] == WORDS
    assert "no engine was built here" in found["notes"][0], "there is no card beside it"
    assert "l0/forward/h_r" in say(tmp_path / "model.rtx.plan")
    (tmp_path / "model.rtx.plan").write_bytes(b"damaged")
    assert "TensorRT cannot load this plan" in look(tmp_path / "model.rtx.plan")["notes"][1]


def test_a_fused_engines_plan_is_shown_with_what_it_expects(say, look, tmp_path, monkeypatch):
    pytest.importorskip("cuda.bindings", reason="cuda-python is not installed")
    from looprnn.engines import fused_plan
    from looprnn.engines.fused_persistent import PersistentPlan

    plan = PersistentPlan(
        kernel="a_kernel", source="around.cu", defines=(("UNITS", 8),), grid=16, cluster=8,
        block=256, shared_bytes=0, cooperative=False, rows=1, chip_bytes=123 << 10,
        scratch_bytes=0, us_per_step=0.75, floor_us_per_step=0.41, why="because R fits",
    )  # fmt: skip
    folder = build_it(tmp_path, ("onnxruntime", "fused"))
    ways = [
        fused_plan.Way(layer=0, first=1, last=4, plan=None, why="peepholes"),
        fused_plan.Way(layer=1, first=1, last=3, plan=plan, why=plan.why),
        fused_plan.Way(layer=1, first=4, last=4, plan=replace(plan, grid=32), why=plan.why),
    ]
    monkeypatch.setattr("looprnn.engines.fused.read_ways", lambda path: ways)
    text = say(folder / "model.fused")
    for words in ("16–32", "1–4", "123 KiB", "0.75", "0.41", "persistent", "steps",
                  "peepholes", "because R fits", "compute capability 9.0"):  # fmt: skip
        assert words in text, words
    (engine,) = look(folder / "model.fused")["engines"]
    assert [row["way"] for row in engine["plan"]] == ["steps", "persistent"]

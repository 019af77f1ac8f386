"""What the fused engine builds: units compiled for GPUs, its file, its weights and its plans."""

import dataclasses
import json
import os
import re

import numpy as np
import pytest
from cases import CASES, case, layer
from conftest import VARIANTS, needs
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from looprnn import engines
from looprnn.engines import fused_plan, fused_source
from looprnn.engines.fused_pack import narrowed, pack_weights
from looprnn.engines.fused_program import STRUCTS, Loop
from looprnn.errors import EngineError, EngineMismatch, EngineMissing
from looprnn.spec import Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.weights import load_weights

needs("cuda.bindings", "pip install -e '.[fused]'")
from looprnn.engines import fused, fused_compile, fused_file  # noqa: E402

if (reason := fused_compile.missing()) and not os.environ.get("CI"):
    pytest.skip(reason, allow_module_level=True)

BY_NAME = {c.name: c for c in CASES}


# What is compiled for GPUs


def units_of(specs):
    found = {}
    for spec in specs:
        found |= fused_plan.units(spec, fused_plan.choose(spec))
    return found


def large(hidden, batch):
    """A layer whose plans, for 1 row to so many, take the whole GPU."""
    spec = case("large", layer("lstm", hidden), B=1, T=1, I=8).spec
    profile = Profile(batch=Range(1, 1, batch), time=Range(1, 1, 1))
    return dataclasses.replace(spec, precision="fp16", profile=profile)


def all_units():
    specs = (*VARIANTS.values(), *(c.spec for c in CASES), large(1024, 100), large(768, 128))
    found = units_of(specs)
    for precision in ("fp16", "bf16"):
        for unit in (fused_source.matmul_unit(precision), fused_source.project_unit(precision)):
            found[unit.name] = unit
    return found


UNITS = all_units()


@pytest.mark.parametrize("name", sorted(UNITS))
def test_every_unit_compiles_for_hopper_and_keeps_to_its_registers(name):
    cubin, used = fused_compile.compile_unit(UNITS[name], "9.0")
    kernels = re.findall(
        r'extern "C" __global__ void[^(]*(?:\(.*?\) )?(\w+)\(const', UNITS[name].text
    )
    assert cubin.startswith(fused_compile.ELF)
    assert used, kernels
    assert {k: (u.stack, u.spilled) for k, u in used.items() if u.stack or u.spilled} == {}


@pytest.mark.parametrize("capability", ["8.0", "8.9", "12.0"])
def test_steps_compile_for_gpus_without_clusters(capability):
    spec = VARIANTS["tokens"]
    ways = fused_plan.only_steps(spec, "a test")
    for unit in (*fused_plan.units(spec, ways).values(), fused_source.matmul_unit("bf16")):
        assert fused_compile.compile_unit(unit, capability)[0].startswith(fused_compile.ELF)


def test_what_does_not_compile_says_the_compilers_words():
    with pytest.raises(EngineError, match='(?s)broken does not compile for 9.0: .*"nonsense"'):
        fused_compile.compile_unit(fused_source.Unit("broken", "int x = nonsense;"), "9.0")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "looprnn" / "fused"


SMALL = fused_source.Unit("small", 'extern "C" __global__ void f(float* x) { *x = 1.f; }')


def test_a_cubin_is_compiled_once(cache, monkeypatch):
    first = fused_compile.cubin(SMALL, "9.0")
    assert [p.suffix for p in cache.iterdir()] == [".cubin"]
    monkeypatch.setattr(fused_compile, "compile_unit", None)
    assert fused_compile.cubin(SMALL, "9.0") == first


def test_another_text_or_gpu_is_another_cubin(cache):
    fused_compile.cubin(SMALL, "9.0")
    fused_compile.cubin(SMALL, "8.0")
    fused_compile.cubin(fused_source.Unit("small", SMALL.text + "\n"), "9.0")
    assert len(list(cache.iterdir())) == 3


def test_a_broken_cache_is_mended_and_one_that_cannot_be_written_is_done_without(cache, tmp_path):
    first = fused_compile.cubin(SMALL, "9.0")
    (kept,) = cache.iterdir()
    kept.write_bytes(b"half a")
    assert fused_compile.cubin(SMALL, "9.0") == first == kept.read_bytes()
    kept.unlink()
    cache.rmdir()
    cache.write_text("in the way")
    assert fused_compile.cubin(SMALL, "9.0") == first


# The file


@pytest.fixture
def built(tmp_path):
    """build(spec) → the path of its model.fused."""

    def build(spec):
        path = tmp_path / "model.fused"
        weights = load_weights(spec)
        engines.get("fused").build(spec, weights, path, progress=lambda *_: None, workspace=0)
        return path

    return build


def test_the_file_holds_what_was_put_into_it(built):
    spec = BY_NAME["both_directions"].spec
    path = built(spec)
    file = fused_file.read(path)
    ways = fused_plan.choose(spec)
    assert file.ways == ways == fused_file.read_ways(path)
    assert file.units == fused_plan.units(spec, ways)
    assert all(cubin.startswith(fused_compile.ELF) for cubin in file.cubins.values())
    for name, array in pack_weights(spec, load_weights(spec)).items():
        assert np.array_equal(file.arrays[name], array), name


def change(path, *, about=None, without=()):
    """Rewrite a file with other metadata, or without some tensors."""
    tensors = {n: a for n, a in load_file(path).items() if not n.startswith(without or "-")}
    save_file(tensors, path, metadata=None if about is None else {"looprnn": json.dumps(about)})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(b""), "not a fused engine"),
        (lambda p: p.write_bytes(p.read_bytes()[:5000]), "not a fused engine"),
        (lambda p: change(p), "its metadata: KeyError"),
        (lambda p: change(p, about={"format": "other", "ways": []}), "built by another looprnn"),
        (lambda p: change(p, about={"format": fused_file.FORMAT}), "its metadata: KeyError"),
        (lambda p: change(p, about={"format": fused_file.FORMAT, "ways": [{}]}), "not a fused"),
        (lambda p: change(p, about={"format": fused_file.FORMAT, "ways": []}, without="cubin/"),
         "no .cubin/"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_fused_engine_says_what_to_type(built, damage, words):
    path = built(VARIANTS["lstm"])
    damage(path)
    with pytest.raises(EngineMismatch, match=f"{words}.*build_engines.py --engine fused"):
        fused_file.read(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(EngineMissing, match="no such engine"):
        fused_file.read(tmp_path / "model.fused")


@pytest.mark.parametrize(
    ("capability", "words"),
    [
        ("9.0", None),
        ("8.0", None),
        ("12.0", None),
        ("7.5", "needs compute capability 8.0, this is"),
    ],
)
def test_which_gpus_it_runs_on(capability, words):
    reason = fused.mismatch("NVIDIA X", capability)
    assert reason is None if words is None else words in reason


def test_a_gpu_that_would_need_nvrtc_where_there_is_none(monkeypatch):
    monkeypatch.setattr(fused_compile, "missing", lambda: "NVRTC does not load here")
    assert fused.mismatch("NVIDIA H100", "9.0") is None
    reason = fused.mismatch("NVIDIA A100", "8.0")
    assert "compiled for compute capability 9.0; for NVIDIA A100 (8.0)" in reason
    assert "NVRTC does not load here" in reason


# The weights


def test_half_types_round_to_the_nearest():
    values = np.array([1.0, 1.00390625, 1.01171875, -3.1415927, 65504.0], np.float32)
    assert np.array_equal(narrowed(values, "fp16", "w"), values.astype(np.float16))
    bits = narrowed(values, "bf16", "w").astype(np.uint32) << 16
    assert bits.view(np.float32).tolist() == [1.0, 1.0, 1.015625, -3.140625, 65536.0]


@pytest.mark.parametrize(("precision", "value"), [("fp16", 65520.0), ("bf16", 3.4e38)])
def test_a_weight_beyond_the_type_is_refused_by_name(precision, value):
    spec = RNNSpec(name="great", input_size=2, layers=(Layer(cell="rnn", hidden_size=3),),
                   precision=precision, weights=WeightSource(constant=value))  # fmt: skip
    with pytest.raises(EngineError, match=re.escape(f"great: l0.w holds {value:g}, more than")):
        pack_weights(spec, load_weights(spec))


# The planner


@st.composite
def planned(draw):
    cells = st.sampled_from(["rnn", "lstm", "gru"])
    both = st.sampled_from(["forward", "reverse", "bidirectional"])
    layers = st.builds(Layer, cell=cells, hidden_size=st.integers(1, 1500), direction=both)
    most = draw(st.integers(1, 140))
    return RNNSpec(
        name="planned",
        input_size=draw(st.integers(1, 600)),
        layers=tuple(draw(st.lists(layers, min_size=1, max_size=3))),
        precision=draw(st.sampled_from(["fp32", "fp16", "fp16_state", "bf16"])),
        lengths=draw(st.booleans()),
        profile=Profile(batch=Range(1, 1, most), time=Range(1, 5, 50)),
        weights=WeightSource(seed=0),
    )


@settings(max_examples=30)
@given(spec=planned(), data=st.data())
def test_each_layer_goes_one_way_for_each_number_of_rows(spec, data):
    ways, most = fused_plan.choose(spec), spec.profile.batch.max
    for k in range(len(spec.layers)):
        rows = [b for w in ways if w.layer == k for b in range(w.first, w.last + 1)]
        assert rows == list(range(1, most + 1))
    assert all(way.why for way in ways)
    again = json.loads(json.dumps([way.as_json() for way in ways]))
    assert [fused_plan.Way.from_json(fields) for fields in again] == ways
    batch, time = data.draw(st.integers(1, most)), data.draw(st.integers(1, 50))
    program, units = fused_plan.program(spec, ways, batch, time), fused_plan.units(spec, ways)
    for launch in program.launches:
        assert launch.kernel in units[launch.unit].text
        assert set(launch.fields) <= set(STRUCTS[launch.struct])
        assert all(1 <= n <= 65535 for n in launch.grid[1:])
        assert 1 <= launch.grid[0] < 2**31
    for op in program.operations:
        assert not isinstance(op, Loop) or op.steps == time
    largest = fused_plan.program(spec, ways, batch, 50).scratch
    assert all(largest[name] >= size for name, size in program.scratch.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"peepholes": True}, "peepholes"),
        ({"coupled": True, "clip": 0.5}, "coupled, clip"),
        ({"proj_size": 4}, "proj_size"),
        ({"layer_norm": True, "cell_clip": 1.0}, "cell_clip, layer_norm"),
    ],
)
def test_the_planner_says_what_the_persistent_kernels_do_not_know(options, words):
    spec = case("odd", layer("lstm", 64, **options)).spec
    (way,) = fused_plan.choose(spec)
    assert way.plan is None
    assert words in way.why


def test_a_stack_whose_h_and_c_differ_goes_step_by_step():
    spec = case("mixed", layer("lstm", 64), layer("gru", 64)).spec
    ways = fused_plan.choose(spec)
    assert "an h and a c of other sizes" in next(w.why for w in ways if w.layer == 0)


def test_a_way_takes_what_room_a_gpu_has():
    way = fused_plan.choose(large(1024, 32))[-1]
    assert (way.plan.grid, way.plan.spare) == (64, 48)
    assert [way.on("a GPU", room).plan.spare for room in (64, 80, 112, 128)] == [0, 16, 48, 48]
    assert way.on("a GPU", 63).plan is None
    assert "a GPU does not hold 64 blocks at once" in way.on("a GPU", 63).why
    way = fused_plan.choose(dataclasses.replace(large(300, 130), precision="fp32"))[-1]
    assert way.plan.grid > 132
    assert way.on("a GPU", 112) == way, "its clusters come one after another"

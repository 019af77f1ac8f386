"""The fused engine on a GPU: any shape, any type, every element written, the same bits each time.

The planner takes persistent kernels where they exist; each test runs with them and without.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from cases import BOTH, case, layer, worst
from conftest import ROOT, skip_unless_it_runs
from fused_on_gpu import PRECISIONS, bits, check, one, poisoned, sessions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from looprnn import engines, parity
from looprnn.engines import fused_plan
from looprnn.errors import EngineError
from looprnn.weights import load_weights

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["planned", "steps"], scope="module")
def way(request):
    """As the planner has it, and everything step by step."""
    skip_unless_it_runs("fused", request)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "steps":
            patch.setattr(fused_plan, "choose", lambda spec: fused_plan.only_steps(spec, "a test"))
        yield request.param


@pytest.fixture
def opened(way, tmp_path):
    """opened(spec, weights) → an open session."""
    with sessions(tmp_path) as make:
        yield make


SHAPES = {  # B, T, I, H
    "one_of_everything": (1, 1, 1, 1),
    "one_step": (3, 1, 7, 64),
    "two_thousand_steps": (1, 2000, 3, 32),
    "primes": (13, 11, 17, 127),
    "one_past_a_tile": (17, 3, 33, 129),
    "a_block_of_rows": (8, 5, 64, 128),
    "one_past_a_block_of_rows": (9, 5, 64, 128),
    "a_hundred_and_thirty_rows": (130, 3, 31, 67),
    "one_past_half_a_thousand": (5, 3, 512, 513),
    "as_benched": (1, 16, 512, 512),
    "large": (2, 3, 100, 1024),
    "larger_than_the_chip": (2, 2, 60, 1500),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_shapes(opened, cell, precision, shape):
    batch, time, inputs, hidden = shape
    spec = one(cell, hidden, inputs=inputs, batch=batch, time=time, precision=precision,
               lengths=True)  # fmt: skip
    session = opened(spec)
    assert session.ways == fused_plan.choose(spec)  # not steps for want of room
    check(session, spec, batch, time)


@pytest.mark.parametrize(
    ("cell", "hidden", "inputs"),
    [
        ("lstm", 257, 70),  # K padded
        ("lstm", 257, 96),
        ("gru", 257, 257),  # N odd, rows of x that no copy of 16 bytes can begin at
        ("rnn", 515, 512),
    ],
)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_projections_of_more_tiles_than_multiprocessors(opened, precision, cell, hidden, inputs):
    spec = one(cell, hidden, inputs=inputs, batch=33, time=200, precision=precision)
    launches = fused_plan.program(spec, fused_plan.choose(spec), 33, 200).launches
    assert "project" in [launch.kernel for launch in launches]
    session, given = opened(spec), parity.draw_inputs(spec, 33, 200)
    check(session, spec, 33, 200)
    first = session.run(given)["output"]
    for _ in range(20):
        assert np.array_equal(session.run(given)["output"], first)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(opened, data):
    cell = data.draw(st.sampled_from(["rnn", "lstm", "gru"]))
    hidden, batch = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 130))
    time = data.draw(st.integers(1, max(1, 4000 // batch // (1 + hidden // 50))))
    spec = one(
        cell, hidden, inputs=data.draw(st.integers(1, 70)), batch=batch, time=time,
        precision=data.draw(st.sampled_from(PRECISIONS)), lengths=data.draw(st.booleans()),
        direction=data.draw(st.sampled_from(["forward", "reverse", "bidirectional"])),
        reset=data.draw(st.sampled_from(["after", "before"])) if cell == "gru" else "after",
        bias=data.draw(st.booleans()),
    )  # fmt: skip
    session = opened(spec)
    assert session.ways == fused_plan.choose(spec)
    check(session, spec, batch, time, data.draw(st.integers(0, 99)))
    check(session, spec, data.draw(st.integers(1, batch)), data.draw(st.integers(1, time)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("cell", "batch"), [("lstm", 1), ("lstm", 33), ("gru", 3), ("rnn", 8)])
def test_a_thousand_runs_are_one(opened, cell, batch, precision):
    spec = one(cell, 129, batch=batch, time=17, precision=precision, direction="bidirectional",
               lengths=True)  # fmt: skip
    session, inputs = opened(spec), parity.draw_inputs(spec, batch, 17, 1)
    first = bits(poisoned(session, inputs))
    for k in range(1000):
        again = poisoned(session, inputs) if k % 100 == 0 else session.run(inputs)
        assert bits(again) == first


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_cut_in_two(opened, cell):
    spec = one(cell, 96, batch=4, time=12)
    session, inputs = opened(spec), parity.draw_inputs(spec, 4, 12, 3)
    whole = session.run(inputs)
    for cut in (1, 5, 11):
        head = {**inputs, "input": np.ascontiguousarray(inputs["input"][:, :cut])}
        first = session.run(head)
        states = {f"{s}_0": first[f"{s}_n"] for s in spec.states}
        rest = {**states, "input": np.ascontiguousarray(inputs["input"][:, cut:])}
        second = session.run(rest)
        joined = np.concatenate([first["output"], second["output"]], axis=1)
        np.testing.assert_allclose(joined, whole["output"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(second["h_n"], whole["h_n"], rtol=0, atol=1e-6)


def test_rows_do_not_know_each_other(opened):
    spec = one("lstm", 40, batch=9, time=6, lengths=True)
    session, inputs = opened(spec), parity.draw_inputs(spec, 9, 6, 4)
    order = np.random.default_rng(0).permutation(9)
    turned = session.run({name: np.ascontiguousarray(a[order]) for name, a in inputs.items()})
    for name, array in session.run(inputs).items():
        assert np.array_equal(array[order], turned[name]), name


def test_only_what_is_wanted_comes_back(opened):
    spec = one("gru", 20, head=None)
    inputs = parity.draw_inputs(spec, 2, 5)
    session = opened(spec)
    every = session.run(inputs)
    (name,) = only = session.run(inputs, wanted=["h_n"])
    assert np.array_equal(only[name], every[name])


def test_graphs_of_old_shapes_are_freed_and_made_again(opened, monkeypatch):
    from looprnn.engines import fused_session

    monkeypatch.setattr(fused_session, "GRAPHS", 64)
    spec = one("rnn", 8, batch=2, time=100)
    session = opened(spec)
    for time in (*range(1, 101), 1, 50):
        check(session, spec, 2, time)
    assert len(session._graphs) == 64


def test_a_shape_beyond_the_profile_is_refused(opened):
    spec = one("rnn", 8, batch=2, time=3)
    with pytest.raises(EngineError, match="B = 3, T = 3; it takes B up to 2 and T up to 3"):
        opened(spec).run(parity.draw_inputs(spec, 3, 3))


def test_an_id_outside_the_vocabulary_is_refused_and_the_next_request_served(opened):
    spec = one("gru", 20, vocabulary=9)
    session, inputs = opened(spec), parity.draw_inputs(spec, 2, 5)
    with pytest.raises(EngineError, match="an id outside the vocabulary"):
        session.run({**inputs, "input": np.full_like(inputs["input"], 9)})
    check(session, spec, 2, 5)


def test_a_stack_of_both_directions_with_persistent_and_other_layers(opened):
    made = case("stack", layer("lstm", 64, **BOTH), layer("lstm", 64, **BOTH), B=9, T=12, I=32,
                lengths=True)  # fmt: skip
    got = poisoned(opened(made.spec, made.weights), made.inputs)
    assert parity.agrees(worst(made, got))


TWO = """
import json, sys
from pathlib import Path
import numpy as np
from looprnn import engines, parity
from looprnn.spec import RNNSpec
spec = RNNSpec.from_network_dict(json.loads(Path(sys.argv[2]).read_text()))
inputs = parity.draw_inputs(spec, spec.profile.batch.max, spec.profile.time.max, 1)
with engines.get("fused").session(Path(sys.argv[1]), spec) as session:
    print("open", flush=True)
    sys.stdin.readline()
    first = session.run(inputs)["output"]
    for _ in range(300):
        assert np.array_equal(session.run(inputs)["output"], first)
    np.save(sys.argv[3], first)
"""


@pytest.mark.parametrize(
    ("hidden", "batch", "precision"),
    [(512, 1, "fp16"), (512, 64, "fp16"), (512, 8, "fp32"), (1024, 1, "fp16"), (1024, 40, "bf16")],
)
def test_two_processes_on_one_gpu_both_get_through(way, tmp_path, hidden, batch, precision):
    spec = one("lstm", hidden, inputs=64, batch=batch, time=64, precision=precision)
    path, about = tmp_path / "model.fused", tmp_path / "spec.json"
    engine = engines.get("fused")
    engine.build(spec, load_weights(spec), path, progress=lambda *_: None, workspace=0)
    about.write_text(json.dumps(spec.network_dict()))
    files = [tmp_path / f"{k}.npy" for k in range(2)]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(path), str(about), str(file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for file in files
    ]  # fmt: skip
    try:
        assert [p.stdout.readline() for p in both] == ["open\n", "open\n"]
        for process in both:
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in both:
            process.communicate(timeout=120)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert [p.returncode for p in both] == [0, 0]
    assert np.array_equal(np.load(files[0]), np.load(files[1]))


def test_a_way_that_the_gpu_has_no_room_for_becomes_steps(opened, monkeypatch):
    from looprnn import cuda

    monkeypatch.setattr(cuda.Kernel, "resident", lambda *_: 0)
    spec = one("lstm", 128, batch=4, time=5)
    session = opened(spec)
    assert [way.plan for way in session.ways] == [None] * len(session.ways)
    check(session, spec, 4, 5)


def test_a_gpu_of_another_architecture_compiles_from_the_source(opened, monkeypatch):
    from looprnn.engines import fused_file, fused_session

    spec = one("lstm", 128, batch=4, time=5)
    session = opened(spec)
    monkeypatch.setattr(fused_session, "CAPABILITY", "8.0")
    monkeypatch.setattr(fused_file, "CAPABILITY", "8.0")
    other = type(session)(session.path, spec)
    with other:
        assert all(way.plan is None for way in other.ways)
        check(other, spec, 4, 5)

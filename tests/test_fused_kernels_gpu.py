"""Each persistent kernel of the fused engine on a GPU, also where the planner would take none: any
plan, long sequences, the same bits, cut in two, beside another engine, and with a block lost.
"""

import dataclasses
import threading

import numpy as np
import pytest
from fused_on_gpu import (
    CLOSE,
    KERNELS,
    PRECISIONS,
    agrees,
    bits,
    check,
    one,
    plan_of,
    plans,
    poisoned,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from looprnn import parity
from looprnn.engines import fused_plan, fused_steps
from looprnn.errors import EngineError
from looprnn.spec import Profile, Range

pytestmark = pytest.mark.gpu
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow]
every_kernel = pytest.mark.parametrize("name", KERNELS)


def profiled(spec, time, **changes):
    profile = Profile(batch=spec.profile.batch, time=Range(1, time, time))
    return dataclasses.replace(spec, profile=profile, **changes)


@pytest.mark.parametrize("source", ["cluster.cu", "grid.cu", "multicast.cu"])
@settings(max_examples=30, suppress_health_check=SLOW)
@given(data=st.data())
def test_any_plan_of_any_shape(opened, source, data):
    """Not only the fastest: what the planner takes tomorrow, or on another GPU."""
    draw, cluster = data.draw, source == "cluster.cu"
    cell = draw(st.sampled_from(["rnn", "lstm", "gru"][not cluster :]))
    hidden, batch = draw(st.integers(1, 1500)), draw(st.integers(1, 130))
    time = draw(st.integers(1, max(2, 3000 // batch // (1 + hidden // 40))))
    spec = one(
        cell, hidden, inputs=draw(st.integers(1, 70)), batch=batch, time=time,
        precision=draw(st.sampled_from(PRECISIONS[not cluster :])), lengths=draw(st.booleans()),
        direction=draw(st.sampled_from(["forward", "reverse", "bidirectional"])),
        reset=draw(st.sampled_from(["after", "before"])) if cell == "gru" and cluster else "after",
        bias=draw(st.booleans()),
    )  # fmt: skip
    found = [plan for plan in plans(spec) if plan.source == source]
    assume(found)
    session, seed = opened(spec, plan=draw(st.sampled_from(found))), draw(st.integers(0, 99))
    check(session, spec, batch, time, seed)
    check(session, spec, draw(st.integers(1, batch)), draw(st.integers(1, time)), seed + 1)


@every_kernel
def test_any_rows_and_steps_of_the_profile(opened, name):
    spec, said = KERNELS[name]
    spec = profiled(spec, 12)
    session, most = opened(spec, plan=plan_of(spec, **said)), spec.profile.batch.max
    for batch, time in ((most, 12), (1, 1), (most, 2), (-(-most // 2), 5), (most, 12)):
        check(session, spec, batch, time, batch + time, limits=CLOSE)


@every_kernel
def test_two_thousand_steps(opened, name):
    spec, said = KERNELS[name]
    spec = profiled(spec, 2000)
    session = opened(spec, plan=plan_of(spec, **said))
    check(session, spec, spec.profile.batch.max, 2000, limits=CLOSE)


@every_kernel
def test_a_thousand_runs_are_one(opened, name):
    spec, said = KERNELS[name]
    spec = profiled(spec, 17)
    session = opened(spec, plan=plan_of(spec, **said))
    inputs = parity.draw_inputs(spec, spec.profile.batch.max, 17, 1)
    first = bits(poisoned(session, inputs))
    for k in range(1000):
        assert bits(poisoned(session, inputs) if k % 100 == 0 else session.run(inputs)) == first


@pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"apart"}))  # of two directions alone
def test_cut_in_two(opened, name):
    spec, said = KERNELS[name]
    forward = dataclasses.replace(spec.layers[0], direction="forward")
    spec = profiled(spec, 12, layers=(forward,), lengths=False)
    session = opened(spec, plan=plan_of(spec, **said))
    inputs = parity.draw_inputs(spec, spec.profile.batch.max, 12, 3)
    for cut in (1, 6, 11):
        head, rest = (np.ascontiguousarray(x) for x in np.split(inputs["input"], [cut], axis=1))
        first = session.run({**inputs, "input": head})
        states = {f"{s}_0": first[f"{s}_n"] for s in spec.states}
        second = session.run({**states, "input": rest})
        joined = np.concatenate([first["output"], second["output"]], axis=1)
        right, found = agrees(spec, inputs, {**second, "output": joined}, CLOSE)
        assert right, (cut, found)


@pytest.mark.parametrize("name", ["beside", "beside_of_one_group"])
def test_x_that_is_late(opened, monkeypatch, name):
    """On one block, which some blocks wait for while others need not."""
    monkeypatch.setattr(fused_steps, "TILE_US", (1e-3, 0.0))
    spec, said = KERNELS[name]
    plan, batch, time = plan_of(spec, **said), spec.profile.batch.max, spec.profile.time.max
    session = opened(spec, plan=plan)
    launches = fused_plan.program(spec, session.ways, batch, time).launches
    assert [launch.fields.get("blocks") for launch in launches] == [None, 1]
    for seed in range(20):
        check(session, spec, batch, time, seed, limits=CLOSE)


def test_two_engines_of_one_process_both_get_through(opened):
    """Both need most of the GPU: blocks of the one must not wait where the other's should be."""
    specs = [one("lstm", 1024, batch=b, time=40, precision="fp16") for b in (1, 40)]
    both = [opened(spec) for spec in specs]
    sources = [session.ways[-1].plan.source for session in both]
    assert sources == ["grid.cu", "multicast.cu"]
    asked = [parity.draw_inputs(s, s.profile.batch.max, 40, 2) for s in specs]
    alone = [bits(s.run(x)) for s, x in zip(both, asked, strict=True)]
    begin, same = threading.Barrier(2), [0, 0]

    def ask(k):
        begin.wait(60)
        for _ in range(300):
            same[k] += bits(both[k].run(asked[k])) == alone[k]

    threads = [threading.Thread(target=ask, args=(k,), daemon=True) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert same == [300, 300]


def counts(session):
    """What blocks count up to on the GPU: 0 between runs."""
    from looprnn import cuda

    found = []
    for name, buffer in session.gpu.items():
        size = {"scratch": 16, "ready": buffer.size}.get(name.rpartition(".")[2])
        if size:
            with cuda.PinnedBuffer(size) as host:
                cuda.copy_out(host, buffer, size, session.stream)
                session.stream.synchronize()
                found += host.view((size // 4,), np.uint32).tolist()
    return np.array(found)


@every_kernel
def test_a_lost_block_is_an_error_and_not_a_hang(opened, monkeypatch, name):
    spec, said = KERNELS[name]
    plan = plan_of(spec, **said)
    right = opened(spec, plan=plan)
    monkeypatch.setattr(fused_plan, "TIMEOUT_NS", 50_000_000)
    defines = (*plan.defines, ("LOSE_BLOCK", 1))
    session = opened(spec, plan=dataclasses.replace(plan, defines=defines))
    inputs = parity.draw_inputs(spec, spec.profile.batch.max, spec.profile.time.max)
    for _ in range(2):
        with pytest.raises(EngineError, match="another one was lost"):
            session.run(inputs)
        assert not counts(session).any()
    monkeypatch.undo()
    want = bits(right.run(inputs))
    assert bits(right.run(inputs)) == want
    check(right, spec, spec.profile.batch.max, spec.profile.time.max, limits=CLOSE)

"""The fused engine where a layer needs the whole GPU: H above 512 and many rows. And what becomes
of a run that loses a block, whichever kernel it was.
"""

import dataclasses

import numpy as np
import pytest
from conftest import skip_unless_it_runs
from test_fused_gpu import check, one, poisoned

from looprnn import engines, parity
from looprnn.engines import fused_plan
from looprnn.errors import EngineError
from looprnn.weights import load_weights

pytestmark = pytest.mark.gpu


@pytest.fixture
def opened(request, tmp_path):
    """opened(spec) builds and opens it, as planned."""
    skip_unless_it_runs("fused", request)
    sessions = []

    def make(spec):
        path, engine = tmp_path / f"{len(sessions)}.fused", engines.get("fused")
        engine.build(spec, load_weights(spec), path, progress=lambda *_: None, workspace=0)
        sessions.append(engine.session(path, spec))
        return sessions[-1].__enter__()

    yield make
    for session in sessions:
        session.__exit__(None, None, None)


def source_of(session, batch):
    return next(
        way.plan and way.plan.source for way in session.ways if way.first <= batch <= way.last
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("cell", "hidden", "batch", "time", "direction"),
    [
        ("lstm", 1024, 32, 20, "forward"),
        ("lstm", 1024, 33, 9, "reverse"),
        ("lstm", 1024, 128, 5, "forward"),
        ("lstm", 768, 16, 33, "forward"),
        ("lstm", 701, 33, 7, "bidirectional"),
        ("gru", 1000, 13, 12, "reverse"),
        ("gru", 769, 64, 1, "forward"),
    ],
)
def test_many_rows_of_a_large_layer(opened, cell, hidden, batch, time, direction, precision):
    spec = one(cell, hidden, inputs=40, batch=batch, time=time, direction=direction,
               precision=precision, lengths=True)  # fmt: skip
    session = opened(spec)
    assert source_of(session, batch) == "multicast.cu"
    for rows, steps in ((batch, time), (batch // 2 + 1, time), (1, 1)):
        check(session, spec, rows, steps, seed=rows)
    inputs = parity.draw_inputs(spec, batch, time, 7)
    first = {name: array.tobytes() for name, array in poisoned(session, inputs).items()}
    for _ in range(50):
        assert {name: a.tobytes() for name, a in session.run(inputs).items()} == first


@pytest.mark.parametrize(
    ("source", "hidden", "batch"),
    [("cluster.cu", 256, 9), ("grid.cu", 1024, 1), ("multicast.cu", 1024, 40)],
)
def test_a_lost_block_is_an_error_and_not_a_hang(opened, monkeypatch, source, hidden, batch):
    spec = one("lstm", hidden, inputs=8, batch=batch, time=6, precision="fp16")
    right, choose = opened(spec), fused_plan.choose
    assert source_of(right, batch) == source

    def losing(spec):
        for way in choose(spec):
            defines = (*way.plan.defines, ("LOSE_BLOCK", 1))
            yield dataclasses.replace(way, plan=dataclasses.replace(way.plan, defines=defines))

    monkeypatch.setattr(fused_plan, "choose", lambda spec: list(losing(spec)))
    monkeypatch.setattr(fused_plan, "TIMEOUT_NS", 50_000_000)
    session, inputs = opened(spec), parity.draw_inputs(spec, batch, 6)
    for _ in range(2):
        with pytest.raises(EngineError, match="another one was lost"):
            session.run(inputs)
    want = right.run(inputs)["output"]
    assert np.array_equal(right.run(inputs)["output"], want)
    check(right, spec, batch, 6)

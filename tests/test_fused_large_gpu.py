"""The fused engine where a layer needs the whole GPU: H above 512 and many rows."""

import pytest
from fused_on_gpu import bits, check, one, poisoned

from looprnn import parity

pytestmark = pytest.mark.gpu


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
        ("lstm", 1024, 16, 140, "forward"),  # with its projection in it
        ("lstm", 1024, 40, 6, "bidirectional"),  # one direction after the other
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
    first = bits(poisoned(session, inputs))
    for _ in range(50):
        assert bits(session.run(inputs)) == first

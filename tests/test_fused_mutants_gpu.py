"""The persistent kernels of the fused engine with a mistake each, on a GPU: parity must notice."""

from contextlib import suppress

import pytest
from fused_mutants import mutate
from fused_on_gpu import (
    BOTH,
    CLOSE,
    CLUSTER,
    GRID,
    KERNELS,
    agrees,
    one,
    plan_of,
    poisoned,
)

from looprnn import parity
from looprnn.engines import fused_plan, fused_source
from looprnn.errors import EngineError

# A layer so small that project.cuh has all of it to itself; its tiles end inside, and K does.
PROJECTED = one("rnn", 17, inputs=70, batch=33, time=100, precision="fp16")
CASES = {
    **KERNELS,
    "projected": (PROJECTED, CLUSTER),
    # Rows and units that the block has room for and the layer has not.
    "few_rows": (one("lstm", 130, batch=5, time=3, precision="fp16", **BOTH), CLUSTER),
    "few_rows_of_grid": (one("gru", 213, batch=5, time=3, precision="bf16", **BOTH), GRID),
}
MUTANTS = [  # a source, what stands in it, what should not, and a case that must notice
    ("cluster.cu", "reverse && t < length ? length - 1 - t", "reverse ? time - 1 - t", "rows"),
    ("cluster.cu", "lengths ? min(lengths[row], time) : time", "time", "rows"),
    ("cluster.cu", "row * state_stride + d * H + unit", "row * state_stride + unit", "fp32"),
    ("cluster.cu", "zeros[i] = 0;", "zeros[i] = ~0u;", "few_rows"),
    ("cluster.cu", "l.h_0 && row < l.batch ? l.h_0[l.state(row, unit)] : 0.f", "0.f", "one_row"),
    ("cluster.cu", "l.c_0 ? l.c_0[l.state(row, unit)] : 0.f", "l.c_0 ? 0.f : 0.f", "fp32"),
    ("cluster.cu", "fmaf(yf, c[g], yi * tanh_of(", "fmaf(yf, c[g], tanh_of(", "rows"),
    ("cluster.cu", "fmaf(yf, c[g], y * yg)", "fmaf(yg, c[g], y * yf)", "fp32"),
    ("cluster.cu", "if (within) c[g] = next", "c[g] = next", "couriers"),
    ("cluster.cu", "if (within) h[g] = fresh", "h[g] = fresh", "fp32_gru"),
    ("cluster.cu", "within ? h[g] : 0.f", "h[g]", "couriers"),
    ("cluster.cu", "fmaf(z, h[g] - n, n)", "fmaf(z, n - h[g], h[g])", "one_row_of_a_gru"),
    ("cluster.cu", "* (sum[0] + bias)", "* sum[0] + bias", "fp32_gru"),
    ("cluster.cu", "stage(g, 2, gate * h[g])", "stage(g, 2, h[g])", "reset_before"),
    ("cluster.cu", "stage(g, 2, gate * h[g])", "stage(g, 2, h[g])", "couriers_of_a_gru"),
    ("cluster.cu", "fmaxf(v, 0.f)", "v", "relu"),
    ("cluster.cu", "copy_out(l.output + l.element(row, length[g], t)",
     "copy_out(l.output + l.element(row, l.time, t)", "couriers"),
    ("cluster.cu", ": own + of_r", ": own", "one_row_of_a_gru"),
    ("cluster.cu", "odd ? own + of_n", "odd ? own", "one_row_of_a_gru"),
    ("cluster.cu", "place(k * 32 + lane, b)", "place(k * 32 + lane, 0)", "fp32"),
    ("grid.cu", "for (int k = 0; k < KS; k++)", "for (int k = 1; k < KS; k++)", "grid"),
    ("grid.cu", "while ((got[i].x & 1) != tag && !lost)", "while (false)", "grid"),
    ("grid.cu", "(s.h)[i] = 0;", "(s.h)[i] = ~0u;", "few_rows_of_grid"),
    ("grid.cu", "fmaf(z, h[i] - candidate, candidate)", "fmaf(z, candidate - h[i], h[i])",
     "grid_gru"),
    ("grid.cu", "t < length[i] ? h[i] : 0.f", "h[i]", "grid"),
    ("grid.cu", "if (within) c[i] = next", "c[i] = next", "grid"),
    ("multicast.cu", "s.sum[0][at] + s.sum[1][at]", "s.sum[0][at]", "multicast"),
    ("multicast.cu", "within ? fresh[i] : h[g][i]", "fresh[i]", "multicast_gru"),
    ("multicast.cu", "t < length_of(g, i) ? h[g][i] : 0.f", "h[g][i]", "multicast"),
    ("multicast.cu", "load_x((g + 1) % GROUPS, min(t + (g + 1) / GROUPS", "load_x(g, min(t + 1",
     "multicast"),
    ("multicast.cu", "CELL == LSTM && within", "CELL == LSTM", "multicast"),
    ("multicast.cu", "count == tiles", "count <= tiles", "beside"),
    ("multicast.cu", "APART ? direction", "APART ? 0", "apart"),
    ("multicast.cu", "== tag_of(t)", "<= 1", "multicast"),
    ("multicast.cu", "l.reverse && t < length ? length - 1 - t", "l.reverse ? l.time - 1 - t",
     "multicast_gru"),
    ("project.cuh", "v.y + add.y", "v.y", "projected"),
    ("project.cuh", "if (left > 0) at[0] = all.x;", "", "projected"),
    ("project.cuh", "return (K + 63) / 64", "return K / 64", "projected"),
    ("project.cuh", "ready + tile.t / times", "ready", "beside"),
    ("project.cuh", "row & times - 1", "row", "beside"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "right", "wrong", "name"), MUTANTS)
def test_what_a_mutant_changes_is_there(source, right, wrong, name):
    spec, said = CASES[name]
    assert right in fused_source._read(source)
    if name == "projected":
        program = fused_plan.program(spec, [], spec.profile.batch.max, spec.profile.time.max)
        assert "project" in [launch.kernel for launch in program.launches]
    else:
        assert plan_of(spec, **said).source == ("multicast.cu" if name == "beside" else source)


@pytest.mark.gpu
@pytest.mark.parametrize(("source", "right", "wrong", "name"), MUTANTS)
def test_parity_notices_a_wrong_kernel(opened, monkeypatch, source, right, wrong, name):
    spec, said = CASES[name]
    plan, most = plan_of(spec, **said), spec.profile
    limits = CLOSE if name in KERNELS else parity.TOLERANCE
    inputs = parity.draw_inputs(spec, most.batch.max, most.time.max)
    well, found = agrees(spec, inputs, poisoned(opened(spec, plan=plan), inputs), limits)
    assert well, found
    monkeypatch.setattr(fused_plan, "TIMEOUT_NS", 2_000_000_000)
    mutate(monkeypatch, source, right, wrong)
    mutant = opened(spec, plan=plan)
    with suppress(EngineError):  # a wait that came too late notices, too
        well, found = agrees(spec, inputs, poisoned(mutant, inputs), limits)
        assert not well, found

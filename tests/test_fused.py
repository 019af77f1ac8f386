"""The fused engine's step kernels, their own text, run on a CPU: every case, any spec, mutants."""

import numpy as np
import pytest
from cases import BOTH, CASES, case, layer, worst
from cuda_on_cpu import missing, run
from drawn import agree, specs
from fused_mutants import mutate
from hypothesis import given, settings
from hypothesis import strategies as st

from looprnn import parity
from looprnn.engines import fused_plan, fused_steps
from looprnn.weights import load_weights

on_cpu = pytest.mark.skipif(missing() is not None, reason=str(missing()))
BY_NAME = {c.name: c for c in CASES}


@on_cpu
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_kernels_on_a_cpu(case):
    got, failed = run(case.spec, case.weights, case.inputs)
    assert not failed
    assert parity.agrees(worst(case, got))


@on_cpu
@settings(max_examples=25)
@given(spec=specs(), batch=st.integers(1, 5), time=st.integers(1, 9), seed=st.integers(0, 1000))
def test_any_spec_on_a_cpu(spec, batch, time, seed):
    weights, inputs = load_weights(spec), parity.draw_inputs(spec, batch, time, seed)
    found = parity.differences(spec, weights, inputs, run(spec, weights, inputs)[0])
    assert agree(spec, found), found


@on_cpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("batch", [1, 7, 9, 17, 65])  # each kernel of matmul.cu, and its edges
def test_matmuls_of_any_rows_on_a_cpu(batch, precision):
    made = case("rows", layer("lstm", 36, **BOTH), B=batch, T=3, I=41, precision=precision)
    got, _ = run(made.spec, made.weights, made.inputs)
    assert parity.agrees(worst(made, got), precision)


@on_cpu
@pytest.mark.parametrize(
    ("precision", "kernel", "inputs", "processors"),
    [
        ("fp32", "wide64", 36, 1),
        ("fp32", "wide32x64", 36, 30),
        ("fp32", "wide32", 36, 60),
        ("fp32", "wide16", 36, 1000),
        ("fp32", "tile64", 35, 1),
        ("fp16", "rounded128", 35, 1),
        ("fp16", "wide64", 36, 10),
        ("bf16", "wide32", 36, 1000),
        ("bf16", "split32x64", 260, 1000),
        ("fp16", "split32x64", 292, 1000),
        ("bf16", "tile64", 35, 10),
        ("fp16", "tile32", 35, 1000),
    ],
)
def test_projections_in_tiles_of_each_kind_on_a_cpu(
    precision, kernel, inputs, processors, monkeypatch
):
    monkeypatch.setattr(fused_steps, "MULTIPROCESSORS", processors)
    options = {"B": 2, "T": 65, "I": inputs, "precision": precision}
    made = case("tiles", layer("rnn", 65, **BOTH), **options)
    ways = fused_plan.only_steps(made.spec, "a test")
    launches = fused_plan.program(made.spec, ways, made.B, made.T, hopper=False).launches
    assert kernel in [launch.kernel for launch in launches]
    got, _ = run(made.spec, made.weights, made.inputs)
    assert parity.agrees(worst(made, got), precision)


@on_cpu
def test_an_id_outside_the_vocabulary_sets_the_flag():
    made = BY_NAME["ids"]
    inputs = {**made.inputs, "input": np.full_like(made.inputs["input"], 13)}
    assert run(made.spec, made.weights, inputs)[1] == 256


MUTANTS = [  # of a kernel's text, and a case that must notice
    ("step.cu", "backward ? o.T - 1 - o.s : o.s", "o.s", "reverse_in_time"),
    ("step.cu", "valid = t < steps", "valid = t <= steps", "ragged"),
    ("step.cu", "row.steps > 0 ? last", "true ? last", "ragged_repeating"),
    ("step.cu", "&& !row.backward", "", "ragged_repeating"),
    ("step.cu", "f * old + i * g", "f + i * g", "one_step"),
    ("step.cu", "COUPLED ? 1.f - i", "COUPLED ? i", "coupled_gates"),
    ("step.cu", "p[2 * o.H + j] * now", "p[2 * o.H + j] * old", "peepholes"),
    ("step.cu", "(1.f - z) * n + z * h[j]", "z * n + (1.f - z) * h[j]", "gru_reset_after"),
    ("step.cu", "r * (hr[j * 3 + 2] + (o.bias_n ? o.bias_n[row.d * o.H + j] : 0.f))",
     "r * hr[j * 3 + 2] + (o.bias_n ? o.bias_n[row.d * o.H + j] : 0.f)", "gru_reset_after"),
    ("step.cu", "r * o.h[", "o.h[", "gru_reset_before"),
    ("step.cu", "+ shift[j]", "", "layer_norm"),
    ("step.cu", "if (row.valid) *h =", "*h =", "ragged_with_projection"),
    ("step.cu", "row.at * o.y_row + row.d * o.P + j]", "row.at * o.y_row + j]", "projection"),
    ("matmul.cu", "+ (o.bias ? o.bias[blockIdx.z * o.N + n] : 0.f)", "", "no_axis_equals_another"),
    ("matmul.cu", "a[r * o.a_row + k]", "a[k]", "no_axis_equals_another"),
    ("around.cu", "(value + o.b[from]) * 0.5f", "value + o.b[from]", "merge_average"),
    ("around.cu", "t >= o.lengths[b] ? 0.f", "false ? 0.f", "ragged_residual_on_the_first_layer"),
    ("around.cu", "y[k] = 0.f", "", "head_on_every_valid_step"),
    ("around.cu", "y[k] /= sum", "", "head_on_every_step"),
]  # fmt: skip


@on_cpu
@pytest.mark.parametrize(("file", "right", "wrong", "name"), MUTANTS)
def test_some_case_notices_a_wrong_kernel(file, right, wrong, name, monkeypatch):
    noticing = BY_NAME[name]
    mutate(monkeypatch, file, right, wrong)
    got, _ = run(noticing.spec, noticing.weights, noticing.inputs)
    assert not parity.agrees(worst(noticing, got))

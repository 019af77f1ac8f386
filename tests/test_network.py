"""The TensorRT networks, read back layer by layer and evaluated in NumPy, against the reference.

No machine of the project can execute a plan, so this is where wiring is proved; the builder itself
checks shapes, types and loop rules in test_tensorrt.py.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cases import CASES, WEIGHT_MUTANTS, worst
from conftest import VARIANTS, needs
from drawn import agree, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import run

from looprnn import network, parity
from looprnn.weights import load_weights

trt = needs("tensorrt_rtx", "pip install 'looprnn[rtx]'")
LOGGER = trt.Logger(trt.Logger.ERROR)
BUILDER = trt.Builder(LOGGER)


def define(spec, weights, module=trt):
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    made = BUILDER.create_network(flag)
    kept = network.define(module, made, spec, weights)
    return made, kept


def interpret(case, weights=None, module=trt):
    made, kept = define(case.spec, case.weights if weights is None else weights, module)
    answer = run(trt, made, case.inputs)
    del kept
    return answer


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parity(case):
    assert parity.agrees(worst(case, interpret(case)))


PRECISIONS = [p for p in parity.TOLERANCE if p != "fp32"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parity_in_lower_precision(case, precision):
    spec = replace(case.spec, precision=precision)
    made, kept = define(spec, case.weights)
    found = parity.differences(spec, case.weights, case.inputs, run(trt, made, case.inputs))
    del kept
    assert all(parity.agrees(value, precision) for value in found.values()), found
    assert max(found.values()) > parity.TOLERANCE["fp32"] / 100, "it was not computed in half"


@pytest.mark.parametrize("time", ["one", "typical", "longer than the optimum"])
def test_every_variant(variant, time):
    steps = {"one": 1, "typical": variant.profile.time.opt}.get(time, variant.profile.time.opt + 3)
    weights = load_weights(variant)
    inputs = parity.draw_inputs(variant, 2, steps)
    made, kept = define(variant, weights)
    found = parity.differences(variant, weights, inputs, run(trt, made, inputs))
    del kept
    assert all(parity.agrees(value) for value in found.values()), found


def test_the_seeds_numbers():
    for name, printed in (
        ("relu_rnn", [12, 67, 342, 1717]),
        ("lstm", [0.76158684, 0.96400476, 0.99504673, 0.99932283]),
    ):
        spec = VARIANTS[name]
        made, kept = define(spec, load_weights(spec))
        got = run(trt, made, {"input": np.ones((3, 4, 7), np.float32), **spec.defaults(3, 4)})
        del kept
        want = np.broadcast_to(np.array(printed, np.float32)[:, np.newaxis], (3, 4, 5))
        np.testing.assert_allclose(got["output"], want, rtol=0, atol=2e-7)


@settings(max_examples=80)
@given(spec=specs(), batch=st.integers(1, 5), time=st.integers(1, 12), seed=st.integers(0, 1000))
def test_any_spec(spec, batch, time, seed):
    weights = load_weights(spec)
    inputs = parity.draw_inputs(spec, batch, time, seed)
    made, kept = define(spec, weights)
    found = parity.differences(spec, weights, inputs, run(trt, made, inputs))
    del kept
    assert agree(spec, found), found


@pytest.mark.parametrize("mutant", WEIGHT_MUTANTS, ids=lambda m: m.__name__)
def test_some_case_notices_wrong_weights(mutant):
    noticed = [
        c.name
        for c in CASES
        if not parity.agrees(worst(c, interpret(c, mutant(c.spec, c.weights))))
    ]
    assert noticed, f"no case tells {mutant.__name__} from the truth"


def forget_c(monkeypatch):
    return wrong_step(monkeypatch, lambda rec, before, new: {**new, "c": before["c"]}, "lstm")


def forget_h(monkeypatch):
    return wrong_step(monkeypatch, lambda rec, before, new: {**new, "h": before["h"]}, "rnn")


def wrong_step(monkeypatch, wrong, cell):
    right = network.step

    def step(net, rec, xw, before):
        new = right(net, rec, xw, before)
        return wrong(rec, before, new) if rec.layer.cell == cell else new

    monkeypatch.setattr(network, "step", step)
    return trt


def states_run_on_past_the_length(monkeypatch):
    right = network.Net.select

    def wrong(net, name, condition, yes, no):
        return yes if name.endswith("_kept") else right(net, name, condition, yes, no)

    monkeypatch.setattr(network.Net, "select", wrong)
    return trt


def output_not_blanked_past_the_length(monkeypatch):
    right = network.Net.select

    def wrong(net, name, condition, yes, no):
        return yes if name in ("y", "valid") else right(net, name, condition, yes, no)

    monkeypatch.setattr(network.Net, "select", wrong)
    return trt


def residual_not_blanked(monkeypatch):
    return blanking(monkeypatch, lambda self, name, y: name != "residual_valid")


def head_blanked_though_padding_repeats(monkeypatch):
    return blanking(monkeypatch, lambda self, name, y: True, always=("head",))


def blanking(monkeypatch, blanks, always=()):
    right, head = network.Time.blanked, network._head

    def blanked(self, name, y):
        return right(self, name, y) if blanks(self, name, y) else y

    def wrong_head(net, time, spec, weights, y):
        z = head(net, time, spec, weights, y)
        return right(time, "head_blank", z) if "head" in always and len(z.shape) == 3 else z

    monkeypatch.setattr(network.Time, "blanked", blanked)
    monkeypatch.setattr(network, "_head", wrong_head)
    return trt


def empty_rows_repeat_their_start(monkeypatch):
    right = network.Net.select

    def wrong(net, name, condition, yes, no):
        return yes if name == "output_some" else right(net, name, condition, yes, no)

    monkeypatch.setattr(network.Net, "select", wrong)
    return trt


def mask_not_reversed(monkeypatch):
    return iterators(monkeypatch, lambda tensor, reverse: reverse and tensor.dtype != trt.bool)


class Altered:
    """The trt module with one enum member standing for another."""

    def __init__(self, **changes):
        self.changes = changes

    def __getattr__(self, name):
        return self.changes[name] if name in self.changes else getattr(trt, name)


def output_not_reversed(monkeypatch):
    kind = trt.LoopOutput
    return Altered(
        LoopOutput=SimpleNamespace(
            REVERSE=kind.CONCATENATE, CONCATENATE=kind.CONCATENATE, LAST_VALUE=kind.LAST_VALUE
        )
    )


def output_wrongly_reversed(monkeypatch):
    kind = trt.LoopOutput
    return Altered(
        LoopOutput=SimpleNamespace(
            REVERSE=kind.REVERSE, CONCATENATE=kind.REVERSE, LAST_VALUE=kind.LAST_VALUE
        )
    )


def iterator_not_reversed(monkeypatch):
    return iterators(monkeypatch, lambda tensor, reverse: reverse and tensor.dtype == trt.bool)


def iterators(monkeypatch, reversed_):
    right = network._direction

    def wrong(net, time, loop, *rest):
        class Loop:
            def __getattr__(self, name):
                return getattr(loop, name)

            def add_iterator(self, tensor, axis, reverse):
                return loop.add_iterator(tensor, axis, reversed_(tensor, reverse))

        return right(net, time, Loop(), *rest)

    monkeypatch.setattr(network, "_direction", wrong)
    return trt


def max_for_sum(monkeypatch):
    op = trt.ElementWiseOperation
    return Altered(
        ElementWiseOperation=SimpleNamespace(
            SUM=op.MAX, **{n: getattr(op, n) for n in ("PROD", "SUB", "DIV", "MIN", "MAX", "LESS")}
        )
    )


WIRING_MUTANTS = [
    forget_c,
    forget_h,
    states_run_on_past_the_length,
    output_not_blanked_past_the_length,
    mask_not_reversed,
    residual_not_blanked,
    head_blanked_though_padding_repeats,
    empty_rows_repeat_their_start,
    output_not_reversed,
    output_wrongly_reversed,
    iterator_not_reversed,
    max_for_sum,
]


@pytest.mark.parametrize("mutant", WIRING_MUTANTS, ids=lambda m: m.__name__)
def test_some_case_notices_wrong_wiring(mutant, monkeypatch):
    module = mutant(monkeypatch)
    noticed = [c.name for c in CASES if not parity.agrees(worst(c, interpret(c, module=module)))]
    assert noticed, f"no case tells {mutant.__name__} from the truth"


def layers_of(made):
    return [made.get_layer(i) for i in range(made.num_layers)]


def test_every_layer_has_a_speaking_name(variant):
    made, _ = define(variant, load_weights(variant))
    names = [layer.name for layer in layers_of(made)]
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith("(Unnamed")]
    for k, layer in enumerate(variant.layers):
        assert f"l{k}/loop/steps" in names
        for direction in layer.directions:
            for what in ("x_w_weight", "h_r_weight", "b", "h_r", "output"):
                assert f"l{k}/{direction}/{what}" in names


def test_the_projection_is_outside_and_one_matmul_is_inside(variant):
    made, _ = define(variant, load_weights(variant))
    matmuls = [x.name for x in layers_of(made) if x.type == trt.LayerType.MATRIX_MULTIPLY]
    every = [f"l{k}/{d}" for k, layer in enumerate(variant.layers) for d in layer.directions]
    heads = ["head/y_w"] if variant.head else []
    assert sorted(matmuls) == sorted([*heads, *(f"{w}/{m}" for w in every for m in ("x_w", "h_r"))])
    iterated = [x.get_input(0).name for x in layers_of(made) if x.type == trt.LayerType.ITERATOR]
    assert [n for n in iterated if "valid" not in n] == [f"{where}/x_w_b:0" for where in every]


def test_batch_and_time_are_dynamic(variant):
    made, _ = define(variant, load_weights(variant))
    shapes = {
        made.get_input(i).name: tuple(made.get_input(i).shape) for i in range(made.num_inputs)
    }
    one, two = variant.shapes(1, 1), variant.shapes(2, 2)
    assert shapes == {
        name: tuple(a if a == b else -1 for a, b in zip(one[name], two[name], strict=True))
        for name in variant.input_names
    }
    outputs = [made.get_output(i).name for i in range(made.num_outputs)]
    assert tuple(outputs) == variant.output_names

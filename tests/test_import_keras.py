"""Keras 3 as an outside oracle: what is imported from a .keras or .h5 answers as Keras did.

Installed by `make oracles` (its NumPy backend imports all three), and always in CI.
"""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from looprnn import importers, parity, reference
from looprnn.importers import Imported
from looprnn.spec import Activation
from looprnn.weights import reorder

MISSING = [n for n in ("h5py", "keras", "jax", "scipy") if importlib.util.find_spec(n) is None]
if MISSING and os.environ.get("CI"):
    raise ImportError(f"in CI a missing oracle is an error, not a skip: {', '.join(MISSING)}")
if MISSING:
    pytest.skip("Keras is not installed; type: make oracles", allow_module_level=True)

SCRIPT = Path(__file__).parent / "keras_models.py"
ACTIVATIONS = [
    "relu", "sigmoid", "hard_sigmoid", "linear", "elu", "softsign", "softplus", "leaky_relu",
]  # fmt: skip
EACH = [
    "states", "last", "no_bias", "backwards", "backwards_last", "masked", "masked_backwards",
    "masked_zero", "masked_zero_backwards", "both_none",
    *(f"both_{m}{end}" for m in ("concat", "sum", "mul", "ave") for end in ("", "_last")),
]  # fmt: skip
NAMES = [
    *(f"{cell}_{each}" for cell in ("rnn", "lstm", "gru") for each in EACH),
    "gru_reset_before", "gru_reset_before_no_bias", *(f"lstm_{a}" for a in ACTIVATIONS),
    "rnn_leaky_layer", "gru_gates_differ", "lstm_dropout", "lstm_unroll", "lstm_cell",
    "gru_cell_both", "cells_stacked", "cells_stacked_backwards", "other_backward_layer",
    "states_of_both", "stack_of_three", "there_and_back", "back_then_forth", "head_on_last",
    "head_on_output", "head_without_bias", "head_on_concat", "head_on_sum", "head_on_average",
    "head_and_softmax", "head_on_state", "residual", "residual_last_and_masked",
    "embedding_with_zeros", "embedding", "stateful", "named_and_frozen",
]  # fmt: skip


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder of NAME.keras, NAME.h5 and NAME.npz; Keras keeps its warnings to its own process."""
    folder = tmp_path_factory.mktemp("keras")
    command = [sys.executable, str(SCRIPT), str(folder)]
    made = subprocess.run(
        command, env={**os.environ, "KERAS_BACKEND": "numpy"}, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def every(saved):
    """What is imported from each .keras, and what Keras answered."""
    return {
        name: (
            importers.read(saved / f"{name}.keras", name="case"),
            dict(np.load(saved / f"{name}.npz")),
        )
        for name in NAMES
    }


def asked(imported, answers):
    """The reference's outputs for the oracle's input, under the oracle's names."""
    spec, x = imported.spec, answers["x"]
    inputs = {**spec.defaults(*x.shape[:2]), "input": x}
    lengths = answers["lengths"] if "lengths" in answers else np.full(len(x), x.shape[1])
    if spec.lengths:
        inputs["lengths"] = lengths
    found = dict(reference.run(spec, imported.weights, inputs))
    for state in spec.states:
        flat = found[f"{state}_n"].reshape(len(x), -1)
        for k, (at, size) in enumerate(spec.state_slots(state).values()):
            found[f"{state}_n{k}"] = flat[:, at : at + size]
    layer = spec.layers[-1]
    count = len([k for k in found if k.startswith("h_n")]) - 1
    last = [found[f"h_n{k}"] for k in range(count - len(layer.directions), count)]
    found["last"] = reference.merged(layer.merge, [h[:, None, :] for h in last])[0][:, 0]
    found["flipped"] = found["output"][:, ::-1]
    found["valid"] = found["output"]
    return found, np.arange(x.shape[1]) < lengths[:, None]


def worst(imported, answers):
    """The largest difference from what Keras answered, past each row's end too."""
    found, within = asked(imported, answers)
    worst = 0.0
    for name in set(answers) - {"x", "lengths"}:
        got, want = found[name], answers[name].astype(np.float64)
        assert got.shape == want.shape, (name, got.shape, want.shape)
        if name == "valid":
            got, want = got[within], want[within]
        worst = max(worst, parity.difference(got, want))
    return worst


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_as_keras_did(saved, name, suffix):
    imported = importers.read(saved / f"{name}.{suffix}", name="case")
    assert parity.agrees(worst(imported, dict(np.load(saved / f"{name}.npz"))))


def test_every_model_is_asked(saved):
    assert sorted(NAMES) == sorted(path.stem for path in saved.glob("*.npz"))


def weights_of(imported: Imported, change) -> Imported:
    return dataclasses.replace(
        imported, weights={n: change(n, a) for n, a in imported.weights.items()}
    )


def layers_of(imported: Imported, **changes) -> Imported:
    """Every layer with the changes that fit it."""
    layers = []
    for layer in imported.spec.layers:
        fit = {n: v(layer) for n, v in changes.items() if v(layer) is not None}
        layers.append(dataclasses.replace(layer, **fit))
    return dataclasses.replace(
        imported, spec=dataclasses.replace(imported.spec, layers=tuple(layers))
    )


def gates(imported, array, cell, dst):
    same = {layer.cell for layer in imported.spec.layers} == {cell}
    return reorder(array, src=dst, dst={"lstm": "ifgo", "gru": "rzn"}[cell]) if same else array


def swap_z_and_r(imported):
    return weights_of(imported, lambda n, a: gates(imported, a, "gru", "zrn") if "_l0" in n else a)


def swap_c_and_o(imported):
    return weights_of(
        imported, lambda n, a: gates(imported, a, "lstm", "ifog") if "_l0" in n else a
    )


def swap_i_and_f(imported):
    return weights_of(
        imported, lambda n, a: gates(imported, a, "lstm", "figo") if "_l0" in n else a
    )


def blocks(array, change):
    size = array.shape[1]
    return np.concatenate([change(array[k : k + size]) for k in range(0, len(array), size)])


def recurrent_kernel_not_transposed(imported):
    return weights_of(
        imported, lambda n, a: blocks(a, np.transpose) if n.startswith("weight_hh") else a
    )


def kernel_read_row_by_row(imported):
    """[G·H, I] of the same bytes as [I, G·H], untransposed."""
    return weights_of(
        imported, lambda n, a: a.T.reshape(a.shape) if n.startswith("weight_ih") else a
    )


def swap_bias_halves(imported):
    other = {"bias_ih": "bias_hh", "bias_hh": "bias_ih"}
    return weights_of(
        imported, lambda n, a: imported.weights[other[n[:7]] + n[7:]] if n[:7] in other else a
    )


def forget_reset_after(imported):
    flip = {"after": "before", "before": "after"}
    return layers_of(imported, reset=lambda y: flip[y.reset] if y.cell == "gru" else None)


def swap_directions(imported):
    def other(name):
        there = name.removesuffix("_reverse") if "_reverse" in name else f"{name}_reverse"
        return there if there in imported.weights else name

    return weights_of(imported, lambda n, a: imported.weights[other(n)])


def sum_for_average(imported):
    other = {"sum": "average", "average": "sum"}
    return layers_of(imported, merge=lambda y: other.get(y.merge))


def slope_of_keras_2(imported):
    def old(layer):
        return tuple(
            Activation("hard_sigmoid") if a.kind == "hard_sigmoid" else a for a in layer.activations
        )

    return layers_of(imported, activations=old)


def forward_for_backward(imported):
    other = {"forward": "reverse", "reverse": "forward"}
    ends = {n.removesuffix("_reverse"): a for n, a in imported.weights.items()}
    ends |= {f"{n}_reverse": a for n, a in ends.items()}
    turned = layers_of(imported, direction=lambda y: other.get(y.direction))
    return dataclasses.replace(turned, weights=ends)


def other_padding(imported):
    spec, other = imported.spec, {"zero": "repeat", "repeat": "zero"}
    if not spec.lengths or any(layer.residual for layer in spec.layers):
        return imported
    return dataclasses.replace(
        imported, spec=dataclasses.replace(spec, padding=other[spec.padding])
    )


def forget_residual(imported):
    return layers_of(imported, residual=lambda y: False)


def forget_head_activation(imported):
    if imported.spec.head is None:
        return imported
    head = dataclasses.replace(imported.spec.head, activation="none")
    return dataclasses.replace(imported, spec=dataclasses.replace(imported.spec, head=head))


MUTANTS = [
    swap_z_and_r, swap_c_and_o, swap_i_and_f, recurrent_kernel_not_transposed,
    kernel_read_row_by_row, swap_bias_halves, forget_reset_after, swap_directions, sum_for_average,
    slope_of_keras_2, forward_for_backward, other_padding, forget_residual, forget_head_activation,
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_some_case_notices(every, mutant):
    noticed = [
        name
        for name, (imported, answers) in every.items()
        if not parity.agrees(worst(mutant(imported), answers))
    ]
    assert noticed, f"no case tells {mutant.__name__} from the truth"


def sentence(saved, name, words):
    notes = importers.read(saved / f"{name}.keras", name="case").notes
    return [note for note in notes if words in note]


def test_notes_say_what_differs_from_keras(saved):
    assert sentence(saved, "lstm_masked", "0.25: send `lengths`")
    assert sentence(saved, "embedding_with_zeros", "skips the id 0")
    assert sentence(saved, "gru_backwards", "reversed in time (go_backwards)")
    assert sentence(saved, "back_then_forth", "reversed in time (go_backwards)")
    assert not sentence(saved, "there_and_back", "reversed in time")
    assert sentence(saved, "stateful", "stateful")
    assert sentence(saved, "lstm_last", "last step alone")
    assert sentence(saved, "residual_last_and_masked", "residual's sum")
    assert not importers.read(saved / "lstm_relu.keras", name="case").notes

"""The cases every engine must pass, named after the mistake each catches, and the mutants they must
notice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from looprnn import parity
from looprnn.spec import Activation, Head, Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.weights import Weights, load_weights, reorder

PROFILE = Profile(batch=Range(1, 2, 64), time=Range(1, 4, 64))


@dataclass(frozen=True)
class Case:
    """One spec, asked with B rows and T steps; no two axes agree unless the name says so."""

    name: str
    layers: tuple[Layer, ...]
    B: int = 3
    T: int = 7
    I: int = 5  # noqa: E741 - the field's own letter
    seed: int = 5
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> RNNSpec:
        return RNNSpec(
            name="case",
            input_size=self.I,
            layers=self.layers,
            profile=PROFILE,
            weights=WeightSource(seed=self.seed),
            **self.options,
        )

    @property
    def weights(self) -> Weights:
        # Twice PyTorch's range: gates leave the middle, where a swapped pair would nearly agree.
        return {name: 2 * array for name, array in load_weights(self.spec).items()}

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        inputs = parity.draw_inputs(self.spec, self.B, self.T, self.seed)
        if self.spec.lengths:
            inputs["lengths"][:3] = (0, self.T, 1)  # a row of no step is always among them
        return inputs


def layer(cell: str, H: int = 11, **options: Any) -> Layer:
    if options.get("activations"):
        options["activations"] = tuple(options["activations"])
    return Layer(cell=cell, hidden_size=H, **options)


def case(name: str, *layers: Layer, B: int = 3, T: int = 7, I: int = 5, **options: Any) -> Case:  # noqa: E741
    return Case(name, layers, B, T, I, options=options)


BOTH = {"direction": "bidirectional"}
ODD = (Activation("hard_sigmoid", 1 / 6), Activation("leaky_relu", 0.2), Activation("softsign"))
REVERSE_ODD = (Activation("sigmoid"), Activation("elu", 0.7), Activation("scaled_tanh", 1.2, 0.7))

CASES = [
    case("no_axis_equals_another", layer("lstm")),
    case("one_step", layer("lstm", 4), B=2, T=1, I=3),
    case("one_row", layer("lstm", 5), B=1, T=9, I=6),
    case("longer_than_the_optimum", layer("lstm", 7), B=2, T=64, I=3),
    case("one_past_a_block", layer("lstm", 257), B=5, T=4, I=33),
    case("one_unit", layer("lstm", 1), B=3, T=5, I=1),
    case("reverse_in_time", layer("lstm", direction="reverse")),
    case("both_directions", layer("lstm", **BOTH)),
    case("both_directions_one_step", layer("lstm", 3, **BOTH), B=2, T=1, I=4),
    case("peepholes", layer("lstm", peepholes=True, **BOTH)),
    case("coupled_gates", layer("lstm", coupled=True)),
    case("coupled_gates_with_peepholes", layer("lstm", coupled=True, peepholes=True)),
    case("projection", layer("lstm", proj_size=4, **BOTH)),
    case("clipped_gates", layer("lstm", clip=0.6, direction="reverse")),
    case("clipped_cell", layer("lstm", cell_clip=0.3, peepholes=True)),
    case("layer_norm", layer("lstm", layer_norm=True), T=4),
    case(
        "layer_norm_without_bias", layer("lstm", layer_norm=True, bias=False, direction="reverse")
    ),
    case(
        "odd_activations", layer("lstm", activations=ODD, activations_reverse=REVERSE_ODD, **BOTH)
    ),
    case("tanh_rnn", layer("rnn")),
    case("tanh_rnn_both_directions", layer("rnn", 8, **BOTH), B=4, T=6, I=3),
    case("relu_rnn", layer("rnn", activations=[Activation("relu")])),
    case(
        "relu_rnn_reverse",
        layer("rnn", 6, activations=[Activation("relu")], direction="reverse"),
        I=4,
    ),
    case("rnn_clipped", layer("rnn", clip=0.5, activations=[Activation("affine", 0.9, 0.1)])),
    case("gru_reset_after", layer("gru")),
    case("gru_reset_before", layer("gru", reset="before", direction="reverse")),
    case("gru_both_directions", layer("gru", **BOTH)),
    case("gru_without_bias", layer("gru", bias=False)),
    case("gru_clipped", layer("gru", clip=0.4, reset="before")),
    case(
        "gru_odd_activations",
        layer("gru", activations=[Activation("affine", 0.3, 0.4), Activation("softplus")]),
    ),
    case("two_layers", layer("lstm", 6), layer("lstm", 6)),
    case("two_layers_both_directions", layer("gru", 6, **BOTH), layer("gru", 6, **BOTH)),
    case(
        "layers_of_other_sizes_and_cells",
        layer("lstm", 4),
        layer("gru", 9, **BOTH),
        layer("rnn", 6),
    ),
    case("merge_sum", layer("gru", merge="sum", **BOTH)),
    case("merge_mul", layer("gru", merge="mul", **BOTH)),
    case("merge_average", layer("lstm", merge="average", **BOTH), layer("gru", 4)),
    case("merge_none", layer("lstm", merge="none", **BOTH)),
    case("skip_input", layer("gru", 5, skip_input=True)),
    case("skip_input_lstm", layer("lstm", 5, skip_input=True, bias=False)),
    case("residual", layer("lstm", 5), layer("lstm", 5, residual=True)),
    case("ragged", layer("lstm", **BOTH), B=6, T=9, lengths=True),
    case("ragged_gru_reverse", layer("gru", direction="reverse"), B=6, T=9, lengths=True),
    case(
        "ragged_residual_on_the_first_layer",
        layer("gru", 5, residual=True),
        B=6,
        lengths=True,
    ),
    case(
        "ragged_repeating_in_a_scan",
        layer("lstm", proj_size=4),
        B=6,
        lengths=True,
        padding="repeat",
    ),
    case(
        "head_on_every_step_repeating",
        layer("gru"),
        B=6,
        lengths=True,
        padding="repeat",
        head=Head(size=3),
    ),
    case(
        "ragged_two_layers_residual",
        layer("gru", 8),
        layer("gru", 8, residual=True),
        B=6,
        lengths=True,
    ),
    case("ragged_with_projection", layer("lstm", proj_size=4, **BOTH), B=6, lengths=True),
    case("ragged_repeating", layer("gru", **BOTH), B=6, lengths=True, padding="repeat"),
    case("head_on_every_step", layer("gru"), head=Head(size=3, activation="softmax")),
    case(
        "head_on_every_valid_step",
        layer("gru"),
        B=6,
        lengths=True,
        head=Head(size=3, activation="sigmoid"),
    ),
    case(
        "head_on_the_last_state",
        layer("lstm", **BOTH),
        B=6,
        lengths=True,
        head=Head(size=4, on="last"),
    ),
    case(
        "head_without_bias",
        layer("rnn"),
        head=Head(size=2, on="last", activation="softmax", bias=False),
    ),
    case("ids", layer("lstm"), vocabulary=13),
    case(
        "ragged_ids_to_a_head",
        layer("gru", 4),
        layer("gru", 6),
        B=6,
        vocabulary=3,
        lengths=True,
        head=Head(size=2),
    ),
]


def _change(weights: Weights, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Weights:
    return {n: change(a) if n.startswith(name) else a for n, a in weights.items()}


def _reordered(cell: str, src: str, dst: str) -> Callable[[RNNSpec, Weights], Weights]:
    def mutant(spec: RNNSpec, weights: Weights) -> Weights:
        changed = dict(weights)
        for k, own in enumerate(spec.layers):
            if own.cell != cell:
                continue
            for name, array in weights.items():
                stacked = name.startswith(("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
                if stacked and f"_l{k}" in name:
                    changed[name] = reorder(array, src=src, dst=dst)
        return changed

    mutant.__name__ = f"{cell}_{src}_as_{dst}"
    return mutant


def transpose_r(spec: RNNSpec, weights: Weights) -> Weights:
    def turned(r: np.ndarray) -> np.ndarray:
        blocks = np.split(r, len(r) // r.shape[1]) if len(r) % r.shape[1] == 0 else [r]
        return (
            np.concatenate([b.T for b in blocks])
            if len(blocks) > 1 or r.shape[0] == r.shape[1]
            else r
        )

    return _change(weights, "weight_hh", turned)


def drop(name: str) -> Callable[[RNNSpec, Weights], Weights]:
    def mutant(spec: RNNSpec, weights: Weights) -> Weights:
        return _change(weights, name, np.zeros_like)

    mutant.__name__ = f"drop_{name.replace('.', '_')}"
    return mutant


def swap_directions(spec: RNNSpec, weights: Weights) -> Weights:
    def other(name: str) -> str:
        return name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse"

    return {n: weights.get(other(n), a) for n, a in weights.items()}


def swap_the_biases_of_a_gru(spec: RNNSpec, weights: Weights) -> Weights:
    # Their sum stays: only the reset of the recurrent one tells them apart.
    def other(name: str) -> str:
        return (
            name.replace("bias_ih", "bias_?")
            .replace("bias_hh", "bias_ih")
            .replace("bias_?", "bias_hh")
        )

    return {n: weights[other(n)] for n in weights}


def first_peephole_last(spec: RNNSpec, weights: Weights) -> Weights:
    return _change(weights, "weight_p", lambda p: reorder(p, src="ifo", dst="ofi"))


WEIGHT_MUTANTS = [
    _reordered("lstm", "ifgo", "figo"),
    _reordered("lstm", "ifgo", "ifog"),
    _reordered("gru", "rzn", "zrn"),
    transpose_r,
    *(
        drop(n)
        for n in ("bias_ih", "bias_hh", "weight_p", "weight_ln_hh", "bias_ln_c", "head.bias")
    ),
    swap_directions,
    swap_the_biases_of_a_gru,
    first_peephole_last,
]


def worst(case: Case, got: dict[str, np.ndarray]) -> float:
    """The largest difference of any output from the reference; NaN if any is NaN."""
    found = parity.differences(case.spec, case.weights, case.inputs, got)
    return float(np.max(list(found.values())))

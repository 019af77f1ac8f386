"""The cases every engine must pass, named after the mistake each catches, and the mutants they must
notice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from looprnn import parity
from looprnn.spec import Profile, Range, RNNSpec, WeightSource
from looprnn.weights import SUFFIX, Weights, load_weights, reorder

PROFILE = Profile(batch=Range(1, 2, 64), time=Range(1, 4, 64))


@dataclass(frozen=True)
class Case:
    """One spec, asked with B rows and T steps; no two axes agree unless the name says so."""

    name: str
    cell: str
    direction: str
    B: int
    T: int
    I: int  # noqa: E741 - the field's own letter
    H: int
    activation: str = "tanh"
    seed: int = 5

    @property
    def spec(self) -> RNNSpec:
        return RNNSpec(
            name="case",
            cell=self.cell,
            direction=self.direction,
            activation=self.activation,
            input_size=self.I,
            hidden_size=self.H,
            profile=PROFILE,
            weights=WeightSource(seed=self.seed),
        )

    @property
    def weights(self) -> Weights:
        # Twice PyTorch's range: gates leave the middle, where a swapped pair would nearly agree.
        return {name: 2 * array for name, array in load_weights(self.spec).items()}

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        return parity.draw_inputs(self.spec, self.B, self.T, self.seed)


CASES = [
    Case("no_axis_equals_another", "lstm", "forward", B=3, T=7, I=5, H=11),
    Case("one_step", "lstm", "forward", B=2, T=1, I=3, H=4),
    Case("one_row", "lstm", "forward", B=1, T=9, I=6, H=5),
    Case("longer_than_the_optimum", "lstm", "forward", B=2, T=64, I=3, H=7),
    Case("one_past_a_block", "lstm", "forward", B=5, T=4, I=33, H=257),
    Case("one_unit", "lstm", "forward", B=3, T=5, I=1, H=1),
    Case("reverse_in_time", "lstm", "reverse", B=3, T=7, I=5, H=11),
    Case("both_directions", "lstm", "bidirectional", B=3, T=7, I=5, H=11),
    Case("both_directions_one_step", "lstm", "bidirectional", B=2, T=1, I=4, H=3),
    Case("tanh_rnn", "rnn", "forward", B=3, T=7, I=5, H=11),
    Case("tanh_rnn_both_directions", "rnn", "bidirectional", B=4, T=6, I=3, H=8),
    Case("relu_rnn", "rnn", "forward", B=3, T=7, I=5, H=11, activation="relu"),
    Case("relu_rnn_reverse", "rnn", "reverse", B=2, T=9, I=4, H=6, activation="relu"),
]


def _change(weights: Weights, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Weights:
    return {n: change(a) if n.startswith(name) else a for n, a in weights.items()}


def swap_i_f(spec: RNNSpec, weights: Weights) -> Weights:
    if spec.cell != "lstm":
        return weights
    return {n: reorder(a, src="ifgo", dst="figo") for n, a in weights.items()}


def swap_g_o(spec: RNNSpec, weights: Weights) -> Weights:
    if spec.cell != "lstm":
        return weights
    return {n: reorder(a, src="ifgo", dst="ifog") for n, a in weights.items()}


def transpose_r(spec: RNNSpec, weights: Weights) -> Weights:
    def turned(r: np.ndarray) -> np.ndarray:
        blocks = np.split(r, len(spec.gates))
        return np.concatenate([block.T for block in blocks])

    return _change(weights, "weight_hh", turned)


def drop_input_bias(spec: RNNSpec, weights: Weights) -> Weights:
    return _change(weights, "bias_ih", np.zeros_like)


def drop_recurrent_bias(spec: RNNSpec, weights: Weights) -> Weights:
    return _change(weights, "bias_hh", np.zeros_like)


def swap_directions(spec: RNNSpec, weights: Weights) -> Weights:
    if spec.direction != "bidirectional":
        return weights
    swapped = {SUFFIX["forward"]: SUFFIX["reverse"], SUFFIX["reverse"]: SUFFIX["forward"]}
    return {
        f"{stem}_{end}": weights[f"{stem}_{swapped[end]}"]
        for stem in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for end in swapped
    }


WEIGHT_MUTANTS = [
    swap_i_f,
    swap_g_o,
    transpose_r,
    drop_input_bias,
    drop_recurrent_bias,
    swap_directions,
]


def worst(case: Case, got: dict[str, np.ndarray]) -> float:
    """The largest difference of any output from the reference; NaN if any is NaN."""
    found = parity.differences(case.spec, case.weights, case.inputs, got)
    return float(np.max(list(found.values())))

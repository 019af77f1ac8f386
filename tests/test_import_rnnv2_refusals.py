"""What does not fit an RNNv2 layer is refused by its name."""

import numpy as np
import pytest
from rnnv2_layers import HIDDEN, INPUT, drawn

from looprnn.errors import SpecError, WeightsError
from looprnn.importers.rnnv2 import (
    RNNDirection,
    RNNGateType,
    RNNInputMode,
    RNNOperation,
    RNNv2,
)


def without(*lost):
    def change(layer):
        for key in lost:
            del layer._arrays[key]

    return change


def put(index, gate, is_w, array, *, bias=False):
    def change(layer):
        setter = layer.set_bias_for_gate if bias else layer.set_weights_for_gate
        setter(index, gate, is_w, array)

    return change


def assign(**attributes):
    def change(layer):
        for name, value in attributes.items():
            setattr(layer, name, value)

    return change


G = RNNGateType


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            without((1, G.CELL, "R"), (1, G.CELL, "W_bias")),
            "not set: layer 1, gate CELL, R; layer 1, gate CELL, W_bias$",
            id="lost",
        ),
        pytest.param(assign(num_layers=10**12), "not set: layer 2, .* and more", id="huge_count"),
        pytest.param(
            put(0, G.INPUT, True, np.ones((INPUT, HIDDEN))),
            r"layer 0, gate INPUT, W is \[5, 7\], wanted \[7, 5\] or \[35\]",
            id="transposed",
        ),
        pytest.param(
            put(1, G.OUTPUT, True, np.ones((HIDDEN, INPUT))),
            r"layer 1, gate OUTPUT, W is \[7, 5\], wanted \[7, 7\]",
            id="above_reads_the_layer_below",
        ),
        pytest.param(
            put(0, G.FORGET, False, np.ones(1), bias=True),
            r"layer 0, gate FORGET, R_bias is \[1\], wanted \[7\]",
            id="bias_for_one",
        ),
        pytest.param(
            put(0, G.INPUT, True, np.ones((HIDDEN, INPUT), int)), "wanted floating", id="integers"
        ),
        pytest.param(put(0, G.RESET, True, np.ones(3)), "LSTM has no gate RESET; it has INPUT, F",
                     id="gate_of_another_op"),
        pytest.param(put(0, "CARRY", True, np.ones(3)), "no RNNGateType", id="no_gate"),
        pytest.param(put(-1, G.CELL, True, np.ones(3)), "layer index -1", id="index_from_the_end"),
        pytest.param(put(0, G.CELL, True, np.full((7, 5), np.nan)), "ih_l0 holds NaN", id="nan"),
        pytest.param(put(0, G.CELL, True, np.full((7, 5), 1e39)), "beyond float32", id="beyond"),
        pytest.param(
            put(2, G.CELL, True, np.ones(3)),
            "layer 2, gate CELL, W set, but 2 UNIDIRECTION layers",
            id="one_layer_too_many",
        ),
        pytest.param(
            assign(direction=RNNDirection.BIDIRECTION), "not set: layer 2", id="half_of_both_ways"
        ),
        pytest.param(assign(direction="LEFT"), "no RNNDirection", id="no_direction"),
        pytest.param(
            assign(hidden_state=np.ones((3, 1, 7))),
            r"hidden_state is \[3, 1, 7\], wanted \[..., 2, 7\]",
            id="states_of_one_layer",
        ),
        pytest.param(assign(hidden_state=np.inf), "NaN or Inf", id="infinite_state"),
        pytest.param(assign(hidden_state=object()), "must be constants", id="a_tensor_for_a_state"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, words):
    layer, _ = drawn("LSTM", layers=2)
    with pytest.raises(WeightsError, match=words):
        change(layer)
        layer.to_imported("net")


def test_skip_takes_no_weights_and_equal_sizes():
    layer, _ = drawn("GRU", layers=2, size=(HIDDEN, HIDDEN))
    layer.input_mode = RNNInputMode.SKIP
    with pytest.raises(WeightsError, match="layer 0, gate UPDATE, W; .*input mode SKIP have no"):
        layer.to_imported("net")
    other, _ = drawn("GRU", skip=True, size=(INPUT, HIDDEN))
    with pytest.raises(SpecError, match="input and hidden size equal, got 5 and 7"):
        other.to_imported("net")


def test_only_an_lstm_has_a_cell_state():
    layer, _ = drawn("GRU")
    layer.cell_state = 0.0
    with pytest.raises(WeightsError, match="only an LSTM has a cell_state, this is GRU"):
        layer.to_imported("net")


@pytest.mark.parametrize("wrong", [0, -1, 1.0, True, None, "7"])
def test_sizes_are_whole_numbers(wrong):
    with pytest.raises(WeightsError, match="hidden_size must be a whole number of at least 1"):
        RNNv2(7, 1, wrong, 4, RNNOperation.LSTM)

"""One comparison and one table of tolerances, for the build, the demo and the tests alike."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from looprnn import reference
from looprnn.errors import ParityError
from looprnn.spec import RNNSpec
from looprnn.weights import Weights

# Measured on trained weights (tests/test_real_weights_*.py): g2p-en's GRUs of 256 on 35 words, and
# silero-vad's LSTM of 128 on a minute of sound, 1875 steps. The smallest wiring bug: 0.07.
TOLERANCE: Final = {
    "fp32": 1e-5,  # 6.0e-6; an LSTM of 256 with random weights 4e-7
    "fp16": 1.5e-2,  # 1.3e-2 over the minute, 6.5e-3 on the words
    "fp16_state": 2e-2,  # 1.5e-2 over the minute, 8.9e-3 on the words
    "bf16": 6e-2,  # 5.4e-2 over the minute, 5.2e-2 on the words
}

Arrays = Mapping[str, NDArray[Any]]


def difference(got: NDArray[Any], want: NDArray[Any]) -> float:
    """The largest |got - want| over max(1, largest |want| along the last axis); NaN if any is NaN.

    got, want [..., H]. Outputs of tanh stay below 1, so this is their absolute difference; those of
    ReLU grow without bound, and a float32 near 1717 cannot be nearer to the truth than 6e-5.
    Raises ParityError if the shapes differ, or the reference itself overflowed.
    """
    if got.shape != want.shape:
        raise ParityError(f"the answer is {list(got.shape)}, the reference {list(want.shape)}")
    if not np.isfinite(want).all():
        raise ParityError("the reference overflowed: the case is wrong, not the engine")
    scale = np.maximum(1.0, np.abs(want).max(axis=-1, keepdims=True))
    return float((np.abs(np.asarray(got, np.float64) - want) / scale).max())


def differences(spec: RNNSpec, weights: Weights, inputs: Arrays, got: Arrays) -> dict[str, float]:
    """difference() of each output of the spec; a missing output raises ParityError."""
    if missing := [name for name in spec.output_names if name not in got]:
        raise ParityError(f"{spec.name}: no {', '.join(missing)} in the answer")
    want = reference.run(spec, weights, inputs)
    return {name: difference(got[name], want[name]) for name in spec.output_names}


def agrees(worst: float, precision: str = "fp32") -> bool:
    """Written so that NaN does not agree."""
    return worst <= TOLERANCE[precision]


def draw_inputs(spec: RNNSpec, batch: int, time: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Every input of the spec. Standard normal input, or ids; states of ±0.5: not zero, or the
    first step would never use R and f; lengths from 0 to T, one of them T.
    """
    rng = np.random.default_rng(seed)
    size = spec.shapes(batch, time)
    drawn: dict[str, NDArray[Any]] = {}
    for name in spec.input_names:
        if name == "lengths":
            lengths = rng.integers(0, time + 1, batch)
            lengths[rng.integers(batch)] = time
            drawn[name] = lengths.astype(np.int32)
        elif name != "input":
            drawn[name] = rng.uniform(-0.5, 0.5, size[name]).astype(np.float32)
        elif spec.vocabulary:
            drawn[name] = rng.integers(0, spec.vocabulary, size[name]).astype(np.int32)
        else:
            drawn[name] = rng.standard_normal(size[name]).astype(np.float32)
    return drawn

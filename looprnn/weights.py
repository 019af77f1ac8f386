"""Canonical named arrays ↔ .safetensors; gate orders are converted here and nowhere else.

Names and layout are PyTorch's, so the state_dict of an nn.LSTM, saved as .safetensors, is already
canonical:
    weight_ih_l0  [G·H, I]    weight_hh_l0  [G·H, H]    bias_ih_l0, bias_hh_l0  [G·H]
with the suffix _reverse for the recurrence that runs from the last step to the first.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn.errors import WeightsError
from looprnn.spec import RNNSpec

Weights = Mapping[str, NDArray[np.float32]]
SUFFIX = {"forward": "l0", "reverse": "l0_reverse"}


def shapes(spec: RNNSpec) -> dict[str, tuple[int, ...]]:
    """The name and shape of every array that the spec needs."""
    rows = len(spec.gates) * spec.hidden_size
    return {
        f"{name}_{SUFFIX[direction]}": shape
        for direction in spec.directions
        for name, shape in (
            ("weight_ih", (rows, spec.input_size)),
            ("weight_hh", (rows, spec.hidden_size)),
            ("bias_ih", (rows,)),
            ("bias_hh", (rows,)),
        )
    }


def reorder(array: NDArray[Any], *, src: str, dst: str) -> NDArray[Any]:
    """Rearrange the gate blocks of [G·H, ...] from the order `src` to the order `dst`: "iofg" to
    "ifgo".
    """
    if sorted(src) != sorted(dst):
        raise WeightsError(f"cannot reorder gates {src!r} to {dst!r}: not the same gates")
    if array.shape[0] % len(src):
        raise WeightsError(f"{array.shape[0]} rows do not split into the {len(src)} gates {src!r}")
    block = dict(zip(src, np.split(array, len(src)), strict=True))
    return np.concatenate([block[gate] for gate in dst])


def load_weights(spec: RNNSpec) -> Weights:
    """The arrays of a spec, float32 and C-contiguous. Raises WeightsError naming the array."""
    source = spec.weights
    if source.file is not None:
        return check(spec, _read(source.file), str(source.file))
    if source.seed is not None:
        bound = spec.hidden_size**-0.5
        rng = np.random.Generator(np.random.PCG64(source.seed))
        return {
            name: rng.uniform(-bound, bound, shape).astype(np.float32)
            for name, shape in shapes(spec).items()
        }
    value = {"weight": source.constant, "bias": source.bias}
    return {
        name: np.full(shape, value[name.split("_")[0]], np.float32)
        for name, shape in shapes(spec).items()
    }


def save_weights(path: Path, weights: Weights) -> None:
    """Write a canonical .safetensors file."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, path)


def check(spec: RNNSpec, arrays: Mapping[str, NDArray[Any]], origin: str) -> Weights:
    """The arrays, if they are exactly those the spec needs: nothing missing, left over, misshapen
    or not finite.
    """
    wanted = shapes(spec)
    if missing := [name for name in wanted if name not in arrays]:
        raise WeightsError(
            f"{origin}: {spec.name} needs {', '.join(missing)}; found {', '.join(arrays) or 'none'}"
        )
    if extra := [name for name in arrays if name not in wanted]:
        raise WeightsError(
            f"{origin}: {', '.join(extra)} not used by {spec.name} ({spec.direction} {spec.cell})"
        )
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise WeightsError(
                f"{origin}: {name} is {list(arrays[name].shape)}, {spec.name} needs {list(shape)}"
            )
        if not np.issubdtype(arrays[name].dtype, np.floating):
            raise WeightsError(f"{origin}: {name} is {arrays[name].dtype}, wanted a floating type")
        if not np.isfinite(arrays[name]).all():
            raise WeightsError(f"{origin}: {name} holds NaN or Inf")
    return {name: np.array(arrays[name], np.float32, order="C") for name in wanted}


def digest(weights: Weights) -> str:
    """SHA-256 over names, shapes and bytes: equal digests mean equal weights."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(f"{name}{weights[name].shape}".encode())
        sha.update(np.ascontiguousarray(weights[name]).data)
    return sha.hexdigest()


def _read(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weights file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors file: {error}") from error

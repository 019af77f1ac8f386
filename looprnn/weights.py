"""Canonical named arrays ↔ .safetensors; gate orders are converted here and nowhere else.

Names and layout are PyTorch's, so the state_dict of an nn.LSTM, saved as .safetensors, is already
canonical. For layer k, with the suffix _reverse for the recurrence that runs from the last step:
    weight_ih_l{k}    [G·H, I]   not with skip_input
    weight_hh_l{k}    [G·H, P]
    bias_ih_l{k}, bias_hh_l{k}   [G·H], both where the layer has a bias
    weight_hr_l{k}    [P, H]     projection
    weight_p_l{k}     [3·H]      peepholes, in the order i f o
    weight_ln_ih_l{k}, weight_ln_hh_l{k}   [4·H]   layer_norm's scale of W·x and of R·h
    weight_ln_c_l{k}, bias_ln_c_l{k}       [H]     layer_norm's scale and shift of c
and for the whole: embedding.weight [V, I], head.weight [size, F], head.bias [size].
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn.errors import WeightsError
from looprnn.spec import Layer, RNNSpec

Weights = Mapping[str, NDArray[np.float32]]


def suffix(k: int, direction: str) -> str:
    """The end of the names of layer k: "l0", "l0_reverse"."""
    return f"l{k}_reverse" if direction == "reverse" else f"l{k}"


def layer_shapes(layer: Layer, inputs: int) -> dict[str, tuple[int, ...]]:
    """The arrays of one direction of a layer, without their suffix."""
    hidden, out = layer.hidden_size, layer.state_size("h")
    rows = len(layer.gates) * hidden
    found: dict[str, tuple[int, ...]] = {} if layer.skip_input else {"weight_ih": (rows, inputs)}
    found["weight_hh"] = (rows, out)
    if layer.bias:
        found |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if layer.proj_size:
        found["weight_hr"] = (out, hidden)
    if layer.peepholes:
        found["weight_p"] = (3 * hidden,)
    if layer.layer_norm:
        found |= {"weight_ln_ih": (rows,), "weight_ln_hh": (rows,)}
        found |= {"weight_ln_c": (hidden,), "bias_ln_c": (hidden,)}
    return found


def shapes(spec: RNNSpec) -> dict[str, tuple[int, ...]]:
    """The name and shape of every array that the spec needs."""
    found: dict[str, tuple[int, ...]] = {}
    if spec.vocabulary:
        found["embedding.weight"] = (spec.vocabulary, spec.input_size)
    for k, layer in enumerate(spec.layers):
        for direction in layer.directions:
            for name, shape in layer_shapes(layer, spec.layer_input(k)).items():
                found[f"{name}_{suffix(k, direction)}"] = shape
    if spec.head:
        found["head.weight"] = (spec.head.size, spec.head_input)
        if spec.head.bias:
            found["head.bias"] = (spec.head.size,)
    return found


def reorder(array: NDArray[Any], *, src: str, dst: str) -> NDArray[Any]:
    """Rearrange the gate blocks of [G·H, ...] from the order `src` to `dst`: "iofg" to "ifgo"."""
    if sorted(src) != sorted(dst):
        raise WeightsError(f"cannot reorder gates {src!r} to {dst!r}: not the same gates")
    if array.shape[0] % len(src):
        raise WeightsError(f"{array.shape[0]} rows do not split into the {len(src)} gates {src!r}")
    block = dict(zip(src, np.split(array, len(src)), strict=True))
    return np.concatenate([block[gate] for gate in dst])


def flip_update_gate(array: NDArray[Any], *, order: str = "rzn") -> NDArray[Any]:
    """[3·H, ...] of a GRU with h = z·n + (1 - z)·h → ours, h = (1 - z)·n + z·h: since 1 - σ(x) =
    σ(-x), z's block changes its sign. Only for a sigmoid update gate.
    """
    block = dict(zip(order, np.split(array, 3), strict=True))
    return np.concatenate([-block[gate] if gate == "z" else block[gate] for gate in order])


def load_weights(spec: RNNSpec) -> Weights:
    """The arrays of a spec, float32 and C-contiguous. Raises WeightsError naming the array."""
    source = spec.weights
    if source.file is not None:
        arrays = _read(source.file)
        try:
            return check(spec, arrays, str(source.file))
        except WeightsError as error:
            if {name: array.shape for name, array in arrays.items()} == shapes(spec):
                raise
            fits = f"looprnn import {source.file} --name NAME writes a variant that fits the file"
            raise WeightsError(f"{error}. {fits}") from error
    if source.seed is not None:
        bound = min(layer.hidden_size for layer in spec.layers) ** -0.5
        rng = np.random.Generator(np.random.PCG64(source.seed))
        return {
            name: rng.uniform(-bound, bound, shape).astype(np.float32)
            for name, shape in shapes(spec).items()
        }
    return {
        name: np.full(shape, source.bias if "bias" in name else source.constant, np.float32)
        for name, shape in shapes(spec).items()
    }


def save_weights(path: Path, weights: Weights) -> None:
    """Write a canonical .safetensors file."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, path)


def check(spec: RNNSpec, arrays: Mapping[str, NDArray[Any]], origin: str) -> Weights:
    """The arrays, if they are exactly those the spec needs: none missing, left over, misshapen or
    not finite.
    """
    wanted = shapes(spec)
    if missing := [name for name in wanted if name not in arrays]:
        raise WeightsError(
            f"{origin}: {spec.name} needs {', '.join(missing)}; found {', '.join(arrays) or 'none'}"
        )
    if extra := [name for name in arrays if name not in wanted]:
        raise WeightsError(f"{origin}: {', '.join(extra)} not used by {spec.name}")
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise WeightsError(
                f"{origin}: {name} is {list(arrays[name].shape)}, {spec.name} needs {list(shape)}"
            )
        if not np.issubdtype(arrays[name].dtype, np.floating):
            raise WeightsError(f"{origin}: {name} is {arrays[name].dtype}, wanted a floating type")
    with np.errstate(over="ignore"):
        made = {name: np.ascontiguousarray(arrays[name], np.float32) for name in wanted}
    for name, array in made.items():
        if len(wrong := np.argwhere(~np.isfinite(array))):
            raise WeightsError(
                f"{origin}: {name} holds NaN, Inf or a number beyond float32 at "
                f"{wrong[0].tolist()}, {len(wrong):,} in all: export a checkpoint from before that"
            )
    return made


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
    except TypeError as error:  # NumPy has no bfloat16
        raise WeightsError(
            f"{path}: {error}. Type: looprnn import {path} --name {path.stem}, which widens it"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        if path.is_dir() or path.suffix == ".safetensors":
            hint = "Copy it here again, if it was cut short"
        else:
            hint = f"Type: looprnn import {path} --name NAME, which makes one"
        raise WeightsError(f"{path}: not a readable .safetensors file: {error}. {hint}") from error

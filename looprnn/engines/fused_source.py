"""CUDA sources → units: what is compiled, with the options of a layer as macros in front.

A unit's text holds no size, so all layers of one kind share one: LSTM of 128 and of 1024, say.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from looprnn.engines.fused_persistent import PersistentPlan
from looprnn.engines.fused_program import declaration
from looprnn.spec import Activation, Layer

FOLDER: Final = Path(__file__).parent / "fused"
INCLUDE: Final = re.compile(r'^#include "(.+)"\n', re.MULTILINE)
# The spec's precision → the macro WEIGHT. Gates and states are float in all of them.
WEIGHT: Final = {"fp32": 0, "fp16": 1, "fp16_state": 1, "bf16": 2}

# Of x; a and b are alpha and beta. Written so that NaN stays NaN.
EXPRESSIONS: Final = {
    "tanh": "tanhf(x)",
    "relu": "x < 0.f ? 0.f : x",
    "sigmoid": "1.f / (1.f + expf(-x))",
    "softsign": "x / (1.f + fabsf(x))",
    "softplus": "(x > 0.f ? x : 0.f) + log1pf(expf(-fabsf(x)))",
    "hard_sigmoid": "a * x + b < 0.f ? 0.f : a * x + b > 1.f ? 1.f : a * x + b",
    "leaky_relu": "x < 0.f ? a * x : x",
    "elu": "x > 0.f ? x : a * expm1f(x)",
    "thresholded_relu": "x > a ? x : x == x ? 0.f : x",
    "scaled_tanh": "a * tanhf(b * x)",
    "affine": "a * x + b",
}


@dataclass(frozen=True, slots=True)
class Unit:
    """One text to compile. Its name says what is in it; equal names are equal texts."""

    name: str
    text: str


def matmul_unit(precision: str) -> Unit:
    weight = WEIGHT[precision]
    text = f"#define WEIGHT {weight}\n" + _read("hardware.cu") + declaration("Matmul")
    text += _read("matmul.cu")
    text += declaration("Round") + _read("wide.cu")
    return Unit(f"matmul.{('fp32', 'fp16', 'bf16')[weight]}", text)


def project_unit(precision: str) -> Unit:
    """Of half precision, for Hopper alone."""
    text = f"#define TYPE {15 + WEIGHT[precision]}\n" + _read("project.cu")
    return Unit(f"project.{('fp16', 'bf16')[WEIGHT[precision] - 1]}", text)


def around_unit() -> Unit:
    structs = "".join(declaration(name) for name in ("Embed", "Join", "Head"))
    text = "#define WEIGHT 0\n" + _read("hardware.cu") + structs + _read("around.cu")
    return Unit("around", text)


def slots_unit() -> Unit:
    text = "#define WEIGHT 0\n" + _read("hardware.cu") + declaration("Slots") + _read("slots.cu")
    return Unit("slots", text)


def step_unit(layer: Layer) -> Unit:
    """The gates of a layer: every option is a constant to the compiler."""
    macros: dict[str, object] = {
        "WEIGHT": 0,
        f"CELL_{layer.cell.upper()}": 1,
        "GATES": len(layer.gates),
        "PEEPHOLES": int(layer.peepholes),
        "COUPLED": int(layer.coupled),
        "PROJECTION": int(layer.proj_size is not None),
        "LAYER_NORM": int(layer.layer_norm),
        "RESET_BEFORE": int(layer.cell == "gru" and layer.reset == "before"),
        "CLIPPED(x)": _clipped(layer.clip),
        "CELL_CLIPPED(x)": _clipped(layer.cell_clip),
    }
    pairs = zip(layer.activations_of("forward"), layer.activations_of("reverse"), strict=True)
    functions = "".join(_activation(k, *pair) for k, pair in enumerate(pairs))
    for k in range(3):
        macros[f"ACTIVATE_{k}(backward, x)"] = f"activate_{k}(backward, x)"
    head = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    structs = declaration("Step") + declaration("Norm")
    text = head + _read("hardware.cu") + structs + functions + _read("step.cu")
    return Unit(f"{layer.cell}.{_short(head + functions)}", text)


def persistent_unit(plan: PersistentPlan) -> Unit:
    head = "".join(f"#define {name} {value}\n" for name, value in plan.defines)
    text = head + _read(plan.source)
    return Unit(f"{plan.kernel}.{_short(text)}", text)


def _activation(role: int, forward: Activation, reverse: Activation) -> str:
    """A function of both directions' activations in one role."""

    def body(activation: Activation) -> str:
        a, b = _number(activation.alpha), _number(activation.beta)
        return f"{{ const float a = {a}, b = {b}; return {EXPRESSIONS[activation.kind]}; }}"

    other = f"if (backward) {body(reverse)} " if reverse != forward else ""
    return (
        f"__device__ __forceinline__ float activate_{role}(bool backward, float x) "
        f"{{ {other}{body(forward)} }}\n"
    )


def _clipped(most: float | None) -> str:
    return "(x)" if most is None else f"clipped(x, {_number(most)})"


def _number(value: float | None) -> str:
    """The nearest float, exactly, in C."""
    return f"{float(np.float32(value or 0.0)).hex()}f"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def _read(name: str) -> str:
    """A file of FOLDER, with the files that it includes in their places: units stand alone."""
    text = (FOLDER / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return INCLUDE.sub(lambda found: _read(found[1]), text)

"""Net: TensorRT's layers behind the operations of cells.py, each named, checked and of the right
type.

Types: products run in the spec's precision; gates and states in float32, or in half with
fp16_state, where c stays float32. Where two types meet in one operation, the half is widened.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn.cells import Array, Ops, Tensor
from looprnn.errors import EngineError
from looprnn.spec import Activation

OPERATIONS = {"add": "SUM", "sub": "SUB", "mul": "PROD", "div": "DIV", "min": "MIN", "max": "MAX"}


class Net(Ops):
    """A network under construction. Names every layer, and refuses the None TensorRT answers to a
    wrong one.
    """

    def __init__(self, trt: Any, network: Any, precision: str) -> None:
        self.trt, self.network = trt, network
        # Name → array of every constant; kept, because trt.Weights does not copy.
        self.kept: list[tuple[str, NDArray[Any]]] = []
        self.products = {"fp32": trt.float32, "bf16": trt.bfloat16}.get(precision, trt.float16)
        self.gates = trt.float16 if precision == "fp16_state" else trt.float32
        self._made: dict[str, Tensor] = {}

    def path(self, name: str) -> str:
        return f"{self.where}/{name}" if self.where else name

    def named(self, layer: Any, name: str) -> Tensor:
        """The layer's output, both named."""
        if layer is None:
            raise EngineError(
                f"TensorRT refused the layer {self.path(name)!r}: its log says why (--verbose)"
            )
        layer.name = self.path(name)
        tensor = layer.get_output(0)
        tensor.name = f"{layer.name}:0"
        return tensor

    def once(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """make(), outside any layer's scope, the first time the key is asked for."""
        if key not in self._made:
            where, self.where = self.where, ""
            self._made[key] = make()
            self.where = where
        return self._made[key]

    # Types

    def raw(self, name: str, array: NDArray[Any]) -> Tensor:
        """A constant of the array's own type; a refit finds it by its name."""
        array = np.array(array, order="C")  # ascontiguousarray would make a 0-d array 1-d
        self.kept.append((self.path(name), array))
        weights = self.trt.Weights(array)
        tensor = self.named(self.network.add_constant(array.shape, weights), name)
        if not self.network.set_weights_name(weights, self.path(name)):
            raise EngineError(f"TensorRT refused the name {self.path(name)!r} of a constant")
        return tensor

    def weight(self, name: str, array: Array) -> Tensor:
        """A constant of the products' type, refittable by its name."""
        if self.products == self.trt.float16:
            return self.raw(name, array.astype(np.float16))
        return self.cast(f"{name}_cast", self.raw(name, array.astype(np.float32)), self.products)

    def cast(self, name: str, x: Tensor, kind: Any) -> Tensor:
        return x if x.dtype == kind else self.named(self.network.add_cast(x, kind), name)

    def as_float(self, name: str, x: Tensor) -> Tensor:
        return self.cast(name, x, self.trt.float32)

    def as_state(self, name: str, state: str, x: Tensor) -> Tensor:
        """h in the gates' type, c in float32."""
        return self.cast(name, x, self.gates if state == "h" else self.trt.float32)

    # Ops

    def constant(self, name: str, array: NDArray[Any]) -> Tensor:
        half = self.gates == self.trt.float16
        return self.raw(name, array.astype(np.float16 if half else np.float32))

    def product(self, name: str, x: Tensor, matrix: Array) -> Tensor:
        w = self.weight(f"{name}_weight", matrix.reshape((1,) * (self.rank(x) - 2) + matrix.shape))
        none = self.trt.MatrixOperation.NONE
        x = self.cast(f"{name}_in", x, self.products)
        out = self.named(self.network.add_matrix_multiply(x, none, w, none), name)
        return self.cast(f"{name}_out", out, self.gates)

    def binary(self, name: str, op: str, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype != b.dtype:
            a, b = self.as_float(f"{name}_a", a), self.as_float(f"{name}_b", b)
        kind = getattr(self.trt.ElementWiseOperation, OPERATIONS[op])
        return self.named(self.network.add_elementwise(a, b, kind), name)

    def activate(self, name: str, activation: Activation, x: Tensor) -> Tensor:
        if activation.kind == "affine":
            scaled = self.binary(
                f"{name}_scaled", "mul", x, self.filled(f"{name}_alpha", activation.alpha, x)
            )
            return self.binary(name, "add", scaled, self.filled(f"{name}_beta", activation.beta, x))
        kind = getattr(self.trt.ActivationType, activation.kind.upper())
        layer = self.network.add_activation(x, kind)
        if layer is not None and activation.kind in (
            "hard_sigmoid",
            "leaky_relu",
            "elu",
            "thresholded_relu",
            "scaled_tanh",
        ):
            layer.alpha, layer.beta = activation.alpha, activation.beta
        if layer is not None and activation.kind == "softplus":
            layer.alpha = layer.beta = 1.0
        return self.named(layer, name)

    def mean(self, name: str, x: Tensor) -> Tensor:
        axes = 1 << (self.rank(x) - 1)
        return self.named(
            self.network.add_reduce(x, self.trt.ReduceOperation.AVG, axes, True), name
        )

    def sqrt(self, name: str, x: Tensor) -> Tensor:
        return self.named(self.network.add_unary(x, self.trt.UnaryOperation.SQRT), name)

    def split(self, name: str, x: Tensor, parts: Sequence[str], size: int) -> dict[str, Tensor]:
        blocks = {}
        for k, part in enumerate(parts):
            layer = self.network.add_slice(x, (0, k * size), (1, size), (1, 1))
            layer.set_input(2, self._rows_by(size))  # the shape [B, size] is known at run time only
            blocks[part] = self.named(layer, f"{name}_{part}")
        return blocks

    def rank(self, x: Tensor) -> int:
        return len(x.shape)

    # What the loops around the cells need

    def softmax(self, name: str, x: Tensor) -> Tensor:
        layer = self.network.add_softmax(x)
        layer.axes = 1 << (self.rank(x) - 1)
        return self.named(layer, name)

    def take(self, name: str, x: Tensor, index: int, axis: int) -> Tensor:
        """x without `axis`, at `index`."""
        at = self.raw(f"{name}_index", np.array(index, np.int32))
        return self.named(self.network.add_gather(x, at, axis), name)

    def columns(self, name: str, x: Tensor, offset: int, size: int) -> Tensor:
        """x [B, S] → [B, size], from `offset` on."""
        if x.shape[1] == size:
            return x
        at = self.raw(f"{name}_columns", np.arange(offset, offset + size, dtype=np.int32))
        return self.named(self.network.add_gather(x, at, 1), name)

    def reshape(self, name: str, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """0 copies an axis, -1 is what is left."""
        layer = self.network.add_shuffle(x)
        layer.reshape_dims = dims
        return self.named(layer, name)

    def concatenate(self, name: str, parts: list[Tensor], axis: int) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        kinds = {part.dtype for part in parts}
        if len(kinds) > 1:
            parts = [self.as_float(f"{name}_{k}", part) for k, part in enumerate(parts)]
        layer = self.network.add_concatenation(parts)
        layer.axis = axis
        return self.named(layer, name)

    def select(self, name: str, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        return self.named(self.network.add_select(condition, yes, no), name)

    def filled(self, name: str, value: float | None, like: Tensor) -> Tensor:
        """A constant that broadcasts to `like`, of its type."""
        kind = np.float16 if like.dtype == self.trt.float16 else np.float32
        return self.raw(name, np.full((1,) * self.rank(like), value, kind))

    def zero(self, name: str, like: Tensor) -> Tensor:
        return self.filled(f"{name}_zero", 0.0, like)

    def mask(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, 1] BOOL: t < lengths"""
        count = self.reshape("steps_1d", self.cast("steps_int32", steps, self.trt.int32), (1,))
        fill = self.network.add_fill((1,), self.trt.FillOperation.LINSPACE, self.trt.int32)
        fill.set_input(0, count)
        fill.set_input(1, self.raw("first", np.array(0, np.int32)))
        fill.set_input(2, self.raw("stride", np.array([1], np.int32)))
        t = self.reshape("t", self.named(fill, "range"), (1, -1, 1))
        less = self.trt.ElementWiseOperation.LESS
        until = self.reshape("lengths_3d", lengths, (-1, 1, 1))
        return self.named(self.network.add_elementwise(t, until, less), "valid_steps")

    def some(self, lengths: Tensor) -> Tensor:
        """[B, 1, 1] BOOL: 0 < lengths"""
        none = self.raw("no_steps", np.zeros((1, 1, 1), np.int32))
        until = self.reshape("lengths_some", lengths, (-1, 1, 1))
        return self.named(
            self.network.add_elementwise(none, until, self.trt.ElementWiseOperation.LESS),
            "some_steps",
        )

    def _rows_by(self, size: int) -> Tensor:
        """The shape [B, size], 1-d INT64."""

        def make() -> Tensor:
            shape = self.named(
                self.network.add_shape(self.network.get_input(0)), f"shape_for_{size}"
            )
            first = self.raw(f"first_of_{size}", np.array([0], np.int32))
            rows = self.named(self.network.add_gather(shape, first, 0), f"rows_for_{size}")
            wide = self.raw(f"columns_{size}", np.array([size], np.int64))
            return self.concatenate(f"rows_by_{size}", [rows, wide], 0)

        return self.once(f"rows_by_{size}", make)

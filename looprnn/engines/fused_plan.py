"""The planner: which way each layer goes, for each number of rows; and the program that follows.

A layer goes the persistent way where fused_persistent has a kernel for it, else step by step. What
is chosen is data: it lies in the engine's file, and `looprnn inspect` shows it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from looprnn.engines import fused_persistent
from looprnn.engines.fused_pack import padded
from looprnn.engines.fused_persistent import H100, Chip, PersistentPlan
from looprnn.engines.fused_program import At, Launch, Program
from looprnn.engines.fused_source import (
    Unit,
    around_unit,
    matmul_unit,
    persistent_unit,
    project_unit,
    slots_unit,
    step_unit,
)
from looprnn.engines.fused_steps import FLOAT, beside, loop, matmul, project
from looprnn.spec import Activation, Layer, RNNSpec

TIMEOUT_NS: Final = 5_000_000_000  # far above any step, even of a GPU that others use too
DTYPE: Final = {"fp32": "fp32", "fp16": "fp16", "fp16_state": "fp16", "bf16": "bf16"}
JOIN: Final = {"concat": 0, "none": 0, "sum": 1, "mul": 2, "average": 3}
HEAD: Final = {"none": 0, "sigmoid": 1, "softmax": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a layer runs first..last rows: in one launch, or where there is no plan step by step."""

    layer: int
    first: int
    last: int
    plan: PersistentPlan | None
    why: str

    def on(self, gpu: object, room: int) -> Self:
        """This way on a GPU that holds so many blocks of its plan's kernel at once: with fewer to
        spare, or step by step.
        """
        plan = self.plan
        assert plan is not None
        if room < (plan.grid if plan.cooperative else plan.cluster):
            why = f"{gpu} does not hold {plan.grid} blocks at once"
            return dataclasses.replace(self, plan=None, why=why)
        spare = min(plan.spare, max(room - plan.grid, 0))  # clusters may come one after another
        return dataclasses.replace(self, plan=dataclasses.replace(plan, spare=spare))

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        plan = fields["plan"]
        if plan is not None:
            pairs = tuple((str(name), int(value)) for name, value in plan["defines"])
            plan = PersistentPlan(**{**plan, "defines": pairs})
        return cls(**{**fields, "plan": plan})


def choose(spec: RNNSpec, chip: Chip = H100) -> list[Way]:
    """The ways of every layer, for 1 row to the profile's most."""
    ways: list[Way] = []
    for k, layer in enumerate(spec.layers):
        reason = beyond(spec, layer)
        own: list[Way] = []
        for batch in range(1, spec.profile.batch.max + 1):
            found = [] if reason else plans(layer, DTYPE[spec.precision], batch, chip)
            plan = found[0] if found else None
            if own and own[-1].plan == plan:
                own[-1] = dataclasses.replace(own[-1], last=batch)
                continue
            why = plan.why if plan else reason or "R does not fit the chip"
            own.append(Way(layer=k, first=batch, last=batch, plan=plan, why=why))
            if reason:
                own[-1] = dataclasses.replace(own[-1], last=spec.profile.batch.max)
                break
        ways += own
    return ways


def plans(layer: Layer, dtype: Any, batch: int, chip: Chip = H100) -> list[PersistentPlan]:
    """The persistent plans of a layer that they know, the one expected fastest first."""
    return fused_persistent.candidates(
        cell=layer.cell,
        dtype=dtype,
        batch=batch,
        hidden=layer.hidden_size,
        directions=layer.directions,
        activation="relu" if layer.activations[0].kind == "relu" else "tanh",
        reset=layer.reset,
        chip=chip,
    )


def beyond(spec: RNNSpec, layer: Layer) -> str | None:
    """What of this layer the persistent kernels do not know, or None."""
    usual = Layer(cell=layer.cell, hidden_size=layer.hidden_size)
    known = [usual.activations]
    if layer.cell == "rnn":
        known += [(Activation("relu"),)]
    options = ("peepholes", "coupled", "proj_size", "clip", "cell_clip", "layer_norm")
    found = [name for name in options if getattr(layer, name)]
    if layer.activations not in known or layer.activations != layer.activations_reverse:
        found.append("its activations")
    if spec.padding == "repeat":
        found.append("padding = 'repeat'")
    if layer.cell == "lstm" and spec.state_slots("h") != spec.state_slots("c"):
        found.append("an h and a c of other sizes")
    return f"the persistent kernels do not know {', '.join(found)}" if found else None


def only_steps(spec: RNNSpec, why: str) -> list[Way]:
    """Every layer step by step, on a GPU that the persistent kernels are not for."""
    most = spec.profile.batch.max
    return [Way(layer=k, first=1, last=most, plan=None, why=why) for k in range(len(spec.layers))]


def units(spec: RNNSpec, ways: Sequence[Way], *, hopper: bool = True) -> dict[str, Unit]:
    """What the programs of these ways need compiled: steps for every layer too, for another GPU."""
    found = [matmul_unit(spec.precision), slots_unit()]
    if hopper and spec.precision != "fp32":
        found.append(project_unit(spec.precision))
    found += [step_unit(layer) for layer in spec.layers]
    found += [persistent_unit(way.plan) for way in ways if way.plan]
    joins = any(layer.merge != "concat" or layer.residual for layer in spec.layers)
    if spec.vocabulary or spec.head or joins:
        found.append(around_unit())
    return {unit.name: unit for unit in found}


def packed_name(layer: int, plan: PersistentPlan) -> str:
    """The array of this layer's R as this plan's kernel reads it."""
    return f"l{layer}.r.{persistent_unit(plan).name}"


def program(
    spec: RNNSpec, ways: Sequence[Way], batch: int, time: int, *, hopper: bool = True
) -> Program:
    """Everything that happens to B rows of T steps, between the copies in and out.

    Buffers: the packed weights by their names, the spec's inputs and outputs, `failed` [1] int32,
    0 before, and scratch. h_n and c_n hold the initial states before, and the last ones after.
    """
    made = Program(hopper)
    rows, lengths = batch * time, At("lengths") if spec.lengths else None
    x, inputs = At("input"), spec.input_size
    if spec.vocabulary:
        x = made.take("embedded", rows * inputs * FLOAT)
        fields = {"ids": At("input"), "table": At("embedding"), "y": x, "failed": At("failed"),
                  "vocabulary": spec.vocabulary, "I": inputs}  # fmt: skip
        made.operations.append(_around("embed", "Embed", (rows, 1, 1), fields))
    for k, layer in enumerate(spec.layers):
        xw = project(made, layer, k, spec.precision, x, inputs, rows)
        outputs = ["output", "output_reverse"] if k + 1 == len(spec.layers) else [f"y{k % 2}"]
        joins = layer.merge != "concat" or layer.residual
        for name in outputs if k + 1 < len(spec.layers) else []:
            made.take(name, rows * layer.output_size * FLOAT)
        size = len(layer.directions) * layer.state_size("h")
        y = made.take("halves", rows * size * FLOAT) if joins else At(outputs[0])
        states = {s: _state(spec, s, k, layer.directions[0]) for s in layer.states}
        plan = next((w.plan for w in ways if w.layer == k and w.first <= batch <= w.last), None)
        if plan:
            _persistent(made, spec, k, plan, xw, states, y, batch, time, lengths)
        else:
            loop(made, layer, k, spec.precision, xw=xw, states=states, y=y, batch=batch,
                 time=time, lengths=lengths, repeats=spec.padding == "repeat")  # fmt: skip
        if joins:
            _join(made, layer, y, x, outputs, rows, time, lengths)
        x, inputs = At(outputs[0]), layer.output_size
    if spec.head:
        _head(made, spec, x, batch, time, lengths)
    return made


def _state(spec: RNNSpec, state: str, k: int, direction: str) -> tuple[At, int]:
    """Where a layer's state begins in h_n or c_n, and the elements of a whole row."""
    slots = spec.state_slots(state)
    return At(f"{state}_n", slots[k, direction][0] * FLOAT), sum(size for _, size in slots.values())


def _persistent(
    made: Program,
    spec: RNNSpec,
    k: int,
    plan: PersistentPlan,
    xw: At,
    states: dict[str, tuple[At, int]],
    y: At,
    batch: int,
    time: int,
    lengths: At | None,
) -> None:
    layer = spec.layers[k]
    h, h_row = states["h"]
    c, c_row = states.get("c", (None, h_row))
    assert h_row == c_row, "one cell and no projection: all states of the stack have one size"
    fields = {"r": At(packed_name(k, plan)), "xg": xw, "lengths": lengths, "h_0": h, "c_0": c,
              "output": y, "h_n": h, "c_n": c, "error": At("failed"), "batch": batch, "time": time,
              "state_stride": h_row, "timeout": TIMEOUT_NS}  # fmt: skip
    if layer.cell == "gru" and layer.reset == "after":
        fields["bias_n"] = At(f"l{k}.bias_n")
    if plan.scratch_bytes:
        fields["scratch"] = made.take(f"l{k}.scratch", plan.scratch_bytes)
    launch = Launch(
        unit=persistent_unit(plan).name, kernel=plan.kernel, struct="Persistent",
        grid=(plan.grid, 1, 1), block=plan.block, fields=fields, shared=plan.shared_bytes,
        cluster=plan.cluster, cooperative=plan.cooperative,
        early=plan.cluster > 1 and not plan.cooperative,
    )  # fmt: skip
    product = made.operations[-1]
    assert isinstance(product, Launch), "the projection"
    both = beside(made, product, launch, k, plan) if plan.spare else None
    if both:
        made.operations[-1] = both
    elif dict(plan.defines).get("APART"):
        for d in range(len(layer.directions)):
            one = dataclasses.replace(launch, fields={**fields, "direction": d})
            made.operations.append(one)
    else:
        made.operations.append(launch)


def _around(kernel: str, struct: str, grid: tuple[int, int, int], fields: Any) -> Launch:
    return Launch(unit="around", kernel=kernel, struct=struct, grid=grid, block=128, fields=fields)


def _join(
    made: Program,
    layer: Layer,
    y: At,
    x: At,
    outputs: list[str],
    rows: int,
    time: int,
    lengths: At | None,
) -> None:
    """The halves [B, T, D·P] → the layer's output, or its two."""
    wide = layer.merge == "concat"
    size, half = layer.output_size, At(y.buffer, layer.state_size("h") * FLOAT)
    fields = {"a": y, "b": None if wide else half, "x": x if layer.residual else None,
              "lengths": lengths, "a_row": size if wide else 2 * size, "T": time, "P": size,
              "join": JOIN[layer.merge]}  # fmt: skip
    grid = (rows, -(-size // 128), 1)
    made.operations.append(_around("join", "Join", grid, {**fields, "y": At(outputs[0])}))
    if layer.merge == "none":
        second = {**fields, "a": half, "y": At(outputs[1])}
        made.operations.append(_around("join", "Join", grid, second))


def _head(made: Program, spec: RNNSpec, x: At, batch: int, time: int, lengths: At | None) -> None:
    head, last = spec.head, spec.layers[-1]
    assert head is not None
    every = head.on == "output"
    rows = batch * time if every else batch
    a, a_row = x, spec.head_input
    if not every:
        a, a_row = _state(spec, "h", len(spec.layers) - 1, last.directions[0])
    y = At("head")
    product = matmul(
        spec.precision, a=a, a_row=a_row, w=At("head.w"), w_row=padded(spec.head_input), c=y,
        c_row=head.size, bias=At("head.bias") if head.bias else None,
        sizes=(rows, head.size, spec.head_input, 1),
    )  # fmt: skip
    made.operations.append(product)
    blank = lengths if every and spec.padding == "zero" else None
    if blank or head.activation != "none":
        fields = {"y": y, "lengths": blank, "T": time, "N": head.size,
                  "kind": HEAD[head.activation]}  # fmt: skip
        made.operations.append(_around("head", "Head", (rows, 1, 1), fields))

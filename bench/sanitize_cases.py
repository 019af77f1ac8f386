"""What fused_sanitize.py runs: every kernel of the fused engine at the smallest shape that still
takes all its roads, each in a case of its own.

B batch, T time, H hidden size. A persistent case names the plan it wants, whether or not the
planner would take it for so small a layer; T passes the rings of buffers once, and rows and units
end inside a block.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from looprnn.engines import fused_plan
from looprnn.engines.fused_persistent import PersistentPlan
from looprnn.engines.fused_plan import Way
from looprnn.layer import Activation
from looprnn.spec import Head, Layer, Profile, Range, RNNSpec, WeightSource

CELLS: Final[dict[str, dict[str, Any]]] = {
    "rnn": {"cell": "rnn"},
    "relu": {"cell": "rnn", "activations": (Activation("relu"),)},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "gru_before": {"cell": "gru", "reset": "before"},
}
BOTH: Final[dict[str, Any]] = {"direction": "bidirectional"}
LEAST_TILES: Final = 24  # of a projection beside its recurrence: with those usual it takes hours


def said_of(plan: PersistentPlan) -> dict[str, Any]:
    """What a plan says of itself."""
    return {"source": plan.source, **dict(plan.defines)}


def plan_of(layer: Layer, precision: str, batch: int, said: Mapping[str, Any]) -> PersistentPlan:
    """The fastest plan of a layer that says so. Raises LookupError if there is none."""
    for plan in fused_plan.plans(layer, fused_plan.DTYPE[precision], batch):
        if said.items() <= said_of(plan).items():
            return plan
    raise LookupError(f"{layer.cell} {layer.hidden_size} has no plan of {dict(said)}")


@dataclass(frozen=True, slots=True)
class Case:
    """A spec, run at its profile's most; `kernel` is among what it launches.

    plan: what the plan of each layer says of itself, its source and defines; None: step by step.
    """

    name: str
    kernel: str
    spec: RNNSpec
    plan: Mapping[str, Any] | None = None

    @property
    def said(self) -> dict[str, Any]:
        """What the first layer's plan says of itself; nothing where it goes step by step."""
        plan = self.ways()[0].plan
        return said_of(plan) if plan else {}

    def ways(self) -> list[Way]:
        """One for each layer. Raises LookupError if a layer has no such plan."""
        if self.plan is None:
            return fused_plan.only_steps(self.spec, self.name)
        most = self.spec.profile.batch.max
        plans = [plan_of(x, self.spec.precision, most, self.plan) for x in self.spec.layers]
        return [Way(layer=k, first=1, last=most, plan=p, why=p.why) for k, p in enumerate(plans)]


def spec(
    *layers: Layer, B: int, T: int, inputs: int = 8, precision: str = "fp32", **options: Any
) -> RNNSpec:
    return RNNSpec(
        name="sanitized",
        input_size=inputs,
        layers=layers,
        precision=precision,  # type: ignore[arg-type]
        profile=Profile(batch=Range(1, B, B), time=Range(1, T, T)),
        weights=WeightSource(seed=1),
        **options,
    )


def persistent(
    kernel: str, cell: str, precision: str, B: int, T: int, H: int, *, note: str = "", **plan: Any
) -> Case:
    """One row: forward, whole; more: both directions, lengths."""
    layer = Layer(hidden_size=H, **CELLS[cell], **(BOTH if B > 1 else {}))
    source = {"recurrence": "cluster.cu", "recurrence_grid": "grid.cu",
              "recurrence_multicast": "multicast.cu"}[kernel]  # fmt: skip
    first = note or source.removesuffix(".cu")
    groups = f"x{plan['GROUPS']}" if plan.get("GROUPS", 1) > 1 else ""
    return Case(
        f"{first}-{cell}-{precision}-{plan['NB']}{groups}",
        kernel,
        spec(layer, B=B, T=T, precision=precision, lengths=B > 1),
        {"source": source, **plan},
    )


def cluster() -> Iterator[Case]:
    def one(cell: str, precision: str, rows: int, H: int = 24, C: int = 2, **more: Any) -> Case:
        return persistent("recurrence", cell, precision, rows, 6, H, NB=rows, GROUPS=1, C=C, **more)

    for cell in CELLS:
        yield from (one(cell, "fp32", rows) for rows in (1, 2))
        yield from (one(cell, "fp16", rows) for rows in (1, 3))
    yield from (one(*of) for of in (("lstm", "bf16", 3), ("gru", "bf16", 1), ("rnn", "bf16", 3)))
    yield one("lstm", "fp16", 8)
    yield one("gru", "fp16", 1, H=136, C=4, note="six_of_eight")  # and one tile more
    yield one("lstm", "fp16", 3, H=200, C=16, note="cluster16")
    yield one("lstm", "fp32", 1, H=150, C=8, note="cluster8")
    yield one("lstm", "fp16", 3, H=384, C=8, note="in_shared", KREG=22)  # and 2 words of R there
    yield one("lstm", "fp32", 1, H=260, C=16, note="in_shared", KREG=39)


def groups() -> Iterator[Case]:
    def one(cell: str, precision: str, rows: int, turns: int, warps: int = 4) -> Case:
        courier = precision != "fp32"
        B = rows * turns - (
            rows > 1
        )  # a row of the last group is absent, and units of the last block
        H = 8 * warps - (4 if courier else 1)
        return persistent(
            "recurrence", cell, precision, B, 6, H, note=f"courier{warps}" if courier else "groups",
            NB=rows, GROUPS=turns, C=2, WARPS=warps, COURIER=int(courier),
        )  # fmt: skip

    for cell in ("rnn", "lstm", "gru", "gru_before"):
        yield one(cell, "fp16", 2, 2)
    yield one("lstm", "bf16", 2, 2)
    yield one("lstm", "fp16", 1, 4)
    yield one("lstm", "fp16", 8, 2)
    yield one("lstm", "fp16", 3, 2, warps=8)  # from here on registers change hands
    yield one("gru", "fp16", 2, 2, warps=12)
    yield one("lstm", "fp32", 1, 2)
    yield one("gru_before", "fp32", 2, 2)


def grid() -> Iterator[Case]:
    def one(
        cell: str, precision: str, B: int, units: int, rows: int, H: int = 37, **more: Any
    ) -> Case:
        return persistent("recurrence_grid", cell, precision, B, 4, H, UNITS=units, NB=rows, **more)

    for cell in ("lstm", "gru"):
        yield one(cell, "fp16", 1, 8, 1)
        yield one(cell, "fp16", 3, 16, 4)
    yield one("lstm", "bf16", 2, 8, 2)
    yield one("lstm", "fp16", 9, 16, 16)
    yield one("gru", "fp16", 31, 16, 32)
    yield one("lstm", "fp16", 63, 16, 64)  # x one step ahead, not two
    yield one("lstm", "fp16", 1, 16, 1, H=521, note="grid521")


def multicast() -> Iterator[Case]:
    def one(
        cell: str, precision: str, B: int, rows: int, turns: int, H: int = 250, **more: Any
    ) -> Case:
        return persistent(
            "recurrence_multicast", cell, precision, B, 3, H, NB=rows, GROUPS=turns, **more
        )

    for cell in ("lstm", "gru"):
        yield one(cell, "fp16", 7, 8, 1)
        yield one(cell, "fp16", 9, 8, 2)
    yield one("lstm", "bf16", 9, 16, 1)
    yield one("lstm", "fp16", 31, 32, 1)
    yield one("lstm", "fp16", 25, 8, 4)
    yield one("lstm", "fp16", 5, 8, 1, H=300, note="multicast300")  # two clusters
    yield one("lstm", "fp16", 9, 16, 1, H=650, note="multicast650")  # three, one empty in part
    yield persistent("recurrence_multicast", "gru", "bf16", 9, 3, 300, NB=16, GROUPS=1, APART=1,
                     note="apart")  # fmt: skip
    yield Case(  # with its projection in it, of 8 times 3 tiles
        "beside-lstm-fp16",
        "recurrence_multicast",
        spec(Layer(cell="lstm", hidden_size=250), B=100, T=3, inputs=70, precision="fp16",
             lengths=True),
        {"source": "multicast.cu", "NB": 8, "GROUPS": 4},
    )  # fmt: skip


def products() -> Iterator[Case]:
    """Each kernel of a matrix product, by a projection that takes it."""
    lstm, rnn = Layer(cell="lstm", hidden_size=130), Layer(cell="rnn", hidden_size=9)

    def one(kernel: str, precision: str, layer: Layer, B: int, T: int, inputs: int) -> Case:
        return Case(
            f"{kernel}-{precision}",
            kernel,
            spec(layer, B=B, T=T, inputs=inputs, precision=precision),
        )

    for precision in ("fp32", "fp16", "bf16"):
        yield one("narrow1", precision, rnn, 1, 1, 33)
        yield one("narrow8", precision, rnn, 9, 1, 33)
        yield one("tile32", precision, rnn, 11, 3, 33)
    yield one("wide16", "fp32", rnn, 11, 3, 36)
    yield one("wide32", "fp32", lstm, 60, 2, 36)
    yield one("wide32", "fp16", rnn, 11, 3, 36)
    yield one("wide32", "bf16", rnn, 11, 3, 36)
    yield one("tile64", "fp32", lstm, 250, 2, 33)
    yield one("wide64", "fp32", lstm, 250, 2, 36)
    yield one("wide32x64", "fp32", lstm, 130, 2, 36)
    yield one("tile64", "fp16", replaced(lstm, 101), 310, 2, 33)
    yield one("wide64", "fp16", replaced(lstm, 101), 310, 2, 36)
    for precision in ("fp16", "bf16"):
        yield one("split32x64", precision, rnn, 11, 3, 292)
        yield one("round_rows", precision, lstm, 320, 2, 33)
        yield one("project", precision, replaced(lstm, 130, **BOTH), 320, 1, 130)


def replaced(layer: Layer, hidden: int, **options: Any) -> Layer:
    return Layer(cell=layer.cell, hidden_size=hidden, **options)


def steps() -> Iterator[Case]:
    """The kernels of a cell step by step, and those around the layers."""

    def one(name: str, kernel: str, *layers: Layer, **options: Any) -> Case:
        return Case(name, kernel, spec(*layers, B=3, T=3, **options))

    for cell, fields in CELLS.items():
        layer = Layer(hidden_size=130, **fields, **BOTH)
        yield one(f"step-{cell}", "step", layer, lengths=True)
    yield one(
        "step-peepholes", "step", Layer(cell="lstm", hidden_size=9, peepholes=True), lengths=True
    )
    before = Layer(cell="gru", hidden_size=130, reset="before")
    yield one("reset", "reset", before, lengths=True, padding="repeat")
    yield one("finish", "finish", Layer(cell="lstm", hidden_size=130, proj_size=17), lengths=True)
    norm = Layer(cell="lstm", hidden_size=300, layer_norm=True)
    yield one("norm_rows", "norm_rows", norm, lengths=True)
    usual = Layer(cell="gru", hidden_size=9, **BOTH)
    yield one("embed", "embed", usual, vocabulary=5)
    yield one("join", "join", Layer(cell="gru", hidden_size=130, merge="sum", **BOTH), lengths=True)
    head = Head(size=130, activation="softmax")
    yield one("head", "head", usual, head=head, lengths=True)
    yield Case("slots-steps", "scatter", streamed(Layer(cell="lstm", hidden_size=130)))
    small = streamed(Layer(cell="gru", hidden_size=24), precision="fp16")
    yield Case("slots-cluster", "scatter", small, {"source": "cluster.cu", "C": 2, "NB": 5})


def streamed(layer: Layer, **options: Any) -> RNNSpec:
    return spec(layer, B=5, T=4, lengths=True, streaming=True, **options)


def every() -> dict[str, Case]:
    """All cases by name, those that are soonest through first."""
    found: dict[str, Case] = {}
    for kind in (steps, products, cluster, groups, grid, multicast):
        for case in kind():
            assert case.name not in found, case.name
            found[case.name] = case
    return found


CASES: Final = every()

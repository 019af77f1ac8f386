"""What the tests of the fused engine on a GPU share: specs, plans, sessions, and runs that find NaN
wherever they look.
"""

import itertools
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import sanitize_cases

from looprnn import engines, parity
from looprnn.engines import fused_plan
from looprnn.engines.fused_plan import Way
from looprnn.spec import Activation, Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.weights import load_weights

PRECISIONS = ["fp32", "fp16", "bf16"]


def one(cell, hidden, *, inputs=5, batch=3, time=7, precision="fp32", **options):
    """A spec of one layer whose profile is this shape."""
    spec = {k: options.pop(k) for k in ("lengths", "head", "vocabulary") if k in options}
    return RNNSpec(
        name="one",
        input_size=inputs,
        layers=(Layer(cell=cell, hidden_size=hidden, **options),),
        precision=precision,
        profile=Profile(batch=Range(1, batch, batch), time=Range(1, time, time)),
        weights=WeightSource(seed=hidden),
        **spec,
    )


def plans(spec):
    """Of a spec of one layer, for its most rows."""
    (layer,), most = spec.layers, spec.profile.batch.max
    return fused_plan.plans(layer, fused_plan.DTYPE[spec.precision], most)


def plan_of(spec, **said):
    """The fastest plan with this source and these defines."""
    (layer,) = spec.layers
    return sanitize_cases.plan_of(layer, spec.precision, spec.profile.batch.max, said)


@contextmanager
def sessions(folder):
    """make(spec, weights, plan) → an open session; with a plan, its one layer goes by that."""
    engine, names = engines.get("fused"), itertools.count()
    with ExitStack() as opened:

        def make(spec, weights=None, plan=None):
            path = folder / f"{next(names)}.fused"
            arrays = load_weights(spec) if weights is None else weights
            most = spec.profile.batch.max
            with ExitStack() as planned:
                if plan:
                    ways = [Way(layer=0, first=1, last=most, plan=plan, why=plan.why)]
                    planned.enter_context(patch.object(fused_plan, "choose", lambda _: ways))
                engine.build(spec, arrays, path, progress=lambda *_: None, workspace=0)
                session = opened.enter_context(engine.session(path, spec))
                assert not plan or session.ways == ways
            return session

        yield make


def poisoned(session, inputs):
    """A run before which all memory that it should write holds NaN, on the GPU and here."""
    from looprnn import cuda

    for name, buffer in session.gpu.items():
        kept = name in session.weights or name.endswith((".scratch", ".ready"))
        if not kept:
            cuda.fill(buffer, 0xFF, buffer.size, session.stream)
    session.host.view((session.host.size,), np.uint8)[:] = 0xFF
    session.stream.synchronize()
    return session.run(inputs)


def agrees(spec, inputs, got, limits=parity.TOLERANCE):
    """Whether it is right, and how far each output is off."""
    found = parity.differences(spec, load_weights(spec), inputs, got)
    return all(v <= limits[spec.precision] for v in found.values()), found


def check(session, spec, batch, time, seed=0, limits=parity.TOLERANCE):
    inputs = parity.draw_inputs(spec, batch, time, seed)
    right, found = agrees(spec, inputs, poisoned(session, inputs), limits)
    assert right, (spec, found)


def bits(outputs):
    return {name: array.tobytes() for name, array in outputs.items()}


# Each persistent kernel, small, in each of its forms: a spec and what its plan must say. Both
# directions and lengths, but for one row; rows and units end inside a block.
BOTH = {"direction": "bidirectional", "lengths": True}
CLUSTER, GRID, MULTICAST = ({"source": f"{name}.cu"} for name in ("cluster", "grid", "multicast"))
# The house's tolerances are for trained weights and long sums: they hide a small mistake. These are
# for the layers below alone; the step kernels on a CPU differ by 8e-8, 1.1e-4 and 2.5e-3 there.
CLOSE = {"fp32": 2e-6, "fp16": 6e-4, "bf16": 8e-3}
KERNELS = {
    "one_row": (one("lstm", 130, batch=1, precision="fp16"), CLUSTER),
    "one_row_of_a_gru": (one("gru", 130, batch=1, precision="fp16"), CLUSTER),
    "rows": (one("lstm", 130, batch=5, precision="fp16", **BOTH), {**CLUSTER, "NB": 5}),
    "relu": (
        one("rnn", 70, batch=9, precision="bf16", activations=(Activation("relu"),), **BOTH),
        {**CLUSTER, "NB": 3, "GROUPS": 1},
    ),
    "fp32": (one("lstm", 100, batch=5, **BOTH), {**CLUSTER, "NB": 2, "GROUPS": 1}),
    "fp32_gru": (one("gru", 150, batch=3, **BOTH), {**CLUSTER, "NB": 2, "GROUPS": 2}),
    "reset_before": (one("gru", 100, batch=3, reset="before", **BOTH), CLUSTER),
    "couriers": (
        one("lstm", 132, batch=7, precision="fp16", **BOTH),
        {**CLUSTER, "NB": 2, "GROUPS": 4, "COURIER": 1},
    ),
    "couriers_of_a_gru": (
        one("gru", 248, batch=15, precision="bf16", reset="before", **BOTH),
        {**CLUSTER, "NB": 8, "GROUPS": 2, "COURIER": 1},
    ),
    "grid": (one("lstm", 340, batch=3, precision="fp16", **BOTH), {**GRID, "UNITS": 8, "NB": 4}),
    "grid_gru": (one("gru", 213, batch=17, precision="bf16", **BOTH), {**GRID, "NB": 32}),
    "multicast": (
        one("lstm", 300, batch=13, precision="fp16", **BOTH),
        {**MULTICAST, "NB": 8, "GROUPS": 2},
    ),
    "apart": (
        one("lstm", 300, batch=13, precision="bf16", **BOTH),
        {**MULTICAST, "NB": 8, "GROUPS": 2, "APART": 1},
    ),
    "beside": (  # the projection, of 8 times 67 tiles
        one("lstm", 250, inputs=70, batch=100, time=67, precision="fp16", lengths=True),
        {**MULTICAST, "NB": 32, "GROUPS": 4},
    ),
    "beside_of_one_group": (
        one("lstm", 1000, inputs=70, batch=13, time=140, precision="fp16", lengths=True),
        {**MULTICAST, "NB": 16, "GROUPS": 1},
    ),
    "multicast_gru": (one("gru", 250, batch=31, precision="bf16", **BOTH), {**MULTICAST, "NB": 32}),
}

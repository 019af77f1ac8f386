"""A program from slots to slots: its layers begin where earlier runs ended.

B rows of a run, H hidden size.
"""

from typing import Final, Literal

import numpy as np

from looprnn.engines.fused_program import At, Launch, Program, Value
from looprnn.engines.fused_source import slots_unit
from looprnn.spec import RNNSpec

FLOAT: Final = 4  # bytes; of a slot's number, too
# Where the rows of a run begin: all at their h_0 and c_0, all in slots, or some so and some so.
Begin = Literal["given", "slots", "both"]


def copied_in(spec: RNNSpec, begin: Begin) -> dict[str, str]:
    """What a run copies to the GPU → the buffer there.

    Without slots, initial states lie where the last ones will.
    """
    if begin == "given":
        last = {f"{s}_0": f"{s}_n" for s in spec.states}
        return {name: last.get(name, name) for name in spec.input_names}
    states = [f"{s}_0" for s in spec.states] if begin == "both" else []
    return {name: name for name in ("input", "lengths", "slots", *states)}


def between_slots(program: Program, spec: RNNSpec, batch: int, begin: Begin) -> Program:
    """The program between two kernels that read and write the table of states.

    More buffers: `table`, `slots` [2, B] int32, where each row begins and where it ends, and with
    "both", h_0 and c_0 [B, …].
    """
    sizes = widths(spec)
    fields: dict[str, Value] = {
        "table": At("table"), "begin": At("slots"), "end": At("slots", batch * FLOAT),
        "lengths": At("lengths"), "failed": At("failed"), "H": sizes["h"], "C": sizes.get("c", 0),
    }  # fmt: skip
    for s in spec.states:
        fields[s] = At(f"{s}_n")
        if begin == "both":
            fields[f"{s}_0"] = At(f"{s}_0")
    gather, scatter = (
        Launch(unit=slots_unit().name, kernel=kernel, struct="Slots", fields=fields, block=128,
               grid=(batch, -(-sum(sizes.values()) // 128), 1))
        for kernel in ("gather", "scatter")
    )  # fmt: skip
    program.operations = [gather, *program.operations, scatter]
    return program


def widths(spec: RNNSpec) -> dict[str, int]:
    """The floats of each state in a slot."""
    return {s: int(np.prod(spec.state_dims(s))) for s in spec.states}

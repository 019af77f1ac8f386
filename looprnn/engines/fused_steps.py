"""A layer as launches over every step: one matmul with R and one kernel for the gates, in order.

This way serves every layer of any size; what the persistent kernels cover goes another.
"""

import dataclasses
import math
from typing import Final

from looprnn.engines.fused_pack import padded
from looprnn.engines.fused_persistent_plan import PROJECTION_SHARED, PersistentPlan
from looprnn.engines.fused_program import At, Boxes, Launch, Loop, Program, Value
from looprnn.engines.fused_source import WEIGHT, matmul_unit, project_unit, step_unit
from looprnn.spec import Layer

FLOAT: Final = 4  # bytes
WIDTH: Final = {"fp32": 4, "fp16": 2, "fp16_state": 2, "bf16": 2}  # of a weight, in bytes
LARGE: Final = 128  # the side of the largest tile
TILE_US: Final = 1.5, 0.0053  # of a tile of project.cuh: its stores, and for each of K; with room
MULTIPROCESSORS: Final = 132
LEAST_TILES: Final = 4 * MULTIPROCESSORS  # of a projection that takes long enough to go beside


def matmul(
    precision: str,
    *,
    a: At,
    a_row: int,
    w: At,
    w_row: int,
    c: At,
    c_row: int,
    sizes: tuple[int, int, int, int],
    a_z: int = 0,
    w_z: int = 0,
    c_z: int = 0,
    bias: At | None = None,
) -> Launch:
    """c = a · wᵀ + bias; sizes are M, N, K and Z. Rows are so many elements apart."""
    M, N, K, Z = sizes
    block = 128
    if M <= 16:
        rows = 1 if M == 1 else 8
        kernel, grid = f"narrow{rows}", (-(-N // 4), -(-M // rows), Z)
    else:
        aligned = (a.offset // FLOAT) % 4 == a_row % 4 == a_z % 4 == 0  # a copy takes 16 bytes
        kind = "wide" if aligned else "tile"

        def busy(m: int, n: int) -> bool:
            """Whether there are enough tiles of m × n to keep the GPU busy."""
            return -(-M // m) * -(-N // n) * Z >= MULTIPROCESSORS // 2

        half = WEIGHT[precision] != 0
        if busy(64, 64):
            kernel, m, n = f"{kind}64", 64, 64
        elif aligned and half and K >= 256:  # a piece of K for each of its warps
            kernel, m, n, block = "split32x64", 32, 64, 256
        elif aligned and not half and busy(32, 64):
            kernel, m, n = "wide32x64", 32, 64
        elif aligned and not half and not busy(32, 32):
            kernel, m, n = "wide16", 16, 16
        else:
            kernel, m, n = f"{kind}32", 32, 32
        grid = -(-M // m), -(-N // n), Z
    fields = {"a": a, "w": w, "bias": bias, "c": c, "a_row": a_row, "a_z": a_z, "w_row": w_row,
              "w_z": w_z, "c_row": c_row, "c_z": c_z, "M": M, "N": N, "K": K}  # fmt: skip
    unit = matmul_unit(precision).name
    return Launch(unit=unit, kernel=kernel, struct="Matmul", grid=grid, block=block, fields=fields)


def by_boxes(
    precision: str, *, x: At, w: At, y: At, bias: At | None, sizes: tuple[int, int, int]
) -> Launch:
    """y [M, N] = x [M, K] · w [N, K]ᵀ + bias by Hopper's own instructions; x is rounded already."""
    M, N, K = sizes
    tiles = -(-M // LARGE) * -(-N // LARGE)
    half, box = WIDTH[precision], (1, LARGE, 64)
    fields: dict[str, Value] = {
        "x": Boxes(at=x, shape=(1, M, K), width=half, box=box),
        "w": Boxes(at=w, shape=(1, N, K), width=half, box=box),
        "y": y, "bias": bias, "M": M, "N": N, "K": K,
    }  # fmt: skip
    return Launch(
        unit=project_unit(precision).name, kernel="project", struct="Project", fields=fields,
        grid=(min(tiles, MULTIPROCESSORS), 1, 1), block=384, shared=PROJECTION_SHARED, early=True,
    )  # fmt: skip


def beside(
    program: Program, product: Launch, recurrence: Launch, k: int, plan: PersistentPlan
) -> Launch | None:
    """The recurrence with the projection in it, on the blocks that the plan has to spare: the steps
    in their order; None where they would not keep ahead, or it is over in no time.

    No more blocks than keep ahead: what they ask of the L2 cache, h has to wait for.
    """
    batch, time = recurrence.fields["batch"], recurrence.fields["time"]
    x, N, K = product.fields.get("x"), product.fields["N"], product.fields["K"]
    if not isinstance(x, Boxes):  # of another projection
        return None
    assert isinstance(batch, int) and isinstance(time, int)
    assert isinstance(N, int) and isinstance(K, int)
    rows = min(LARGE, 1 << (batch - 1).bit_length())  # of a tile
    times, tall = LARGE // rows, -(-batch // rows)
    spans, across = -(-time // times), -(-N // LARGE)
    ready = program.take(f"l{k}.ready", spans * FLOAT)  # for fewer rows of this plan, too
    us = tall * across / times * (TILE_US[0] + TILE_US[1] * K)
    blocks = math.ceil(us / plan.us_per_step)
    if blocks > plan.spare or tall * across * spans < LEAST_TILES:
        return None
    fields = {
        **recurrence.fields, "ready": ready, "times": times, "blocks": blocks,
        "x": dataclasses.replace(x, shape=(batch, time, K), box=(rows, times, 64)),
        "w": product.fields["w"], "bias": product.fields["bias"], "K": K,
    }  # fmt: skip
    return dataclasses.replace(recurrence, grid=(plan.grid + plan.spare, 1, 1), fields=fields)


def project(
    program: Program, layer: Layer, k: int, precision: str, x: At, inputs: int, rows: int
) -> At:
    """x [rows, I] → x·W + b, [rows, D, H, G]: one matmul for all steps and both directions."""
    directions, width = len(layer.directions), len(layer.gates) * layer.hidden_size
    xw = program.take("xw", rows * directions * width * FLOAT)
    bias = None if layer.layer_norm else At(f"l{k}.bias")
    K = padded(inputs)
    product = matmul(
        precision, a=x, a_row=inputs, w=At(f"l{k}.w"), w_row=K, w_z=width * K, bias=bias, c=xw,
        c_row=directions * width, c_z=width, sizes=(rows, width, inputs, directions),
    )  # fmt: skip
    tiles = -(-rows // LARGE), -(-width // LARGE), directions
    # Fewer tiles leave multiprocessors idle: smaller ones then. Hopper's pay earlier.
    enough = MULTIPROCESSORS // 6 if program.hopper else MULTIPROCESSORS
    if WEIGHT[precision] and math.prod(tiles) >= enough:
        # Each row is read by many tiles, so it is rounded once.
        rounded = program.take("rounded", rows * K * WIDTH[precision])
        fields: dict[str, Value] = {"x": x, "y": rounded, "rows": rows, "I": inputs, "K": K}
        program.operations.append(
            Launch(unit=product.unit, kernel="round_rows", struct="Round", fields=fields,
                   grid=(-(-rows * K // (8 * 256)), 1, 1), block=256)
        )  # fmt: skip
        if program.hopper:
            product = by_boxes(
                precision, x=rounded, w=At(f"l{k}.w"), y=xw, bias=bias,
                sizes=(rows, directions * width, K),
            )  # fmt: skip
        else:
            fields = {**product.fields, "a": rounded, "a_row": K, "K": K}
            product = dataclasses.replace(
                product, kernel=f"rounded{LARGE}", grid=tiles, block=256, fields=fields
            )
    program.operations.append(product)
    if layer.layer_norm:
        fields = {"x": xw, "scale": At(f"l{k}.ln_w"), "bias": At(f"l{k}.bias"), "N": width}
        program.operations.append(
            Launch(unit=step_unit(layer).name, kernel="norm_rows", struct="Norm", fields=fields,
                   grid=(rows, directions, 1), block=256)
        )  # fmt: skip
    return xw


def loop(
    program: Program,
    layer: Layer,
    k: int,
    precision: str,
    *,
    xw: At,
    states: dict[str, tuple[At, int]],
    y: At,
    batch: int,
    time: int,
    lengths: At | None,
    repeats: bool,
) -> None:
    """All steps of layer k; y [B, T, D·P]; states hold h (and c) at this layer's first unit, and
    the elements from one row to the next.
    """
    D, H, P = len(layer.directions), layer.hidden_size, layer.state_size("h")
    gates, before = len(layer.gates), layer.cell == "gru" and layer.reset == "before"
    h, h_row = states["h"]
    unit = step_unit(layer).name
    hr = program.take("hr", D * batch * gates * H * FLOAT)
    fields: dict[str, Value] = {
        "xw": xw, "hr": hr, "h": h, "y": y, "lengths": lengths, "xw_row": D * gates * H,
        "h_row": h_row, "y_row": D * P, "T": time, "B": batch, "H": H, "P": P,
        "backward": {"forward": 0, "reverse": 1, "bidirectional": 2}[layer.direction],
        "repeats": int(repeats),
    }  # fmt: skip
    if "c" in states:
        fields["c"], fields["c_row"] = states["c"]
    if layer.cell == "gru" and not before:
        fields["bias_n"] = At(f"l{k}.bias_n")
    if layer.peepholes:
        fields["peepholes"] = At(f"l{k}.p")
    if layer.layer_norm:
        fields |= {"norm_hr": At(f"l{k}.ln_r"), "norm_c": At(f"l{k}.ln_c")}
        fields["shift_c"] = At(f"l{k}.ln_c_bias")
    full, projected = At("full"), At("projected")
    if before or layer.layer_norm or layer.proj_size:
        fields["full"] = full = program.take("full", D * batch * H * FLOAT)
    if before:
        fields["z"] = program.take("z", D * batch * H * FLOAT)
    if layer.proj_size:
        fields["projected"] = projected = program.take("projected", D * batch * P * FLOAT)

    def launch(kernel: str, units: int) -> Launch:
        whole = layer.layer_norm and kernel == "step"
        grid = (batch, 1 if whole else -(-units // 128), D)
        return Launch(unit=unit, kernel=kernel, struct="Step", fields=fields, grid=grid,
                      block=256 if whole else 128)  # fmt: skip

    def product(
        name: str, a: At, strides: tuple[int, int], columns: int, K: int, at: int = 0
    ) -> Launch:
        row, rows_of = padded(K), {"r": gates * H, "v": P}[name]
        return matmul(
            precision, a=a, a_row=strides[0], a_z=strides[1], w_row=row, w_z=rows_of * row,
            w=At(f"l{k}.{name}", at * row * WIDTH[precision]), c_row=columns, c_z=batch * columns,
            c=projected if name == "v" else hr, sizes=(batch, columns, K, D),
        )  # fmt: skip

    of_h, of_full = (h_row, P), (H, batch * H)
    if before:
        body = [product("r", h, of_h, 2 * H, P), launch("reset", H)]
        body += [product("r", full, of_full, H, H, at=2 * H), launch("step", H)]
    else:
        body = [product("r", h, of_h, gates * H, P), launch("step", H)]
    if layer.proj_size:
        body += [product("v", full, of_full, P, H), launch("finish", P)]
    program.operations.append(Loop(tuple(body), time))

"""What `looprnn inspect` found, as tables for people."""

import json
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

SHOWN: Final = 40  # arrays in a table; --json has all

Found = dict[str, Any]


def show(found: Found, console: Console) -> None:
    title = f"{found['kind']} {found.get('name', '')}".strip()
    console.print(f"[bold]{escape(title)}[/]  {escape(found['file'])}", soft_wrap=True)
    if "layers" in found:
        _show_network(found, console)
    if arrays := found.get("arrays"):
        _show_arrays(arrays, console)
    if found["engines"]:
        _show_engines(found["engines"], console)
    if found.get("inspector") is not None:
        console.print_json(json.dumps(found["inspector"]))
    for note in found["notes"]:
        console.print(escape(note), soft_wrap=True)


def _table(*columns: str) -> Table:
    """What does not fit is folded, not cut; never the name of an engine or a file."""
    named = (Column(n, overflow="fold", no_wrap=n in ("engine", "file")) for n in columns)
    return Table(*named, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _show_network(found: Found, console: Console) -> None:
    table = _table("layer", "cell", "sizes", "gates", "parameters", "FLOPs a step")
    for k, layer in enumerate(found["layers"]):
        table.add_row(
            str(k),
            f"{layer['cell']} {layer['direction']}",
            f"{layer['input_size']} → {layer['hidden_size']} → {layer['output_size']}",
            " ".join(layer["gates"]),
            f"{layer['parameters']:,}",
            f"{layer['flops_per_step']:,}",
        )
    console.print(table)
    for k, layer in enumerate(found["layers"]):
        acts = dict.fromkeys(", ".join(names) for names in layer["activations"].values())
        options = [f"{key} = {str(value).lower()}" for key, value in layer["options"].items()]
        words = "; ".join([" | reverse: ".join(acts), *options])
        console.print(f"{f'layer {k}':12}{escape(words)}", soft_wrap=True, highlight=False)
    flops, profile = found["flops"], found["profile"]
    head, stream = found["head"], found["stream"]
    lines = [
        ("inputs", _named(found["inputs"])),
        ("outputs", _named(found["outputs"])),
        ("states", ", ".join(f"{n} = {s['value']:g} {_list(s['dims'])}"
                             for n, s in found["states"].items())),
        ("head", head and f"{head['size']} on {head['on']}, activation {head['activation']}"),
        ("vocabulary", found["vocabulary"]),
        ("padding", found["lengths"] and found["padding"]),
        ("precision", found["precision"]),
        ("refit", found["refit"] and "takes new weights without a rebuild"),
        ("streams", stream and f"{stream['model']} keeps {stream['capacity']:,} at once, "
                               f"{_bytes(stream['state_bytes'])} each, "
                               f"and idle ones {stream['idle_s']:g} s"),
        ("profile", ", ".join(f"{axis} {_list(list(r.values()))}" for axis, r in profile.items())),
        ("weights", ", ".join(f"{k} = {v}" for k, v in found.get("weights", {}).items())),
        ("parameters", f"{found['parameters']:,}, {_bytes(found['weight_bytes'])} in float32"),
        ("FLOPs", f"{flops['per_step_and_row']:,} a step and row ({flops['counted']})"),
        ("", flops["per_sequence_and_row"]
             and f"{flops['per_sequence_and_row']:,} once a sequence and row: the head"),
    ]  # fmt: skip
    for name, value in lines:
        if value:
            console.print(f"{name:12}{escape(str(value))}", soft_wrap=True, highlight=False)


def _show_arrays(arrays: list[Found], console: Console) -> None:
    table = _table("array", "shape", "type", "numbers")
    for a in arrays[:SHOWN]:
        table.add_row(escape(a["name"]), escape(_list(a["shape"])), a["dtype"], f"{a['numbers']:,}")
    console.print(table)
    if more := len(arrays) - SHOWN:
        console.print(f"and {more} more; --json lists them") if more > 0 else None


def _show_engines(cards: list[Found], console: Console) -> None:
    table = _table("engine", "file", "size", "made of", "precision", "difference")
    for c in cards:
        worst = c["largest_difference"]
        table.add_row(
            c["engine"],
            c["file"],
            "" if c["bytes"] is None else _bytes(c["bytes"]),
            c["made_of"],
            c["precision"],
            "not measured" if worst is None else f"{worst:.1e}",
        )
    console.print(table)
    for c in cards:
        libraries = ", ".join(f"{name} {version}" for name, version in c["libraries"].items())
        why = f"; not run here: {c['problem']}" if c["problem"] else ""
        words = f"{c['engine']}: for {c['target']}, built {c['built']} by {libraries}{why}"
        console.print(escape(words), soft_wrap=True, highlight=False)
        if c["plan"]:
            _show_plan(c["engine"], c["plan"], console)


def _show_plan(engine: str, plan: list[Found], console: Console) -> None:
    """How each layer runs, for each number of rows."""
    table = _table("layer", "B", "way", "blocks", "cluster", "on chip", "µs a step", "floor")
    for row in plan:
        cells = [str(row["layer"]), _span(row["batch"]), row["way"], *[""] * 5]
        if "blocks" in row:
            cells[3], cells[4] = _span(row["blocks"]), str(row["cluster"])
            cells[5] = _bytes(row["chip_bytes"][1])
            cells[6:] = [_span(row[name], ".2f") for name in ("us_per_step", "floor_us_per_step")]
        table.add_row(*cells)
    console.print(f"{engine}: the plan, with the µs of a step that it expects")
    console.print(table)
    for why in dict.fromkeys(row["why"] for row in plan):
        console.print(escape(why), soft_wrap=True, highlight=False)


def _span(values: list[float], how: str = "") -> str:
    """From the first number of rows to the last: 1–32, or one number."""
    return "–".join(dict.fromkeys(format(value, how) for value in values))


def _named(shapes: dict[str, list[int | str]]) -> str:
    return ", ".join(f"{name} {_list(dims)}" for name, dims in shapes.items())


def _list(values: list[Any]) -> str:
    return f"[{', '.join(map(str, values))}]"


def _bytes(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} GiB"

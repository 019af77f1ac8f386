"""Tables that change while one looks: on a terminal, where rich is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

EXTRA = "pip install 'looprnn-client[bench]'"


def on_terminal() -> bool:
    """Whether to draw; a terminal without rich is told what it lacks."""
    if not sys.stdout.isatty():
        return False
    if importlib.util.find_spec("rich") is None:
        sys.stderr.write(f"looprnn-client: for a live table, {EXTRA}\n")
        return False
    return True


class Board:
    """One table on the terminal, drawn anew by each `show`."""

    def __init__(self, live: Any) -> None:
        self._live = live

    def show(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        foot: str = "",
    ) -> None:
        """The first column is to the left, the others to the right."""
        self._live.update(_table(title, columns, rows, foot), refresh=True)


@contextmanager
def board() -> Iterator[Board]:
    """The last table stays when it ends."""
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield Board(live)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], foot: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(title),
        caption=escape(foot),
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    for k, name in enumerate(columns):
        table.add_column(escape(name), justify="right" if k else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table

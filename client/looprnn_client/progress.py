"""A bar for work that takes long, where it is asked for and rich is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from looprnn_client.errors import BadInput


def bar(title: str, items: object, wanted: bool) -> AbstractContextManager[Callable[[], object]]:
    """A progress bar on stderr, advanced by what it gives; of unknown length for generators."""
    if not wanted:
        return nullcontext(lambda: None)
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError as error:
        raise BadInput(
            "progress=True draws with rich, which is not installed: "
            "pip install 'looprnn-client[progress]'"
        ) from error

    @contextmanager
    def drawn() -> Iterator[Callable[[], object]]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as shown:
            total = len(items) if isinstance(items, Sized) else None
            task = shown.add_task(title, total=total)
            yield partial(shown.advance, task)

    return drawn()

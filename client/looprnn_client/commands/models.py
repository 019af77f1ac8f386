"""looprnn-client models: list the server's models."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from looprnn_client import list_models
from looprnn_client.commands import server
from looprnn_client.explain import headline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the server's."""


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """A line for each version of each model: name, version, state, the first line of the reason."""
    rows = [
        (s.name, s.version or "-", s.state or "-", headline(s.reason).split("\n")[0])
        for s in list_models(arguments.url, **server.reach(arguments))
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        yield "  ".join([*map(str.ljust, row, widths), row[3]]).rstrip()

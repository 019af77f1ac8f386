"""looprnn demo: build, serve what was built, ask every variant, compare with NumPy."""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from looprnn.commands import build
from looprnn.commands.build import add_arguments
from looprnn.demo import run_demo
from looprnn.installation import find
from looprnn.server import Server

__all__ = ["add_arguments", "run"]  # it takes what build takes


def run(options: argparse.Namespace, console: Console) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        find(Path(scratch))  # a host that cannot serve says so now, not after the build
    specs, outcomes, left_out = build.build_all(options, console)
    if any(o.status == "failed" for o in outcomes):
        return build.report(outcomes, left_out, console)
    # The repository may hold models that were never built here: they are not the demo's.
    server = Server(options.repository, models=[m for spec in specs for m in spec.models])
    with console.status("starting tritonserver") as status, server:
        status.stop()
        return run_demo(server, specs, options.repository, console)

"""looprnn serve: a tritonserver on the model repository, until Ctrl-C."""

import argparse
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from looprnn.card import Cards
from looprnn.commands import whole
from looprnn.errors import EngineError
from looprnn.profile import Profile
from looprnn.repository import built_versions
from looprnn.server import FLAGS, Server
from looprnn.stream import variant_of
from looprnn.supervisor import keep_serving


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)"
    )
    for flag, port in zip(FLAGS, (8000, 8001, 8002), strict=True):
        text = "0 takes a free one (default: %(default)s)"
        parser.add_argument(flag, type=whole(0, 65535), default=port, metavar="PORT", help=text)
    parser.add_argument(
        "--client-shared-memory",
        action="store_true",
        help="let clients pass arrays in shared memory",
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep tritonserver's log")


def run(options: argparse.Namespace, console: Console) -> int:
    server = Server(
        options.repository,
        host=options.host,
        ports=(options.http_port, options.grpc_port, options.metrics_port),
        log=options.log,
        strict=False,
        client_shared_memory=options.client_shared_memory,
    )
    with console.status("starting tritonserver") as status, server:
        status.stop()
        try:
            console.print(greeting(server, server.models()), soft_wrap=True)
            keep_serving(server, lambda said: console.print(escape(said), soft_wrap=True))
        except (KeyboardInterrupt, SystemExit) as end:  # SystemExit: see cli._signals_end_it
            console.print("stopping: what is in flight is answered first")
            if isinstance(end, SystemExit):
                raise
            return 0


def greeting(server: Server, models: dict[str, str]) -> str:
    """What is served and where, what is not and why, and what to type to ask; in rich's markup."""
    lines = [
        f"{name}: [red]not served[/] {escape(reason.removeprefix(f'{name}: '))}"
        if reason
        else f"{name}: [green]ready[/]"
        for name, reason in models.items()
    ]
    lines.append(f"gRPC {server.grpc}, HTTP {server.http}, metrics {server.metrics}/metrics.")
    served = [name for name, reason in models.items() if not reason]
    streamed = [name for name in served if variant_of(name) in models.keys() - {name}]
    if first := first_built(server.repository, [n for n in served if n not in streamed]):
        name, sizes = first
        size = f"{sizes.batch.opt} {sizes.time.opt}"
        ask = f"--url {server.grpc} --model {name} --random {size} --output y.npz"
        lines += ["Ask it:", f"  looprnn-client infer {ask}"]
    if first := first_built(server.repository, streamed):
        name, sizes = first
        ask = f"--url {server.grpc} --model {variant_of(name)} --random {sizes.time.opt}"
        lines += ["Or chunk by chunk, its state kept here:", f"  looprnn-client stream {ask}"]
    return "\n".join([*lines, "Ctrl-C stops it."])


def first_built(repository: Path, models: list[str]) -> tuple[str, Profile] | None:
    """The first of these models that looprnn built, with the sizes it is for."""
    for name in models:
        for version in reversed(built_versions(repository / name)):
            with suppress(EngineError):
                return name, Cards.read(repository / name / str(version)).spec.profile
    return None

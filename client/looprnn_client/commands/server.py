"""Which server, and how to reach it: the arguments that every command takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from looprnn_client import TLS, Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default="localhost:8001",
        help="default: %(default)s, which is gRPC; http://localhost:8000; grpcs:// and https:// "
        "over TLS",
    )
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds (5)")
    parser.add_argument(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="sent with every call, as 'Authorization: Bearer …'; may be repeated",
    )
    parser.add_argument(
        "--ca", type=Path, metavar="PEM", help="who signed the server's certificate"
    )
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="this client's own")
    parser.add_argument("--key", type=Path, metavar="PEM", help="of --certificate")


def reach(arguments: argparse.Namespace) -> dict[str, Any]:
    """timeout_s, headers and tls, as Client and list_models take them. Raises BadInput."""
    given = (arguments.ca, arguments.certificate, arguments.key)
    names = ("root_certificates", "certificate", "private_key")
    return {
        "timeout_s": arguments.timeout,
        "headers": dict(arguments.header) or None,
        "tls": TLS(**dict(zip(names, given, strict=True))) if any(given) else None,
    }


def client(arguments: argparse.Namespace, model: str, **more: Any) -> Client:
    """Raises BadInput."""
    return Client(arguments.url, model, **reach(arguments), **more)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: wanted NAME:VALUE")
    return name.strip(), value.strip()

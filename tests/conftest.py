"""Fixtures: the committed variants, a repository built from them, and a tritonserver on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from looprnn.build import build_variant, buildable
from looprnn.server import Server
from looprnn.variants import load_spec

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {path.stem: load_spec(path) for path in sorted((ROOT / "variants").glob("*.toml"))}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server",
        metavar="HOST",
        help="test a tritonserver that runs there on ports 8000 and 8001",
    )


@dataclass(frozen=True)
class Address:
    """Where a tritonserver answers, "host:port" each."""

    grpc: str
    http: str


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with every engine this host can build, of every committed variant."""
    folder = tmp_path_factory.mktemp("repository")
    engines, _ = buildable()
    for spec in VARIANTS.values():
        outcomes = build_variant(spec, engines, folder, progress=lambda *_: None)
        assert [o.message for o in outcomes if o.status != "built"] == []
    return folder


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Address | Server]:
    """The tritonserver that --server names, or an embedded one on `repository`."""
    if host := request.config.getoption("--server"):
        yield Address(grpc=f"{host}:8001", http=f"{host}:8000")
        return
    with Server(request.getfixturevalue("repository")) as running:
        yield running


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> object:
    """Each committed variant's spec."""
    return VARIANTS[request.param]


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: Address) -> str:
    """The server's address, once for each protocol."""
    return f"{request.param}://{getattr(server, request.param)}"

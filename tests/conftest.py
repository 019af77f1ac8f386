"""Fixtures: the committed variants, a repository built from them, and a tritonserver on it."""

import importlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import stream_model
from client_both import clients
from hypothesis import settings

from looprnn import engines
from looprnn.build import build_variant, buildable
from looprnn.engines.tensorrt import RTX_CAPABILITIES, no_gpu
from looprnn.errors import EngineMissing
from looprnn.server import Server
from looprnn.variants import load_spec

# How long an example takes says nothing on a machine that others share.
# CI draws the same examples each time; elsewhere each run draws its own.
settings.register_profile("house", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("house")
ROOT = Path(__file__).resolve().parent.parent
# By name, so that a user's own variant beside them changes no test.
SHIPPED = (
    *("relu_rnn", "lstm", "bilstm", "tanh_rnn", "relu_rnn_random", "lstm_random", "bilstm_random"),
    *("padded_gru", "tokens"),
)
VARIANTS = {name: load_spec(ROOT / f"variants/{name}.toml") for name in sorted(SHIPPED)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server",
        metavar="HOST",
        help="test a tritonserver that runs there on ports 8000 and 8001",
    )
    parser.addoption(
        "--require", metavar="ENGINE", help="an engine that must run here: never skip its tests"
    )


def needs(name: str, hint: str) -> ModuleType:
    """An optional module: without it the file's tests are skipped, but in CI that is an error."""
    if os.environ.get("CI"):
        return importlib.import_module(name)
    module: ModuleType = pytest.importorskip(name, reason=f"{name} is not installed; type: {hint}")
    return module


def skip_unless_it_runs(name: str, request: pytest.FixtureRequest) -> None:
    """An engine that cannot run here is a skip, unless --require names it."""
    reason = cannot_run_here(name)
    if reason and request.config.getoption("--require") != name:
        pytest.skip(reason)


def cannot_run_here(name: str) -> str | None:
    """Why an engine cannot be built and run on this host, or None."""
    try:
        reason = engines.get(name).cannot_build()
    except EngineMissing as error:
        return str(error)
    if reason or name == "onnxruntime":
        return reason
    if reason := no_gpu():
        return reason
    from looprnn.cuda import gpu

    if name == "fused":
        from looprnn.engines.fused import mismatch

        return mismatch(gpu().name, gpu().capability)
    if name == "tensorrt_rtx" and gpu().capability not in RTX_CAPABILITIES:
        return f"TensorRT-RTX does not run on {gpu()}"
    return None


@dataclass(frozen=True)
class Address:
    """Where a tritonserver answers, "host:port" each."""

    grpc: str
    http: str


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> None:
    """What tests start heeds signals, also where nohup or a shell's & made us ignore them: an
    ignored signal is inherited, a handler is not.
    """
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


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


@pytest.fixture(scope="session")
def summing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model holds streams of running sums; its tests leave no stream behind."""
    with Server(stream_model.write_repository(tmp_path_factory.mktemp("sums"))) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def sums_url(request: pytest.FixtureRequest, summing: Server) -> str:
    """That server's address, once for each protocol."""
    return f"{request.param}://{getattr(summing, request.param)}"


@pytest.fixture
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    """A fused engine on this GPU: opened(spec, weights, plan) → an open session."""
    skip_unless_it_runs("fused", request)
    from fused_on_gpu import sessions  # needs what the engine needs

    with sessions(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def load_stream_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The stream model on a double of Triton; see stream_triton_double."""
    from stream_triton_double import loading  # builds an engine

    with loading(tmp_path_factory.mktemp("repository")) as load:
        yield load


@pytest.fixture
def model(load_stream_model: Callable[[], object]) -> object:
    """A stream model whose engine is a double."""
    return load_stream_model()


@pytest.fixture(params=["threads", "asyncio"])
def connect_sums(request: pytest.FixtureRequest, sums_url: str) -> Iterator[object]:
    """Opens a client of either kind of that server: connect_sums(model, …)."""
    with clients(request.param) as kind:
        yield lambda model="sum", **options: kind(sums_url, model, **{"timeout_s": 10} | options)

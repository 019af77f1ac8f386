"""Runs a tritonserver on a model repository, stops it in order, and starts it anew."""

import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from looprnn.errors import ServerError
from looprnn.installation import Installation, can_forbid_shm, environment, find

STOP_S = 20.0
RESTART_S = 2.0  # what whole models have in flight when another's process died
EXIT_S = 5  # asked to end, Triton waits so long for requests, and for live streams to end
FLAGS = ("--http-port", "--grpc-port", "--metrics-port")
# Runs in the child and becomes the server: the kernel sends that SIGTERM when we die, even of
# SIGKILL. A process of its own, because code between fork and exec is unsafe beside threads.
TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else we died before that
    os.execv(sys.argv[2], sys.argv[2:])
"""


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on at this moment."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def check_ports(host: str, ports: Iterable[int]) -> None:
    """Raises ServerError naming the first of the HTTP, gRPC and metrics ports that is not free."""
    with ExitStack() as open_sockets:
        for flag, port in zip(FLAGS, ports, strict=True):
            try:
                open_sockets.enter_context(socket.create_server((host, port)))
            except OSError as error:
                reason = str(error.strerror).partition(" (")[0]  # Python repeats the address there
                another = "--host ADDRESS"
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    another = f"{flag} PORT, where 0 takes a free one"
                raise ServerError(
                    f"cannot listen on {host}:{port}: {reason}. Type another: {another}"
                ) from error


class Server:
    """A running tritonserver on a model repository; `with` starts it, waits for it, and stops it.

    grpc, http and metrics are "host:port". Ports of 0 are chosen. Listens on loopback unless `host`
    says otherwise. Serves `models`, by default all. With strict=True a model that cannot be loaded
    raises ServerError with Triton's words; else the others are served. It ends with the thread that
    started it.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        ports: tuple[int, int, int] = (0, 0, 0),
        models: Sequence[str] = (),
        log: Path | None = None,
        strict: bool = True,
        client_shared_memory: bool = False,
        timeout_s: float = 120.0,
    ) -> None:
        self.repository, self.host, self.strict = repository, host, strict
        self.client_shared_memory = client_shared_memory
        self.timeout_s = timeout_s
        chosen = iter(free_ports(3))
        http, grpc, metrics = (port or next(chosen) for port in ports)
        here = "127.0.0.1" if host == "0.0.0.0" else host
        self.http, self.grpc, self.metrics = (f"{here}:{port}" for port in (http, grpc, metrics))
        self._ports = (http, grpc, metrics)
        self._log, self._models = log, models
        self._segments = f"looprnn-{secrets.token_hex(4)}-"  # its shared memory, to find it again

    def __enter__(self) -> Self:
        if not self.repository.is_dir():
            raise ServerError(
                f"{self.repository}: no such model repository. Type: python build_engines.py, or "
                "--repository DIR where it lies elsewhere"
            )
        if (self.repository / "config.pbtxt").exists():
            raise ServerError(
                f"{self.repository}: is one model; its repository is the folder above. Type: "
                f"--repository {self.repository.parent}"
            )
        if not any(self.repository.glob("*/config.pbtxt")):
            raise ServerError(
                f"{self.repository}: no model in this repository. Type: python build_engines.py"
            )
        check_ports(self.host, self._ports)
        with ExitStack() as opening:
            scratch = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="looprnn-")))
            self.log = self._log or scratch / "tritonserver.log"
            self._output = opening.enter_context(self.log.open("w", encoding="utf-8"))
            self._installed = find(scratch / "backends")
            self._launch()
            opening.callback(self._stop)
            self._wait_until_ready()
            self._open = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def models(self) -> dict[str, str]:
        """Each model's name and why it is not served; an empty string where it is."""
        request = urllib.request.Request(f"http://{self.http}/v2/repository/index", method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            index = json.load(answer)
        return {
            m["name"]: "" if m.get("state") == "READY" else cause(m.get("reason", "not loaded"))
            for m in index
        }

    def wait(self) -> int:
        """Block until the server ends by itself; its exit status."""
        return self.process.wait()

    def restart(self) -> None:
        """End it, with little patience for what is in flight, and start it anew on its ports.

        Raises ServerError if it does not come back.
        """
        self._stop(RESTART_S)
        self._launch()
        self._wait_until_ready()

    def _launch(self) -> None:
        # Its own process group: Ctrl-C reaches us, and we stop the server in order.
        self.process = subprocess.Popen(
            self._command(self._installed),
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment(self._installed),
            start_new_session=True,
        )

    def _command(self, installed: Installation) -> list[str]:
        http, grpc, metrics = self._ports
        return [
            *(sys.executable, "-I", "-S", "-c", TIED, str(os.getpid())),
            str(installed.program),
            f"--model-repository={self.repository.resolve()}",
            *([f"--backend-directory={installed.backends}"] if installed.backends else []),
            *(["--model-control-mode=explicit"] if self._models else []),
            *(f"--load-model={name}" for name in self._models),
            "--disable-auto-complete-config",
            "--backend-config=python,shm-default-byte-size=4194304",
            f"--backend-config=python,shm-region-prefix-name={self._segments}",
            f"--exit-on-error={str(self.strict).lower()}",
            f"--exit-timeout-secs={EXIT_S}",
            f"--http-address={self.host}",
            f"--http-port={http}",
            f"--grpc-address={self.host}",
            f"--grpc-port={grpc}",
            f"--metrics-address={self.host}",
            f"--metrics-port={metrics}",
            *(
                ["--allow-client-shm=true"]
                if self.client_shared_memory and can_forbid_shm(installed)
                else []
            ),
        ]

    def _wait_until_ready(self) -> None:
        path = "/v2/health/ready" if self.strict else "/v2/health/live"
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(
                    f"tritonserver ended with status {self.process.returncode}:\n"
                    f"{self._complaints()}"
                )
            try:
                with urllib.request.urlopen(f"http://{self.http}{path}", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise ServerError(
            f"tritonserver was not ready after {self.timeout_s:g} s:\n{self._complaints()}"
        )

    def _complaints(self) -> str:
        """What the log says of models that failed to load, else its errors, else its end."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        failed = [line.split("] ", 1)[-1] for line in lines if "failed to load '" in line]
        return "\n".join(failed or [line for line in lines if line[:1] == "E"] or lines[-10:])

    def _stop(self, patience_s: float = STOP_S) -> None:
        """Ask, wait, and only then kill what is left of the group: stubs too, if it crashed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for left in Path("/dev/shm").glob(f"{self._segments}*"):
            left.unlink(missing_ok=True)


def cause(reason: str) -> str:
    """Triton's reason without its wrapping: the exception's class and Python's stack."""
    return (
        reason.removeprefix("Internal: ").removeprefix("TritonModelException: ").split("\n\nAt:")[0]
    )

"""What is opened is closed, however it ends: the tritonserver with its stubs. Processes are real,
and so are the signals that kill them.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from looprnn_client.cli import main as ask
from rich.console import Console
from small_variant import run

from looprnn.cli import main
from looprnn.commands.serve import greeting
from looprnn.errors import ServerError
from looprnn.server import FLAGS, TIED, Server, cause
from looprnn.supervisor import keep_serving

PATIENCE_S = 40


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A repository with the model `small`, and `unbuilt` as a clone has it."""
    folder = tmp_path_factory.mktemp("models")
    run(folder)
    shutil.copytree(folder / "small", folder / "unbuilt", ignore=shutil.ignore_patterns("*.json"))
    config = folder / "unbuilt/config.pbtxt"
    config.write_text(config.read_text().replace('"small"', '"unbuilt"'))
    return folder


def group(leader: int) -> list[str]:
    """The commands of a process group that are alive; the server's is its stubs' too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = path.read_text().split("(", 1)[1].rsplit(")", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, pgrp = rest.split()[:3]
        if int(pgrp) == leader and state != "Z":
            found.append(name)
    return found


def wait_until(true, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


PARENT = """
import sys
from pathlib import Path
from looprnn.server import Server
with Server(Path(sys.argv[1]), models=["small"]) as server:
    print(server.process.pid, flush=True)
    server.wait()
"""


def test_the_server_and_its_stubs_end_with_a_parent_that_is_killed(models):
    command = [sys.executable, "-c", PARENT, str(models)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        leader = int(parent.stdout.readline())
        assert len(group(leader)) > 1, "a server and a stub"
        parent.kill()
    wait_until(lambda: not group(leader), f"{group(leader)} outlive their parent")


def serve(models: Path, *arguments: str, **options) -> subprocess.Popen:
    ports = [word for flag in FLAGS for word in (flag, "0")]
    command = [sys.executable, "-m", "looprnn.cli", "serve", "--repository", str(models), *ports]
    command += arguments
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(word) for word in tasks.read_text().split()]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)]
)
def test_a_signal_to_serve_stops_the_server(models, number, status):
    with serve(models) as command:
        while "Ctrl-C stops it" not in (line := command.stdout.readline()):
            assert line, "it ended before it served"
        (leader,) = children(command.pid)
        assert len(group(leader)) > 1
        command.send_signal(number)
        assert command.stdout.read() == "stopping: what is in flight is answered first\n"
    assert command.returncode == status
    wait_until(lambda: group(leader) == [], "the server lives on")


def test_the_command_that_the_greeting_gives_works_as_it_stands(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serve(models) as command:
        while "looprnn-client infer" not in (line := command.stdout.readline()):
            assert line, "it ended before it served"
        program, *words = line.split()
        assert (program, ask(words)) == ("looprnn-client", 0)
        command.send_signal(signal.SIGINT)
        command.stdout.read()
    with np.load("y.npz") as answer:
        assert answer["output"].shape == (2, 3, 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_still_starting_is_left_by_nobody(models, number):
    with serve(models) as command:
        wait_until(lambda: children(command.pid), "no server is started")
        (leader,) = children(command.pid)
        command.send_signal(number)
    wait_until(lambda: not group(leader), f"{group(leader)} outlive their parent")


@pytest.mark.parametrize(("parent", "said"), [(os.getpid(), "ran\n"), (0, "")])
def test_a_server_whose_parent_died_before_it_began_does_not_begin(parent, said):
    command = [sys.executable, "-c", TIED, str(parent), "/bin/echo", "ran"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == said


def test_a_start_that_fails_half_way_leaves_nothing(models, monkeypatch):
    def fail(self):
        leaders.append(self.process.pid)
        raise ServerError("half-way, says the test")

    leaders: list[int] = []
    monkeypatch.setattr(Server, "_wait_until_ready", fail)
    with pytest.raises(ServerError, match="half-way"), Server(models):
        pass
    wait_until(lambda: group(*leaders) == [], "a server lives on")


def test_the_stubs_of_a_server_that_crashed_are_ended_too(models):
    with Server(models, models=["small"]) as server:
        os.kill(server.process.pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
    wait_until(lambda: group(server.process.pid) == [], "its stubs live on")


@pytest.mark.parametrize("flag", FLAGS)
def test_a_port_in_use_is_named_with_its_flag(models, flag, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        free = [word for other in FLAGS if other != flag for word in (other, "0")]
        assert main(["serve", "--repository", str(models), *free, flag, port]) == 1
    said = capsys.readouterr().err
    assert f"127.0.0.1:{port}: Address already in use. Type another: {flag} PORT" in said


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_this_hosts_is_named_with_its_flag(models, host, capsys):
    assert main(["serve", "--repository", str(models), "--host", host]) == 1
    assert "Type another: --host ADDRESS" in capsys.readouterr().err


def test_one_port_for_two_things_is_named_with_the_second_flag(models, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    ports = ["--http-port", port, "--grpc-port", port, "--metrics-port", "0"]
    assert main(["serve", "--repository", str(models), *ports]) == 1
    assert "Type another: --grpc-port PORT" in capsys.readouterr().err


def test_a_strict_server_of_named_models_minds_no_other(models):
    with Server(models, models=["small"]) as server:
        assert server.models()["small"] == ""
    with pytest.raises(ServerError, match="unbuilt: .*no engine was built here"), Server(models):
        pass


def test_a_server_that_ends_again_and_again_is_given_up_in_words():
    said = []
    restarts = []
    ended = SimpleNamespace(poll=lambda: -11)
    server = SimpleNamespace(process=ended, restart=lambda: restarts.append(1))
    with pytest.raises(ServerError, match=r"status -11, after 5 restarts within 60 s.*--log FILE"):
        keep_serving(server, said.append)
    assert len(restarts) == 5
    assert said[0] == "tritonserver ended by itself with status -11; starting the server anew"


def test_a_server_that_does_not_come_back_says_why():
    def restart():
        raise ServerError("no memory, says the test")

    ended = SimpleNamespace(poll=lambda: 1)
    with pytest.raises(ServerError, match="no memory, says the test"):
        keep_serving(SimpleNamespace(process=ended, restart=restart), lambda said: None)


def test_a_model_for_a_repository_says_where_that_is(models, capsys):
    assert main(["serve", "--repository", str(models / "small")]) == 1
    assert f"is one model; its repository is the folder above. Type: --repository {models}\n" in (
        capsys.readouterr().err
    )


def test_an_empty_repository_says_what_to_type(tmp_path, capsys):
    assert main(["serve", "--repository", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}: no model in this repository. Type: python build_engines.py" in said


@pytest.fixture
def serving(tmp_path, models):
    """serving(good="", broken="why"): the greeting of a server of these, all of them built."""

    def say(**reasons):
        for name in reasons:
            shutil.copytree(models / "small", tmp_path / name, dirs_exist_ok=True)
        return greeting_of(tmp_path, **reasons)

    return say


def greeting_of(repository: Path, **reasons: str) -> str:
    addresses = SimpleNamespace(grpc="h:1", http="h:2", metrics="h:3", repository=repository)
    return greeting(addresses, reasons)


def test_the_greeting_names_a_served_model_and_its_command_never_wraps(serving, capsys):
    text = serving(broken="broken: why [not]", good="")
    Console(width=30).print(text, soft_wrap=True)
    lines = capsys.readouterr().out.splitlines()
    assert "broken: not served why [not]" in lines
    assert "  looprnn-client infer --url h:1 --model good --random 2 3 --output y.npz" in lines


def test_the_greeting_says_how_to_stream_only_where_a_stream_model_is_served(serving):
    ask = "looprnn-client stream --url h:1 --model good --random 3\n"
    text = serving(good_stream="", good="")
    assert ask in text and "infer --url h:1 --model good " in text
    assert "client stream" not in serving(good_stream="why", good="")
    assert "client stream" not in serving(up_stream=""), "its own name, no stream"


def test_the_greeting_of_a_server_of_nothing_offers_no_command(serving, tmp_path):
    assert "looprnn-client" not in serving(broken="why")
    shutil.rmtree(tmp_path / "broken/1")
    assert "looprnn-client" not in greeting_of(tmp_path, broken=""), "another's model"


def test_a_reason_loses_tritons_wrapping():
    raw = (
        "Internal: TritonModelException: m: no engine. Build it\n\nAt:\n  /x/m.py(46): initialize\n"
    )
    assert cause(raw) == "m: no engine. Build it"
    assert cause("not loaded") == "not loaded"

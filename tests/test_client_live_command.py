"""The client's command and its README's examples against a running tritonserver."""

import re
from pathlib import Path

import numpy as np
import pytest
from looprnn_client import Client, StreamState
from looprnn_client.cli import main
from test_client_live import draw

from looprnn.server import Server

pytestmark = pytest.mark.live

README = Path(__file__).resolve().parent.parent / "client" / "README.md"


@pytest.fixture
def url(url):
    """As test_client_live has it: gRPC without a scheme."""
    return url.removeprefix("grpc://")


def test_command_end_to_end(url, tmp_path, capsys):
    with Client(url, "bilstm", timeout_s=10) as client:
        arguments = dict(zip(("input", "h0", "c0"), draw(client, batch=2, time=6), strict=True))
        want = client.infer(*arguments.values())
    words = ["infer", "--url", url, "--model", "bilstm", "--output", str(tmp_path / "y.npz")]
    for name, array in arguments.items():
        np.save(tmp_path / f"{name}.npy", array)
        words += [f"--{name}", str(tmp_path / f"{name}.npy")]
    assert main(words) == 0
    with np.load(tmp_path / "y.npz") as got:
        assert set(got) == {"output", "h_n", "c_n"}
        for name in got:
            np.testing.assert_allclose(got[name], getattr(want, name), rtol=0, atol=1e-6)
    assert "output [2, 6, " in capsys.readouterr().out
    assert main([*words[:4], "nope", *words[5:]]) == 1
    assert "has no model 'nope'" in capsys.readouterr().err
    assert main(["models", "--url", url]) == 0
    assert re.search(r"^bilstm +1 +READY$", capsys.readouterr().out, re.MULTILINE)


def test_command_with_lengths(url, tmp_path, capsys):
    with Client(url, "tokens", timeout_s=10) as client:
        ids, *_ = draw(client, batch=2, time=6)
        want = client.infer(ids, lengths=[6, 2])
    words = ["infer", "--url", url, "--model", "tokens", "--output", str(tmp_path / "y.npz")]
    for name, array in (("input", ids), ("lengths", np.array([6, 2]))):
        np.save(tmp_path / f"{name}.npy", array)
        words += [f"--{name}", str(tmp_path / f"{name}.npy")]
    assert main(words) == 0
    with np.load(tmp_path / "y.npz") as got:
        assert set(got) == {"output", "h_n", "c_n", "head"}
        for name in got:
            np.testing.assert_allclose(got[name], getattr(want, name), rtol=0, atol=1e-6)
    assert "head [2, 6, 4] float32" in capsys.readouterr().out


def run_blocks(url, wanted):
    """The names that the README's Python leaves behind."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {"np": np, "Client": Client, "StreamState": StreamState}
    for block in filter(wanted, blocks):
        exec(block.replace("localhost:8001", url), names)
    return names


def test_readme_streams_as_written(url, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(url, lambda block: "lstm_stream" in block)
    assert capsys.readouterr().out == "(1, 10, 5) 20\n(1, 10, 5) 30\n"
    assert names["first"].c_n is not None
    assert names["again"].output.shape == (1, 10, 5)
    assert [output.shape for output in names["outputs"]] == 3 * [(1, 10, 5)]


def test_readme_shares_memory_as_written(repository):
    """With a server of our own: one in another container shares no memory with us."""
    with Server(repository, models=["lstm"], client_shared_memory=True) as here:
        names = run_blocks(here.grpc, lambda block: "memory=" in block)
        with Client(here.grpc, "lstm", timeout_s=10) as client:
            want = client.infer(np.zeros((1, 64, 7), np.float32))
    np.testing.assert_allclose(names["shared"].output[:1], want.output, rtol=0, atol=1e-6)


def test_readme_runs_as_written(url):
    names = run_blocks(url, lambda block: "lstm_stream" not in block and "memory=" not in block)
    assert names["first"].c_n is not None
    assert names["second"].h_n is None
    assert names["last"].shape == names["later"].h_n.shape == names["both"][1].h_n.shape
    assert names["classes"].head.shape == (2, 3, 4)

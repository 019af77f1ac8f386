"""looprnn-client bench: its load, its numbers, its files; without a server."""

import json
import sys
import threading
import time

import numpy as np
import pytest
from client_doubles import TOKENS, Fake
from conftest import needs
from looprnn_client import BadInput, ServerError
from looprnn_client.cli import main
from looprnn_client.commands import bench
from looprnn_client.commands.load import Level, Load
from looprnn_client.transport import Code, Failure
from test_client_command import command, pretend  # noqa: F401


def load(ask, *, seconds=0.3, warmup_s=0.0, **level):
    return Load(Level(**level), ask, seconds=seconds, warmup_s=warmup_s)


def short(*more):
    words = ("--url", "here:1", "--model", "lstm", "--seconds", 0.2, "--warmup", 0, "--time", 4)
    return command("bench", *words, *more)


def test_a_closed_loop_keeps_exactly_so_many_in_flight():
    now, most = set(), []
    lock, together = threading.Lock(), threading.Barrier(4)

    def ask(index):
        with lock:
            now.add(index)
            most.append(len(now))
        if index < 4:
            together.wait(30)  # passes only with four in flight
        with lock:
            now.discard(index)
        return 3

    report = load(ask, concurrency=4).run(lambda: None)
    assert max(most) == 4
    assert report.requests > 4 and report.failed == report.unsent == 0
    assert report.steps_per_s == pytest.approx(3 * report.throughput_rps, rel=1e-3)
    assert list(report.latency_ms) == ["p50", "p90", "p95", "p99", "p99.9", "max"]
    assert sorted(report.latency_ms.values()) == list(report.latency_ms.values())


def test_an_open_loop_counts_a_late_answer_from_when_it_was_due():
    """One call at a time that takes 20 ms, and one due each ms: the queue is in the latency."""

    def ask(index):
        time.sleep(0.02)
        return 1

    report = load(ask, concurrency=1, rate=1000.0, seconds=0.5).run(lambda: None)
    assert report.latency_ms["max"] > 100
    assert report.unsent > 200


def test_arrivals_are_poisson_and_nothing_is_sent_before_it_is_due():
    sent = []
    fast = load(lambda k: sent.append(fast.elapsed) or 1, concurrency=8, rate=300.0, seconds=1.0)
    fast.run(lambda: None)
    assert all(s.end >= s.due for s in fast._samples)
    gaps = np.diff(sorted(s.due for s in fast._samples))
    assert 0.6 < gaps.std() / gaps.mean() < 1.5  # of an exponential 1; a metronome's is 0


def test_failures_are_counted_and_their_words_kept():
    def ask(index):
        if index % 2:
            raise ServerError("no")
        return 1

    report = load(ask, concurrency=2).run(lambda: None)
    assert 0 < report.failed < report.requests
    assert list(report.failures) == ["ServerError: no"]
    assert next(bench.remarks([report])).endswith("times ServerError: no")


def test_ctrl_c_keeps_what_was_measured():
    def tick():
        if running.elapsed > 0.3:
            raise KeyboardInterrupt

    running = load(lambda k: time.sleep(0.001) or 1, concurrency=2, seconds=60)
    report = running.run(tick)
    assert running.interrupted and report.requests > 0 and report.seconds < 60


def test_the_command_prints_a_line_a_level(pretend, capsys):  # noqa: F811
    assert main(short("--concurrency", 1, 2, "--time", "2:5", "--batch", 2)) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["load", "req/s"]
    assert [row[: row.index(" flight")] for row in rows] == ["1 in", "2 in"]
    rows, steps, _ = pretend.inputs["input"].shape
    assert rows == 2 and 2 <= steps <= 5


def test_a_terminal_sees_a_table_that_stays(pretend, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(short("--concurrency", 1, 2)) == 0
    said = capsys.readouterr().out
    assert "lstm at here:1" in said and "2 in flight" in said and "req/s" in said


def test_a_terminal_without_rich_gets_lines_and_a_hint(pretend, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(short()) == 0
    said = capsys.readouterr()
    assert "pip install 'looprnn-client[bench]'" in said.err
    assert said.out.startswith("load ")


def test_ids_are_drawn_below_the_vocabulary(pretend):  # noqa: F811
    pretend.model = TOKENS
    assert main(short("--time", 3)) == 0
    assert pretend.inputs["input"].dtype == np.int32 and pretend.inputs["input"].shape == (1, 3)


def test_a_model_that_takes_less_than_the_usual_steps_gets_what_it_takes(pretend):  # noqa: F811
    words = ("--url", "here:1", "--model", "lstm", "--seconds", 0.1, "--warmup", 0)
    assert main(command("bench", *words)) == 0
    assert pretend.inputs["input"].shape == (1, 16, 7)


def test_what_does_not_fit_is_said_before_the_load(pretend, capsys):  # noqa: F811
    assert main(short("--time", "8:64")) == 1
    said = capsys.readouterr()
    assert "[1..8, 1..16, 7]" in said.err and said.out == ""


def test_a_failing_server_is_in_the_numbers(pretend, capsys):  # noqa: F811
    class Sick(Fake):
        def infer(self, *arguments):
            if self.asked.count("infer") > 3:
                self.fails = Failure(Code.INTERNAL, "sick")
            return super().infer(*arguments)

    pretend.__class__ = Sick
    assert main(short("--time", 2)) == 0
    assert "times ServerError: here:1: the server failed: sick" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--time", "9:8"], "wanted the smaller first, 8:9"),
        (["--time", "0"], "at least 1"),
        (["--rate", "0"], "more than 0"),
        (["--seconds", "nan"], "wanted seconds"),
        (["--concurrency", "none"], "concurrency"),
    ],
)
def test_wrong_usage_says_what_is_wanted(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(short(*words))
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_rates_with_several_limits_are_refused():
    with pytest.raises(BadInput, match="most in flight"):
        bench.levels([1, 2], [3.0])
    assert bench.levels([9], [3.0, 4.0]) == [Level(concurrency=9, rate=r) for r in (3.0, 4.0)]
    assert bench.levels(None, [3.0]) == [Level(concurrency=64, rate=3.0)]


def test_without_matplotlib_it_says_so_before_the_load(pretend, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "looprnn_client.commands.plots", raising=False)
    assert main(short("--output", tmp_path / "out")) == 1
    assert "pip install 'looprnn-client[bench]'" in capsys.readouterr().err
    assert pretend.asked == [] and not list(tmp_path.iterdir())


def test_files_hold_the_numbers_and_the_plots(pretend, tmp_path, capsys):  # noqa: F811
    needs("matplotlib", "make oracles")
    assert main(short("--concurrency", 1, 2, "--time", 4, "--output", tmp_path / "out")) == 0
    kinds = ("latency.svg", "latency.png", "throughput.svg", "throughput.png")
    assert {p.name for p in tmp_path.iterdir()} == {"out.json", *(f"out-{k}" for k in kinds)}
    written = json.loads((tmp_path / "out.json").read_text())
    assert [level["concurrency"] for level in written["levels"]] == [1, 2]
    assert written["levels"][0]["latency_ms"]["p50"] > 0
    assert (tmp_path / "out-latency.png").read_bytes().startswith(b"\x89PNG")
    assert "Latency by percentile" in (tmp_path / "out-latency.svg").read_text()

"""States on a GPU: the bits of the host's table, no trace after they are closed, two processes."""

import json
import subprocess
import sys
from contextlib import ExitStack
from subprocess import PIPE

import numpy as np
import pytest
from conftest import ROOT, skip_unless_it_runs
from slotted import CAPACITY, LARGE, SPECS, Opener, filled, play, same, state, worst

from looprnn import parity
from looprnn.errors import EngineError

pytestmark = pytest.mark.gpu


@pytest.fixture
def on_gpu(request, tmp_path):
    skip_unless_it_runs("fused", request)
    with ExitStack() as closing:
        yield Opener("fused", "device", tmp_path, closing)


@pytest.mark.parametrize("name", [*SPECS, *LARGE])
def test_the_gpus_slots_and_the_hosts_are_the_same_bits(on_gpu, name):
    one = (SPECS | LARGE)[name]
    device, host = on_gpu(one), on_gpu(one, "host")
    for seed in range(5):
        found, want = (play(states, one, seed) for states in (device, host))
        assert parity.agrees(worst(one, found), one.precision)
        for row, other in zip(found, want, strict=True):
            assert np.array_equal(np.concatenate(row["got"]), np.concatenate(other["got"]))
            assert same(row["last"], other["last"])


@pytest.mark.parametrize("name", LARGE)
def test_no_step_changes_no_bit_though_the_engine_rounds(on_gpu, name):
    one = LARGE[name]
    states = on_gpu(one)
    found = filled(states, one)
    want = np.random.default_rng(3).standard_normal((1, *one.state_dims("h")), np.float32)
    np.testing.assert_array_equal(found[3]["h_n"], want[0])
    assert all(same(found[k], state(states, one, k)) for k in range(CAPACITY))


def test_whole_sequences_between_the_chunks_change_no_slot(on_gpu):
    one = LARGE["stack"]
    session = on_gpu.session(one)
    inputs = parity.draw_inputs(one, 3, 5)
    want = session.run(inputs)
    with session.states(CAPACITY) as states:
        before = filled(states, one)
        again = session.run(inputs)
        assert all(np.array_equal(want[name], again[name]) for name in want)
        assert all(same(before[k], state(states, one, k)) for k in range(CAPACITY))


def test_slots_are_empty_again_when_they_are_opened_again(on_gpu):
    one = LARGE["stack"]
    session = on_gpu.session(one)
    for _ in range(3):
        with session.states(CAPACITY) as states:
            assert not any(a.any() for a in state(states, one, 2).values())
            filled(states, one)
            with pytest.raises(EngineError, match="keeps states already"):
                session.states(CAPACITY).__enter__()
        assert "table" not in session.gpu


def test_more_streams_than_the_gpu_holds_are_refused_in_words(on_gpu):
    one = LARGE["grid"]
    session = on_gpu.session(one)
    with pytest.raises(EngineError, match="MiB of GPU memory.*Lower capacity"):
        session.states(100_000_000).__enter__()
    assert "table" not in session.gpu
    with session.states(CAPACITY) as states:
        assert parity.agrees(worst(one, play(states, one)), one.precision)


TWO = """
import json, sys
from pathlib import Path
import numpy as np
from looprnn import engines, parity
from looprnn.spec import RNNSpec
path, about, result = map(Path, sys.argv[1:])
spec = RNNSpec.from_network_dict(json.loads(about.read_text()))
rows, steps = spec.profile.batch.max, spec.profile.time.max
inputs = parity.draw_inputs(spec, rows, steps, 1)
slots, found = list(range(rows)), []
with engines.get("fused").session(path, spec) as session, session.states(rows) as states:
    print("open", flush=True)
    sys.stdin.readline()
    for again in range(30):
        begin = [rows] * rows
        for chunk in range(10):
            last = states.run(inputs, ["h_n", "c_n"], begin, slots)
            begin = slots
        found.append(last["c_n"])
assert all(np.array_equal(found[0], other) for other in found)
np.save(result, found[0])
"""


@pytest.mark.parametrize("name", ["stack", "grid"])
def test_streams_of_two_processes_on_one_gpu_both_get_through(on_gpu, tmp_path, name):
    one, files = LARGE[name], [tmp_path / f"{k}.npy" for k in range(2)]
    on_gpu.session(one)  # builds it
    (tmp_path / "about").write_text(json.dumps(one.network_dict()))
    command = [sys.executable, "-c", TWO, str(tmp_path / "engine"), str(tmp_path / "about")]
    both = [
        subprocess.Popen([*command, str(file)], stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT)
        for file in files
    ]
    try:
        assert [process.stdout.readline() for process in both] == ["open\n", "open\n"]
        for process in both:
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in both:
            process.communicate(timeout=120)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert [process.returncode for process in both] == [0, 0]
    assert np.array_equal(*map(np.load, files))


LOST = """
import json, os, sys
from pathlib import Path
from looprnn import engines, parity
from looprnn.errors import CudaLost
from looprnn.spec import RNNSpec
path, about = map(Path, sys.argv[1:])
spec = RNNSpec.from_network_dict(json.loads(about.read_text()))
with engines.get("fused").session(path, spec) as session, session.states(1) as states:
    session.addresses["table"] = 256  # where nothing is
    try:
        states.run(parity.draw_inputs(spec, 1, 1), [], [0], [0])
    except CudaLost as error:
        print(error, flush=True)
        os._exit(7)  # nothing can be freed in order any more
"""


def test_a_gpu_that_fails_is_told_from_a_run_that_does(on_gpu, tmp_path):
    """See watchdog.py: the process must end."""
    one = LARGE["stack"]
    on_gpu.session(one)  # builds it
    (tmp_path / "about").write_text(json.dumps(one.network_dict()))
    command = [sys.executable, "-c", LOST, str(tmp_path / "engine"), str(tmp_path / "about")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 7, answer.stderr
    assert "must start anew" in answer.stdout

"""States that last from one run to the next: in host memory, on a GPU, and the GPU's kernels, their
own text, on a CPU. One body for all of them.
"""

from contextlib import ExitStack

import cuda_on_cpu
import numpy as np
import pytest
from conftest import cannot_run_here
from fused_mutants import mutate
from slotted import CAPACITY, SPECS, Opener, filled, one_step, play, same, state, worst

from looprnn import parity

KINDS = [
    ("onnxruntime", "host"),
    pytest.param(
        ("fused", "kernels"),
        marks=pytest.mark.skipif(cuda_on_cpu.missing() is not None, reason="no g++ here"),
    ),
    pytest.param(("fused", "host"), marks=pytest.mark.gpu),
    pytest.param(("fused", "device"), marks=pytest.mark.gpu),
]


@pytest.fixture(params=KINDS, ids=lambda p: f"{p[0]}_{p[1]}")
def opened(request, tmp_path):
    engine, kind = request.param
    reason = None if kind == "kernels" else cannot_run_here(engine)
    if reason and request.config.getoption("--require") != engine:
        pytest.skip(reason)
    with ExitStack() as closing:
        yield Opener(engine, kind, tmp_path, closing)


@pytest.mark.parametrize("name", SPECS)
def test_streams_cut_and_interleaved_at_will_are_the_whole_sequences(opened, name):
    one = SPECS[name]
    assert parity.agrees(worst(one, play(opened(one), one)))


def test_a_state_goes_in_and_out_to_the_last_bit(opened):
    one = SPECS["two_layers"]
    states = opened(one)
    found = filled(states, one)
    assert all(same(found[k], state(states, one, k)) for k in range(CAPACITY))
    want = np.random.default_rng(2).standard_normal((1, *one.state_dims("h")), np.float32)
    np.testing.assert_array_equal(found[2]["h_n"], want[0])
    assert not same(found[2], found[3])


def test_beyond_the_last_slot_lies_what_the_spec_begins_with(opened):
    one = SPECS["two_layers"]
    found = state(opened(one), one, CAPACITY)
    np.testing.assert_array_equal(found["h_n"], np.full((2, 11), 0.25, np.float32))
    np.testing.assert_array_equal(found["c_n"], np.full((2, 11), -0.5, np.float32))


def test_a_row_changes_its_own_slot_alone(opened):
    one = SPECS["two_layers"]
    states = opened(one)
    before = filled(states, one)
    inputs = {"input": np.repeat(one_step(one), 3, axis=0), "lengths": np.ones(3, np.int32)}
    outputs = states.run(inputs, ["h_n"], [4, 1, CAPACITY], [4, -1, 0])
    after = [state(states, one, slot) for slot in range(CAPACITY)]
    changed = [k for k in range(CAPACITY) if not same(before[k], after[k])]
    assert changed == [0, 4]
    for row, slot in ((0, 4), (2, 0)):
        np.testing.assert_array_equal(after[slot]["h_n"], outputs["h_n"][row])


def test_a_run_that_fails_leaves_every_slot_as_it_was(opened):
    one = SPECS["ids"]
    states = opened(one)
    before = filled(states, one)
    good, bad = one_step(one), one_step(one, 9)  # beyond the vocabulary
    inputs = {"input": np.concatenate([good, bad, good]), "lengths": np.array([1, 1, 0], np.int32)}
    with pytest.raises(Exception, match=r"vocabulary|code 256|indices|idx"):
        states.run(inputs, ["output", "h_n"], [0, 1, CAPACITY], [0, 1, 2])
    assert all(same(before[k], state(states, one, k)) for k in range(CAPACITY))
    inputs["input"] = np.concatenate([good] * 3)
    states.run(inputs, ["output"], [0, 1, CAPACITY], [0, 1, 2])
    after = [state(states, one, k) for k in range(CAPACITY)]
    assert [k for k in range(CAPACITY) if not same(before[k], after[k])] == [0, 1, 2]


MUTANTS = [  # of slots.cu
    ("o.begin[b] * (long long)width", "o.begin[b] * (long long)o.H"),
    ("(is_c ? o.c_0 : o.h_0)[at]", "(is_c ? o.c : o.h_0)[at]"),
    ("(is_c ? o.c : o.h) + at", "o.h + at"),
    ("|| *o.failed", ""),
    ("o.lengths[e.b] == 0", "true"),
    ("o.end[e.b] >= 0", "o.end[e.b] > 0"),
    ("* (long long)e.width + e.k] = *e.now", "* (long long)e.width + e.k] = e.first"),
]
BODIES = [
    test_a_state_goes_in_and_out_to_the_last_bit,
    test_a_row_changes_its_own_slot_alone,
    test_a_run_that_fails_leaves_every_slot_as_it_was,
]


@pytest.mark.skipif(cuda_on_cpu.missing() is not None, reason="no g++ here")
@pytest.mark.parametrize(("right", "wrong"), MUTANTS)
def test_a_wrong_kernel_is_noticed(right, wrong, monkeypatch, tmp_path):
    mutate(monkeypatch, "slots.cu", right, wrong)
    opened = Opener("fused", "kernels", tmp_path, None)
    noticed = []
    for body in BODIES:
        try:
            body(opened)
        except BaseException:  # pytest's own failures are no Exception
            noticed.append(body)
    assert noticed

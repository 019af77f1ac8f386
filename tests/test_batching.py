"""Every row runs once, padding stays within its bound, and each request gets its own steps back."""

import dataclasses

import numpy as np
import pytest
from conftest import VARIANTS
from hypothesis import given
from hypothesis import strategies as st

from looprnn import batching
from looprnn.batching import MOST_WASTE, Batch, Piece, plan
from looprnn.parity import draw_inputs
from looprnn.spec import Profile, Range

MOST_ROWS, MOST_STEPS = 4, 9
PROFILE = Profile(batch=Range(1, 2, MOST_ROWS), time=Range(1, 4, MOST_STEPS))
# With lengths: ids and a head at every step; a head on h_n; without lengths, and with two states.
SPECS = {
    name: dataclasses.replace(VARIANTS[name], profile=PROFILE)
    for name in ("tokens", "padded_gru", "bilstm")
}
SIZES = st.lists(st.tuples(st.integers(1, 11), st.integers(1, MOST_STEPS)), min_size=1, max_size=9)


def run_engine(spec, inputs):
    """A stand-in whose every output depends on every input of its row, and on no other row.

    It is strict where an engine is not: what stands past a row's own steps must be 0.
    """
    x = inputs["input"].astype(np.float64)
    rows, time = x.shape[:2]
    sums = x.reshape(rows, time, -1).sum(axis=2)
    for state in spec.states:
        sums += inputs[f"{state}_0"].reshape(rows, -1).sum(axis=1, keepdims=True)
    if spec.lengths:
        past = np.arange(time) >= inputs["lengths"][:, np.newaxis]
        sums += inputs["lengths"][:, np.newaxis]
        sums[past] = 0
    answers = {}
    for position, (name, shape) in enumerate(spec.shapes(rows, time).items()):
        if name in spec.output_names:
            every_step = shape[1:2] == (time,) and name not in ("h_n", "c_n")
            every_step &= name != "head" or spec.head.on == "output"
            value = sums if every_step else sums.sum(axis=1)
            axes = tuple(range(value.ndim, len(shape)))
            answers[name] = np.broadcast_to(np.expand_dims(value, axes) + position, shape)
    return answers


def drawn(spec, sizes):
    """A request of each size; some bring lengths, some states, each all of them or none."""
    requests = []
    for k, (rows, time) in enumerate(sizes):
        every = draw_inputs(spec, rows, time, seed=k)
        kept = {"lengths": k % 2 == 0, "h_0": k % 3 == 0, "c_0": k % 3 == 0}
        requests.append({name: x for name, x in every.items() if kept.get(name, True)})
    return requests


def alone(spec, request):
    rows, time = request["input"].shape[:2]
    return run_engine(spec, spec.defaults(rows, time) | request)


def served(spec, requests, plan=plan, batch=Batch):
    """Each request's answer from padded runs."""
    sizes = [request["input"].shape[:2] for request in requests]
    parts = [[] for _ in requests]
    buffers = batch(spec)
    for run in plan(sizes, MOST_ROWS, MOST_WASTE if spec.lengths else 0):
        inputs = buffers.fill(requests, run)
        rows, time = inputs["input"].shape[:2]
        assert {n: a.shape for n, a in inputs.items()} == {
            n: s for n, s in spec.shapes(rows, time).items() if n in spec.input_names
        }
        assert all(a.flags.c_contiguous and a.dtype == spec.dtype(n) for n, a in inputs.items())
        for (k, _), place in zip(run, batching.places(run), strict=True):
            assert not inputs["input"][place, sizes[k][1] :].any(), "padding is not 0"
        for k, share in buffers.shares(run_engine(spec, inputs), requests, run):
            parts[k].append(share)
    return [{n: np.concatenate([p[n] for p in part]) for n in part[0]} for part in parts]


def assert_as_alone(spec, requests, answers):
    for request, answer in zip(requests, answers, strict=True):
        want = alone(spec, request)
        assert answer.keys() == want.keys()
        for name in want:
            np.testing.assert_array_equal(answer[name], want[name], err_msg=name)


def assert_within_bounds(sizes, runs, most_waste):
    rows = sorted((k, row) for run in runs for k, own in run for row in range(own.start, own.stop))
    assert rows == [(k, row) for k, (count, _) in enumerate(sizes) for row in range(count)]
    for run in runs:
        times = [sizes[k][1] for k, own in run for _ in range(own.start, own.stop)]
        assert len(times) <= MOST_ROWS
        computed = len(times) * max(times)
        assert computed - sum(times) <= most_waste * computed


@given(sizes=SIZES, most_waste=st.sampled_from([0, MOST_WASTE, 0.5]))
def test_every_row_runs_once_and_padding_stays_within_the_bound(sizes, most_waste):
    assert_within_bounds(sizes, plan(sizes, MOST_ROWS, most_waste), most_waste)


@pytest.mark.parametrize("name", SPECS)
@given(sizes=SIZES)
def test_each_request_gets_what_it_gets_alone(name, sizes):
    requests = drawn(SPECS[name], sizes)
    assert_as_alone(SPECS[name], requests, served(SPECS[name], requests))


def test_only_requests_above_the_profile_are_cut():
    runs = plan([(3, 5), (9, 5), (1, 5), (2, 5)], MOST_ROWS)
    assert runs == [
        [Piece(0, slice(0, 3))],
        [Piece(1, slice(0, 4))],
        [Piece(1, slice(4, 8))],
        [Piece(1, slice(8, 9)), Piece(2, slice(0, 1)), Piece(3, slice(0, 2))],
    ]


def test_equal_requests_fill_a_run_and_unequal_ones_share_it_within_the_bound():
    assert [len(run) for run in plan([(1, 8)] * 9, MOST_ROWS)] == [4, 4, 1]
    assert [[k for k, _ in run] for run in plan([(2, 1), (1, 9), (1, 8), (1, 1)], MOST_ROWS)] == [
        [1, 2],
        [0, 3],
    ]
    assert [[k for k, _ in run] for run in plan([(1, 5), (1, 6), (1, 5)], MOST_ROWS, 0)] == [
        [1],
        [0, 2],
    ]


def test_a_run_of_one_request_is_not_copied():
    spec = SPECS["tokens"]
    requests = drawn(spec, [(3, 7)])
    (run,) = plan([(3, 7)], MOST_ROWS)
    inputs = Batch(spec).fill(requests, run)
    assert all(np.shares_memory(inputs[name], requests[0][name]) for name in spec.input_names)


def test_an_output_nobody_computed_is_in_no_share():
    spec = SPECS["tokens"]
    requests = drawn(spec, [(1, 3), (1, 3)])
    (run,) = plan([(1, 3), (1, 3)], MOST_ROWS)
    outputs = {"h_n": np.arange(2 * 10, dtype=np.float32).reshape(2, 2, 5)}
    shares = dict(Batch(spec).shares(outputs, requests, run))
    assert [share.keys() for share in shares.values()] == [{"h_n"}] * 2
    np.testing.assert_array_equal(shares[1]["h_n"], outputs["h_n"][1:])


# Requests of one run after another: cut, ragged, with and without lengths and states.
HARD = [(1, 1), (9, 7), (1, 9), (1, 8), (1, 1), (1, 9), (2, 2)]


class Mixed(Batch):
    """Answers in the order of arrival, though the rows were sorted."""

    def shares(self, outputs, requests, run):
        return super().shares(outputs, requests, sorted(run))


class Stale(Batch):
    """What an earlier batch left stands in the padding."""

    def _padded(self, given, where):
        padded = super()._padded(given, where)
        kept = self.__dict__.setdefault("before", np.ones_like(self._buffers["input"]))
        for place, x in zip(where, given, strict=True):
            steps = padded.shape[1]
            padded[place, x.shape[1] :] = kept[place, x.shape[1] : steps]
        return padded


class TooLong(Batch):
    """Every request is answered as many steps as its run has."""

    def shares(self, outputs, requests, run):
        longest = max((requests[k] for k, _ in run), key=lambda r: r["input"].shape[1])
        return super().shares(outputs, [longest] * len(requests), run)


class OthersLengths(Batch):
    """A request without lengths is taken to be as long as its run."""

    def _default(self, name, request):
        return self._spec.profile.time.max if name == "lengths" else super()._default(name, request)


class ForgottenStates(Batch):
    """Only the first request's states are read."""

    def _joined(self, name, requests, run):
        first = run[0].request
        kept = [
            r if k == first or name == "lengths" else {"input": r["input"]}
            for k, r in enumerate(requests)
        ]
        return super()._joined(name, kept, run)


class OneRowForAll(Batch):
    """A request that was cut runs its first rows again and again."""

    def fill(self, requests, run):
        again = [Piece(k, slice(0, rows.stop - rows.start)) for k, rows in run]
        return super().fill(requests, again)


def wasteful(sizes, most_rows, most_waste):
    return plan(sizes, most_rows, 1.0)


def forgetful(sizes, most_rows, most_waste):
    return plan([(min(rows, most_rows), time) for rows, time in sizes], most_rows, most_waste)


def unsorted(sizes, most_rows, most_waste):
    """Runs of whatever arrived next to each other."""
    pieces = sorted(piece for run in plan(sizes, most_rows, 0) for piece in run)
    return [pieces[k : k + 2] for k in range(0, len(pieces), 2)]


@pytest.mark.parametrize(
    "mutant", [Mixed, Stale, TooLong, OthersLengths, ForgottenStates, OneRowForAll]
)
def test_a_wrong_batch_is_noticed(mutant):
    requests = drawn(SPECS["tokens"], HARD)
    assert_as_alone(SPECS["tokens"], requests, served(SPECS["tokens"], requests))
    with pytest.raises((AssertionError, ValueError)):
        assert_as_alone(SPECS["tokens"], requests, served(SPECS["tokens"], requests, batch=mutant))


@pytest.mark.parametrize("mutant", [wasteful, forgetful, unsorted])
def test_a_wrong_plan_is_noticed(mutant):
    assert_within_bounds(HARD, plan(HARD, MOST_ROWS), MOST_WASTE)
    with pytest.raises(AssertionError):
        assert_within_bounds(HARD, mutant(HARD, MOST_ROWS, MOST_WASTE), MOST_WASTE)

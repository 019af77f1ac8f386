"""The slot table alone: no live stream gives way, nothing is lost or left behind, whatever order
chunks, failures, ends and pauses come in.
"""

import re

import pytest
from conftest import ROOT
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from looprnn.errors import StreamRefused, StreamUnknown
from looprnn.slots import SlotTable

TTL = 10.0


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def table(clock):
    return Table(capacity=3, ttl_s=TTL, clock=clock)


class Table(SlotTable):
    """With something in its slots."""

    def __init__(self, **options):
        super().__init__(**options)
        self.values = [None] * self.capacity


def chunk(table, stream, value=None, *, start=False, end=False):
    """One chunk that leaves `value` in its slot (or what was there); the value it began from."""
    slot = table.admit(stream, start=start, end=end)
    before = None if start else table.values[slot]
    if slot is not None:
        table.values[slot] = before if value is None else value
        table.keep(stream, slot, start=start)
    if end:
        table.end(stream)
    return before


def test_a_stream_finds_what_its_last_chunk_left(table):
    chunk(table, 1, 5, start=True)
    chunk(table, 2, 6, start=True)
    assert (chunk(table, 1, 7), chunk(table, 2), chunk(table, 1)) == (5, 6, 7)


def test_the_number_7_and_the_word_7_are_two_streams(table):
    chunk(table, 7, 1, start=True)
    chunk(table, "7", 2, start=True)
    assert (chunk(table, 7), chunk(table, "7"), len(table)) == (1, 2, 2)


def test_a_start_beyond_capacity_is_refused_and_every_live_stream_is_left_as_it_was(table, clock):
    for k in range(3):
        chunk(table, k, k, start=True)
    clock.now += TTL  # as old as may be, and not a moment older
    with pytest.raises(StreamRefused, match="^stream refused: capacity: 3 streams live"):
        table.admit(9, start=True, end=False)
    assert table.refused == 1
    assert [chunk(table, k) for k in range(3)] == [0, 1, 2]
    with pytest.raises(StreamUnknown):
        chunk(table, 9)


def test_an_end_makes_room(table):
    for k in range(3):
        chunk(table, k, k, start=True)
    assert chunk(table, 1, end=True) == 1
    chunk(table, 9, 9, start=True)
    assert [chunk(table, k) for k in (0, 9, 2)] == [0, 9, 2]


def test_a_full_table_makes_room_of_what_expired_alone(table, clock):
    chunk(table, "old", 1, start=True)
    clock.now += TTL
    chunk(table, "young", 2, start=True)
    chunk(table, "third", 3, start=True)
    clock.now += 1
    chunk(table, "new", 4, start=True)
    assert (table.expired, len(table)) == (1, 3)
    assert [chunk(table, k) for k in ("young", "third", "new")] == [2, 3, 4]


def test_a_chunk_in_hand_keeps_its_slot_though_its_stream_is_past_its_time(table, clock):
    """Its state is still there and Triton let the chunk through: the START beside it must wait."""
    for k in range(3):
        chunk(table, k, k, start=True)
    clock.now += 2 * TTL
    slots = {table.admit(0, start=False, end=False)}
    slots |= {table.admit(k, start=True, end=False) for k in (8, 9)}
    assert len(slots) == 3
    with pytest.raises(StreamRefused):
        table.admit(10, start=True, end=False)


def test_a_start_on_a_live_stream_takes_its_slot_and_counts(table):
    chunk(table, 1, 5, start=True)
    assert chunk(table, 1, 6, start=True) is None
    assert (chunk(table, 1), table.reset, len(table)) == (6, 1, 1)


def test_a_start_that_came_to_nothing_leaves_a_live_stream_as_it_was(table):
    chunk(table, 1, 5, start=True)
    table.drop(1, table.admit(1, start=True, end=False))
    assert (chunk(table, 1), table.reset) == (5, 0)


def test_starts_that_came_to_nothing_take_no_room(table):
    for k in range(10):
        table.drop(k, table.admit(k, start=True, end=False))
    for k in range(3):
        chunk(table, k, k, start=True)
    assert len(table) == 3


def test_a_stream_of_one_chunk_needs_no_slot(table):
    for k in range(3):
        chunk(table, k, k, start=True)
    assert chunk(table, "one", 1, start=True, end=True) is None
    assert len(table) == 3


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (42, "stream 42: unknown: it never started, has ended, or the model was loaded anew"),
        ("a b", "stream 'a b': unknown"),
    ],
)
def test_an_unknown_stream_is_told_what_to_send(table, stream, words):
    with pytest.raises(StreamUnknown, match=f"^{words}.*Send START"):
        chunk(table, stream)


def test_an_expired_stream_is_told_so_until_it_starts_again(table, clock):
    chunk(table, 42, 1, start=True)
    clock.now += TTL + 1
    table.sweep()
    with pytest.raises(StreamUnknown, match="^stream 42: expired after 10 s.*Send START"):
        chunk(table, 42)
    chunk(table, 42, 2, start=True)
    chunk(table, 42, end=True)
    with pytest.raises(StreamUnknown, match="^stream 42: unknown"):
        chunk(table, 42)


def test_the_words_are_those_of_the_docs(table, clock):
    """docs/streams.md says what each of them means and what to do."""
    page = (ROOT / "docs/streams.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `(stream .+?)` \|", page, re.MULTILINE)
    said = []

    def ask(stream, **flags):
        with pytest.raises((StreamRefused, StreamUnknown)) as caught:
            chunk(table, stream, 1, **flags)
        said.append(str(caught.value))

    for k in (1, 2, 3):
        chunk(table, k, k, start=True)
    ask(4, start=True)
    ask(42)
    chunk(table, 1, end=True)
    chunk(table, 42, 1, start=True)
    clock.now += TTL + 1
    table.sweep()
    ask(42)
    for words, prefix in zip(said, explained, strict=True):
        assert words.startswith(prefix)


def test_what_is_remembered_of_expired_streams_is_bounded(table, clock):
    for k in range(100):
        chunk(table, k, k, start=True)
        clock.now += TTL + 1
        table.sweep()
    assert (table.expired, len(table), len(table._gone)) == (100, 0, 3)


class AnyOrder(RuleBasedStateMachine):
    """The table beside a dictionary of what each stream last left."""

    streams = st.integers(1, 6)

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.table = Table(capacity=3, ttl_s=TTL, clock=self.clock)
        self.truth, self.used, self.value = {}, {}, 0

    def expire(self):
        for stream in [k for k, t in self.used.items() if t < self.clock.now - TTL]:
            del self.truth[stream], self.used[stream]

    @rule(stream=streams, start=st.booleans(), end=st.booleans())
    def send(self, stream, start, end):
        self.value += 1
        if stream not in self.truth and start and not end and len(self.truth) == 3:
            self.expire()  # only now: what is past its time lives on while nobody needs its room
            if len(self.truth) == 3:
                with pytest.raises(StreamRefused):
                    chunk(self.table, stream, self.value, start=start, end=end)
                return
        if stream not in self.truth and not start:
            with pytest.raises(StreamUnknown):
                chunk(self.table, stream, self.value, end=end)
            return
        got = chunk(self.table, stream, self.value, start=start, end=end)
        assert got == (None if start else self.truth[stream])
        self.truth[stream], self.used[stream] = self.value, self.clock.now
        if end:
            del self.truth[stream], self.used[stream]

    @rule(stream=streams, start=st.booleans())
    def fail(self, stream, start):
        if stream in self.truth:
            self.table.drop(stream, self.table.admit(stream, start=start, end=False))
            self.used[stream] = self.clock.now

    @rule(seconds=st.sampled_from([1.0, TTL, TTL + 1]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule()
    def sweep(self):
        self.table.sweep()
        self.expire()

    @invariant()
    def nothing_is_lost_or_left_behind(self):
        assert set(self.table._live) == set(self.truth)
        taken = [slot for slot, _ in self.table._live.values()]
        assert sorted(taken + self.table._free) == [0, 1, 2]


TestAnyOrder = AnyOrder.TestCase

"""The stream model alone: streams cut and interleaved at will are the whole sequences, and each
way to get that wrong is noticed.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_triton_double import CAPACITY, END, START, play

from looprnn.slots import SlotTable
from looprnn.states import HostStates


@st.composite
def scripts(draw):
    """Streams of random chunks, interleaved at random, at most CAPACITY of them at a time."""
    waiting = list(range(1, draw(st.integers(1, 12)) + 1))
    left, script = {}, []
    while waiting or left:
        while waiting and len(left) < CAPACITY:
            left[waiting.pop()] = [draw(st.integers(1, 4)), True]
        ready = draw(st.lists(st.sampled_from(sorted(left)), min_size=1, unique=True))
        together = []
        for stream in ready:
            chunks, first = left[stream]
            last = chunks == 1
            flags = (START if first else 0) | (END if last else 0)
            together.append((stream, draw(st.integers(1, 9)), flags))
            left[stream] = [chunks - 1, False]
            if last:
                del left[stream]
        script.append(together)
    return script


@given(script=scripts())
def test_streams_cut_and_interleaved_at_will_are_the_whole_sequences(load_stream_model, script):
    model = load_stream_model()
    assert play(model, script)
    assert len(model._table) == 0


# Mutants


def nothing_scattered(patch, model):
    patch.setattr(HostStates, "_scatter", lambda self, outputs, end: None)


def rows_permuted(patch, model):
    right = HostStates._scatter
    patch.setattr(HostStates, "_scatter", lambda self, out, end: right(self, out, end[::-1]))


def rows_permuted_going_in(patch, model):
    right = HostStates._gather
    patch.setattr(HostStates, "_gather", lambda self, x, begin: right(self, x, begin[::-1]))


def start_ignored(patch, model):
    """The first chunk goes on from what the slot's last stream left."""
    right = type(model)._admit

    def admit(self, request):
        chunk = right(self, request)
        chunk.start = False
        return chunk

    patch.setattr(type(model), "_admit", admit)


def end_frees_nothing(patch, model):
    patch.setattr(SlotTable, "end", lambda self, stream: None)


ROUND_ROBIN = [
    [(s, 3, START) for s in (1, 2, 3)],
    [(s, n, 0) for s, n in ((3, 2), (1, 3), (2, 3))],
    [(2, 1, END), (3, 1, 0), (1, 2, END)],
    [(s, 1, START) for s in (4, 5, 6, 7)],
    [(s, 2, END) for s in (7, 3, 6, 5, 4)],
    [(8, 4, START)],
]


def test_the_round_robin_is_right(model):
    assert play(model, ROUND_ROBIN)


@pytest.mark.parametrize(
    "mutant",
    [nothing_scattered, rows_permuted, rows_permuted_going_in, start_ignored, end_frees_nothing],
)
def test_the_round_robin_notices(model, monkeypatch, mutant):
    mutant(monkeypatch, model)
    assert not play(model, ROUND_ROBIN)

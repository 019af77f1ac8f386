"""The stream model alone: which streams are let in, how long they live, and what is counted."""

import threading

import numpy as np
from stream_triton_double import (
    CAPACITY,
    END,
    START,
    Chunk,
    hidden,
    play,
    refused,
    steps,
    truth,
)
from triton_double import MetricFamily

from looprnn.slots import SlotTable


def full(model):
    """Whether a START beyond capacity is refused, and every live stream then goes on."""
    every = range(1, CAPACITY + 1)
    assert play(model, [[(s, 2, START) for s in every]])
    (answer,) = model.execute([Chunk(9, steps(9, 1), START)])
    lives = [model.execute([Chunk(s, steps(s, 1, 2))])[0] for s in every]
    went_on = all(
        answer.error is None and hidden(answer) == truth(s, 3)[2]
        for s, answer in zip(every, lives, strict=True)
    )
    return bool(answer.error) and went_on and answer.error.code == "UNAVAILABLE"


def test_a_start_beyond_capacity_is_refused_and_no_live_stream_gives_way(model):
    assert full(model)


def a_live_stream_gives_way(patch, model):
    right = SlotTable.admit

    def admit(self, stream, *, start, end):
        if start and stream not in self._live and not self._free:
            self.end(next(iter(self._live)))
        return right(self, stream, start=start, end=end)

    patch.setattr(SlotTable, "admit", admit)


def test_a_model_in_which_one_gives_way_is_noticed(model, monkeypatch):
    a_live_stream_gives_way(monkeypatch, model)
    assert not full(model)


def test_a_start_on_a_live_stream_resets_and_counts(model):
    model.execute([Chunk(1, steps(1, 3), START)])
    (answer,) = model.execute([Chunk(1, steps(1, 2), START)])
    np.testing.assert_array_equal(hidden(answer), truth(1, 2))
    assert (model._table.reset, len(model._table)) == (1, 1)


def test_an_end_frees(model):
    model.execute([Chunk(1, steps(1, 3), START)])
    model.execute([Chunk(1, steps(1, 1, 3), END)])
    (answer,) = model.execute([Chunk(1, steps(1, 1, 4))])
    assert refused(answer).startswith("stream 1: unknown: ")
    assert answer.error.code == "INVALID_ARG"
    assert len(model._table) == 0


def test_a_stream_of_one_chunk_is_answered_even_where_no_slot_is_free(model):
    model.execute([Chunk(s, steps(s, 1), START) for s in range(1, CAPACITY + 1)])
    (answer,) = model.execute([Chunk(9, steps(9, 4), START | END)])
    np.testing.assert_array_equal(hidden(answer), truth(9, 4))


def test_a_state_outlives_tritons_interest_in_its_stream(model):
    """Or one that waits in the queue could be let through by Triton and find its state gone."""
    assert model._table.ttl_s >= 2 * 1000


def test_a_stream_that_expired_is_told_so(model):
    model.execute([Chunk(1, steps(1, 1), START)])
    model._table._clock = lambda: float("inf")
    model._sweep()
    (answer,) = model.execute([Chunk(1, steps(1, 1, 1))])
    assert refused(answer).startswith("stream 1: expired after 2000 s without a chunk. Send START")
    assert answer.error.code == "INVALID_ARG"


def test_metrics_say_what_became_of_the_streams(model):
    every = range(1, CAPACITY + 1)
    model.execute([Chunk(s, steps(s, 1), START) for s in every])
    model.execute([Chunk(9, steps(9, 1), START), Chunk(1, steps(1, 1), START)])
    model.execute([Chunk(2, steps(2, 1), END)])
    model._table._clock = lambda: float("inf")
    model._sweep()
    values = {name: v for (name, *_), v in MetricFamily.values.items() if "streams" in name}
    assert values == {
        "looprnn_streams_live": 0,
        "looprnn_streams_expired_total": CAPACITY - 1,
        "looprnn_streams_refused_total": 1,
        "looprnn_streams_reset_total": 1,
    }


def test_the_sweeper_needs_no_traffic(load_stream_model, monkeypatch):
    swept = threading.Event()
    monkeypatch.setattr(SlotTable, "sweep", lambda self: swept.set())
    load_stream_model()
    assert swept.wait(30)


def test_finalize_ends_the_sweeper(load_stream_model):
    before = threading.active_count()
    model = load_stream_model()
    assert threading.active_count() > before
    model.finalize()
    assert threading.active_count() == before

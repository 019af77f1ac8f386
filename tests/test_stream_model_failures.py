"""The stream model alone: what goes wrong leaves the states as they were."""

import numpy as np
import pytest
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

from looprnn.errors import EngineError

BAD = {
    "nan": ({"input": np.full((1, 1, 7), np.nan, np.float32)}, "bad input: input holds nan"),
    "two_rows": ({"input": np.zeros((2, 1, 7), np.float32)}, "bad input: input has B = 2 rows"),
    "too_long": ({"input": np.zeros((1, 65, 7), np.float32)}, "bad input: input has T = 65 steps"),
    "states": ({"h_0": np.zeros((1, 1, 5), np.float32)}, "bad input: h_0 without START"),
    "length": ({"lengths": np.array([[2]], np.int32)}, "bad input: lengths holds 2 at [0]"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_chunk_is_refused_and_the_stream_goes_on(model, bad):
    change, words = BAD[bad]
    model.execute([Chunk(s, steps(s, 3), START) for s in (1, 2)])
    x = change.get("input", steps(1, 1, 3))
    wrong = Chunk(1, x, **{name: a for name, a in change.items() if name != "input"})
    answer, other = model.execute([wrong, Chunk(2, steps(2, 1, 3))])
    assert refused(answer).startswith(words)
    assert hidden(other) == truth(2, 4)[3]
    (answer,) = model.execute([Chunk(1, steps(1, 1, 3))])
    assert hidden(answer) == truth(1, 4)[3]


def test_a_bad_start_begins_nothing(model):
    nan = np.full((1, 1, 7), np.nan, np.float32)
    model.execute([Chunk(1, nan, START)])
    (answer,) = model.execute([Chunk(1, steps(1, 1))])
    assert refused(answer).startswith("stream 1: unknown")


@pytest.mark.parametrize("fails", ["input", "engine"])
def test_an_end_frees_whatever_becomes_of_its_chunk(model, fails):
    """Triton has forgotten the stream: nobody could reach its state."""
    model.execute([Chunk(1, steps(1, 3), START)])
    model._session.fails = fails == "engine"
    x = steps(1, 1, 3) if fails == "engine" else np.full((1, 1, 7), np.nan, np.float32)
    (answer,) = model.execute([Chunk(1, x, END)])
    assert answer.error is not None
    assert len(model._table) == 0


def test_an_engine_that_fails_leaves_every_state_as_it_was(model):
    model.execute([Chunk(s, steps(s, 3), START) for s in (1, 2)])
    model._session.fails = True
    both = [Chunk(1, steps(1, 2, 3)), Chunk(2, steps(2, 1), START), Chunk(3, steps(3, 1), START)]
    for answer in model.execute(both):
        assert refused(answer) == "engine failed: out of memory"
        assert answer.error.code == "INTERNAL"
    model._session.fails = False
    one, two, three = model.execute([Chunk(s, steps(s, 1, 3)) for s in (1, 2, 3)])
    assert hidden(one) == truth(1, 4)[3]
    assert hidden(two) == truth(2, 4)[3]  # its START did not happen
    assert refused(three).startswith("stream 3: unknown")
    assert len(model._table) == 2


def test_failed_starts_take_no_slot(model):
    model._session.fails = True
    for s in range(1, 3 * CAPACITY):
        model.execute([Chunk(s, steps(s, 1), START)])
    model._session.fails = False
    assert play(model, [[(s, 1, START) for s in range(1, CAPACITY + 1)]])


def test_a_config_that_says_not_how_streams_are_kept_fails_the_load_in_words(load_stream_model):
    with pytest.raises(
        RuntimeError, match="^lstm_stream: .*python build_engines.py --variant lstm"
    ):
        load_stream_model(stream_capacity="many")


def test_states_that_cannot_be_had_fail_the_load_in_words(load_stream_model, monkeypatch):
    def none(*_):
        raise EngineError("states of 5 streams take 9 MiB. Lower capacity")

    monkeypatch.setattr("looprnn.states.HostStates", none)
    with pytest.raises(RuntimeError, match="^lstm_stream: states of 5 .*Lower capacity"):
        load_stream_model()

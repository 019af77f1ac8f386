"""The stream model alone: what a chunk may be, and which states it leaves behind."""

import numpy as np
from stream_triton_double import (
    END,
    START,
    Chunk,
    Session,
    export,
    hidden,
    play,
    state,
    steps,
    truth,
)


def test_chunks_of_many_streams_are_one_run(model):
    model.execute([Chunk(s, steps(s, 4), START) for s in (1, 2, 3)])
    model.execute([Chunk(s, steps(s, t, 4)) for s, t in ((1, 4), (2, 3), (3, 4))])
    assert model._session.runs == [(3, 4), (3, 4)]


def test_a_state_is_exported_without_a_step_and_restored_with_start(model):
    (answer,) = model.execute([Chunk(1, steps(1, 3), START)])
    h, c = export(model, 1)
    assert (h, c) == state(answer) == export(model, 1)
    states = {"h_0": np.full((1, 1, 5), h, np.float32), "c_0": np.full((1, 1, 5), c, np.float32)}
    export(model, 1, END)
    (answer,) = model.execute([Chunk("moved", steps(1, 2, 3), START, **states)])
    np.testing.assert_array_equal(hidden(answer), truth(1, 5)[3:])


def test_a_state_is_restored_without_a_step_too(model):
    states = {"h_0": np.full((1, 1, 5), 7, np.float32), "c_0": np.full((1, 1, 5), 8, np.float32)}
    none = np.zeros((1, 1), np.int32)
    (answer,) = model.execute([Chunk(1, steps(1, 1), START, lengths=none, **states)])
    assert state(answer) == export(model, 1) == (7, 8)


def test_no_step_changes_no_bit_whatever_the_engine_rounds(load_stream_model):
    class Rounding(Session):
        def run(self, inputs, wanted=None):
            return {n: np.round(a, 1) for n, a in super().run(inputs, wanted).items()}

    model = load_stream_model(Rounding())
    third = np.full((1, 1, 5), 1 / 3, np.float32)
    none = np.zeros((1, 1), np.int32)
    model.execute([Chunk(1, steps(1, 1), START, lengths=none, h_0=third, c_0=third)])
    assert export(model, 1) == (third.flat[0], third.flat[0])


def test_steps_past_a_chunks_length_do_not_count(model):
    (answer,) = model.execute([Chunk(1, steps(1, 4), START, lengths=np.array([[2]], np.int32))])
    np.testing.assert_array_equal(hidden(answer), [*truth(1, 2), 0, 0])
    (answer,) = model.execute([Chunk(1, steps(1, 1, 2))])
    assert hidden(answer) == truth(1, 3)[2]


def test_two_chunks_of_one_stream_at_once_run_in_their_order(model):
    """Triton's Oldest does not send them so."""
    chunks = [(1, 2, START), (2, 2, START), (1, 3, 0), (1, 1, END), (2, 3, 0)]
    assert play(model, [chunks])
    assert len(model._session.runs) == 3


def test_only_what_is_asked_for_is_sent_and_states_are_kept_all_the_same(model):
    (answer,) = model.execute([Chunk(1, steps(1, 3), START, wanted=["output"])])
    assert set(answer.arrays) == {"output"}
    (answer,) = model.execute([Chunk(1, steps(1, 1, 3))])
    assert hidden(answer) == truth(1, 4)[3]


def test_the_warm_up_which_has_no_stream_is_answered_and_keeps_nothing(model):
    (answer,) = model.execute([Chunk(0, steps(0, 4))])
    assert answer.error is None
    assert len(model._table) == 0


def test_a_cancelled_chunk_that_came_so_far_is_run_whole(model):
    """Asked or not, at whatever moment: its state is that of after the chunk."""

    class Cancelled(Chunk):
        def is_cancelled(self):
            return True

    model.execute([Chunk(1, steps(1, 3), START)])
    model.execute([Cancelled(1, steps(1, 2, 3)), Chunk(2, steps(2, 2), START)])
    (answer,) = model.execute([Chunk(1, steps(1, 1, 5))])
    assert hidden(answer) == truth(1, 6)[5]

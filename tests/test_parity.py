"""The one comparison, watched going red."""

import numpy as np
import pytest

from looprnn import parity
from looprnn.errors import ParityError

TRUTH = np.linspace(-0.9, 0.9, 24).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("all_nan", np.full_like(TRUTH, np.nan)),
        ("one_nan", np.where(TRUTH[1, 2, 3] == TRUTH, np.nan, TRUTH)),
        ("all_zero", np.zeros_like(TRUTH)),
        ("off_by_twice_the_tolerance", TRUTH + 2e-5),
        ("infinite", TRUTH + np.inf),
        ("time_reversed", TRUTH[:, ::-1]),
    ],
)
def test_a_wrong_answer_does_not_agree(name, got):
    assert not parity.agrees(parity.difference(got, TRUTH))


def test_the_truth_in_float32_agrees():
    assert parity.agrees(parity.difference(TRUTH.astype(np.float32), TRUTH))


def test_a_large_last_step_does_not_hide_an_error_in_the_first():
    want = np.array([[[12.0, 12.0], [1717.0, 1717.0]]])
    got = want + np.array([[[0.001], [0.0]]])
    assert not parity.agrees(parity.difference(got, want))


def test_another_shape_is_an_error_not_a_broadcast():
    with pytest.raises(ParityError, match=r"\[2, 3, 1\].*\[2, 3, 4\]"):
        parity.difference(TRUTH[..., :1], TRUTH)


def test_an_overflowed_reference_is_not_a_passing_test():
    with pytest.raises(ParityError, match="overflowed"):
        parity.difference(TRUTH, np.where(TRUTH > 0.8, np.inf, TRUTH))

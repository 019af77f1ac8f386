"""Weights: read whole or refused, and gates that keep their names."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from looprnn import reference, weights
from looprnn.errors import WeightsError
from looprnn.spec import Layer, RNNSpec, WeightSource


def spec_from(path=None, **source) -> RNNSpec:
    source = WeightSource(file=path, **source)
    layer = Layer(cell="lstm", hidden_size=2)
    return RNNSpec(name="w", input_size=3, layers=(layer,), weights=source)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return dict(weights.load_weights(spec_from(seed=1)))


def test_a_file_gives_back_what_was_saved(tmp_path, arrays):
    weights.save_weights(tmp_path / "w.safetensors", arrays)
    again = weights.load_weights(spec_from(tmp_path / "w.safetensors"))
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    assert weights.digest(again) == weights.digest(arrays)


def test_half_precision_files_are_widened(tmp_path, arrays):
    save_file({n: a.astype(np.float16) for n, a in arrays.items()}, tmp_path / "w.safetensors")
    again = weights.load_weights(spec_from(tmp_path / "w.safetensors"))
    assert {a.dtype for a in again.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("bias_hh_l0"), "needs bias_hh_l0"),
        (lambda a: a.update(weight_hr_l0=np.zeros(2, np.float32)), "weight_hr_l0 not used by w"),
        (
            lambda a: a.update(weight_ih_l0=a["weight_ih_l0"].T),
            r"l0 is \[3, 8\], w needs \[8, 3\]. looprnn import \S+w.safetensors --name NAME",
        ),
        (lambda a: a.update(bias_ih_l0=np.zeros(8, np.int32)), "bias_ih_l0 is int32"),
        (
            lambda a: a.update(bias_ih_l0=np.full(8, np.nan, np.float32)),
            r"bias_ih_l0 holds NaN, Inf or a number beyond float32 at \[0\], 8 in all",
        ),
    ],
)
def test_what_does_not_fit_names_the_array_and_the_file(tmp_path, arrays, change, words):
    change(arrays)
    save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=words) as caught:
        weights.load_weights(spec_from(tmp_path / "w.safetensors"))
    assert "w.safetensors" in str(caught.value)
    assert ("import" in str(caught.value)) == ("needs" in words or "not used" in words)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x80\x04pickle", b"\x10" + b"\0" * 7 + b"{}"]
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable .safetensors file.* Copy it here again"):
        weights.load_weights(spec_from(path))
    path = path.rename(path.with_suffix(".pt"))
    with pytest.raises(WeightsError, match="Type: looprnn import .*w.pt --name NAME"):
        weights.load_weights(spec_from(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="gone.safetensors: no such weights file"):
        weights.load_weights(spec_from(tmp_path / "gone.safetensors"))


def test_reorder_moves_blocks_by_name():
    ifgo = np.repeat(np.array([10.0, 20.0, 30.0, 40.0]), 2)  # two rows a gate
    iofg = weights.reorder(ifgo, src="ifgo", dst="iofg")
    np.testing.assert_array_equal(iofg, [10, 10, 40, 40, 20, 20, 30, 30])
    np.testing.assert_array_equal(weights.reorder(iofg, src="iofg", dst="ifgo"), ifgo)


def test_reorder_refuses_other_gates_and_odd_sizes():
    with pytest.raises(WeightsError, match="not the same gates"):
        weights.reorder(np.zeros(8), src="ifgo", dst="rzn")
    with pytest.raises(WeightsError, match="6 rows"):
        weights.reorder(np.zeros(6), src="ifgo", dst="iofg")


def test_a_seed_is_reproducible_and_stays_in_its_range():
    one, two = (weights.load_weights(spec_from(seed=3)) for _ in range(2))
    assert weights.digest(one) == weights.digest(two)
    assert weights.digest(one) != weights.digest(weights.load_weights(spec_from(seed=4)))
    assert max(np.abs(a).max() for a in one.values()) <= 2**-0.5


def test_equal_bytes_in_another_array_are_another_digest(arrays):
    swapped = {**arrays, "bias_ih_l0": arrays["bias_hh_l0"], "bias_hh_l0": arrays["bias_ih_l0"]}
    assert weights.digest(swapped) != weights.digest(arrays)


def test_a_flipped_update_gate_is_ours_after_conversion():
    """h = z·n + (1 - z)·h with their weights is h = (1 - z)·n + z·h with the converted ones."""
    layer = Layer(cell="gru", hidden_size=3)
    spec = RNNSpec(name="g", input_size=2, layers=(layer,), weights=WeightSource(seed=5))
    theirs = weights.load_weights(spec)
    x, h = np.array([0.3, -0.8]), np.array([0.5, -0.2, 0.1])
    from_x, from_h = (
        theirs[f"weight_{k}_l0"].astype(np.float64) @ v + theirs[f"bias_{k}_l0"]
        for k, v in (("ih", x), ("hh", h))
    )
    r, z = (1 / (1 + np.exp(-(from_x + from_h)[rows])) for rows in (slice(3), slice(3, 6)))
    n = np.tanh(from_x[6:] + r * from_h[6:])
    ours = {name: weights.flip_update_gate(a) for name, a in theirs.items()}
    got = reference.run(spec, ours, {"input": x[None, None], "h_0": h[None, None]})
    np.testing.assert_allclose(got["h_n"][0, 0], z * n + (1 - z) * h, rtol=0, atol=1e-12)

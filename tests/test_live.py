"""The tritonserver, real sockets, both protocols: every variant against NumPy, and what it says to
bad input.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from conftest import VARIANTS
from looprnn_client import Client, UnknownModel
from tritonclient.utils import InferenceServerException

from looprnn import parity
from looprnn.weights import load_weights

pytestmark = pytest.mark.live
TIMEOUT_S = 30


def ask(url, spec, inputs):
    with Client(url, model=spec.name, timeout_s=TIMEOUT_S) as client:
        return arrays(
            spec, client.infer(inputs["input"], **{n: inputs[n] for n in inputs if n != "input"})
        )


def arrays(spec, result):
    return {name: getattr(result, name) for name in spec.output_names}


def assert_right(spec, inputs, got):
    full = {**spec.defaults(*inputs["input"].shape[:2]), **inputs}
    found = parity.differences(spec, load_weights(spec), full, got)
    assert all(parity.agrees(value) for value in found.values()), found
    assert {array.dtype for array in got.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("time", ["one", "typical", "longest"])
def test_parity(url, variant, time):
    limit = variant.profile.time
    steps = {"one": 1, "typical": limit.opt, "longest": limit.max}[time]
    inputs = parity.draw_inputs(variant, 2, steps, seed=steps)
    assert_right(variant, inputs, ask(url, variant, inputs))


def test_states_the_request_does_not_bring_are_the_specs(url, variant):
    inputs = {"input": parity.draw_inputs(variant, 3, 4)["input"]}
    assert_right(variant, inputs, ask(url, variant, inputs))


def test_the_largest_batch(url, variant):
    inputs = parity.draw_inputs(variant, variant.profile.batch.max, 2)
    assert_right(variant, inputs, ask(url, variant, inputs))


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("relu_rnn", {"output": [12, 67, 342, 1717], "h_n": [1717]}),
        (
            "lstm",
            {
                "output": [0.76158684, 0.96400476, 0.99504673, 0.99932283],
                "h_n": [0.99932283],
                "c_n": [3.999906],
            },
        ),
    ],
)
def test_the_seeds_numbers(url, name, printed):
    got = ask(url, VARIANTS[name], {"input": np.ones((3, 4, 7), np.float32)})
    for output, values in printed.items():
        want = np.broadcast_to(np.array(values, np.float32)[:, np.newaxis], got[output].shape)
        np.testing.assert_allclose(got[output], want, rtol=0, atol=1e-6)


def test_the_seeds_todo(url):
    got = ask(url, VARIANTS["bilstm"], {"input": np.ones((3, 4, 7), np.float32)})["output"]
    np.testing.assert_allclose(got[..., 5:], got[:, ::-1, :5], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["relu_rnn_random", "lstm_random"])
@pytest.mark.parametrize("cut", [1, 7, 15])
def test_a_sequence_cut_in_two_with_states_carried_is_the_whole(url, name, cut):
    spec = VARIANTS[name]
    inputs = parity.draw_inputs(spec, 2, 16)
    inputs.pop("lengths", None)  # every step counts
    whole = ask(url, spec, inputs)
    first = ask(url, spec, {**inputs, "input": inputs["input"][:, :cut]})
    carried = {f"{s}_0": first[f"{s}_n"] for s in spec.states}
    second = ask(url, spec, {**carried, "input": inputs["input"][:, cut:]})
    joined = np.concatenate([first["output"], second["output"]], axis=1)
    np.testing.assert_allclose(joined, whole["output"], rtol=0, atol=1e-6)
    for state in spec.states:
        np.testing.assert_allclose(second[f"{state}_n"], whole[f"{state}_n"], rtol=0, atol=1e-6)


def test_concurrent_clients_each_get_their_own_answer(server):
    """Equal and unequal lengths, both protocols and several models at once, so that batches
    form.
    """

    def one(k):
        spec = VARIANTS[("lstm_random", "bilstm", "tanh_rnn")[k % 3]]
        protocol = ("grpc", "http")[k % 2]
        inputs = parity.draw_inputs(spec, 1 + k % 3, (4, 4, 5)[k % 3], seed=k)
        return spec, inputs, ask(f"{protocol}://{getattr(server, protocol)}", spec, inputs)

    with ThreadPoolExecutor(16) as pool:
        for spec, inputs, got in pool.map(one, range(96)):
            assert_right(spec, inputs, got)


def raw(url, model, inputs, dtype="FP32"):
    """What a client without our checks sends; raises InferenceServerException."""
    scheme, address = url.split("://")
    triton = {"grpc": triton_grpc, "http": triton_http}[scheme]
    tensors = []
    for name, array in inputs.items():
        tensor = triton.InferInput(name, list(array.shape), dtype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    with triton.InferenceServerClient(address) as client:
        return client.infer(model, tensors)


def filled(*shape, value=0.0, dtype=np.float32):
    return np.full(shape, value, dtype)


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("wrong_rank", {"input": filled(1, 7)}, "input"),
        ("wrong_I", {"input": filled(1, 4, 6)}, "input"),
        ("T_0", {"input": filled(1, 0, 7)}, "T = 0"),
        (
            "T_over_the_profile",
            {"input": filled(1, 65, 7)},
            "T = 65 steps, this engine takes 1 to 64",
        ),
        ("batch_over_the_maximum", {"input": filled(9, 4, 7)}, "batch-size must be <= 8"),
        ("h_0_of_another_size", {"input": filled(1, 4, 7), "h_0": filled(1, 1, 4)}, "h_0"),
        ("h_0_of_another_batch", {"input": filled(2, 4, 7), "h_0": filled(1, 1, 5)}, "batch size"),
        ("nan", {"input": filled(1, 4, 7, value=np.nan)}, "holds nan at [0, 0, 0]"),
        ("inf", {"input": filled(1, 4, 7, value=np.inf)}, "holds inf at [0, 0, 0]"),
        ("no_input", {"h_0": filled(1, 1, 5)}, "input"),
        ("unknown_input", {"input": filled(1, 4, 7), "hidden": filled(1, 1, 5)}, "hidden"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_bad_input_is_refused_in_words_and_the_server_lives_on(url, name, inputs, words):
    with pytest.raises(InferenceServerException) as caught:
        raw(url, "lstm", inputs)
    assert words in caught.value.message()
    good = parity.draw_inputs(VARIANTS["lstm"], 2, 4)
    assert_right(VARIANTS["lstm"], good, ask(url, VARIANTS["lstm"], good))


def test_another_dtype_is_refused_in_words(url):
    with pytest.raises(InferenceServerException, match="FP64"):
        raw(url, "lstm", {"input": filled(1, 4, 7, dtype=np.float64)}, dtype="FP64")


def test_an_unknown_model_is_answered_with_the_known_ones(url):
    with (
        pytest.raises(UnknownModel, match="lstm_random"),
        Client(url, model="lstm_randon", timeout_s=TIMEOUT_S) as client,
    ):
        client.infer(filled(1, 4, 7))


def test_every_output_alone(url, variant):
    inputs = parity.draw_inputs(variant, 1, 3)
    whole = ask(url, variant, inputs)
    with Client(url, model=variant.name, timeout_s=TIMEOUT_S) as client:
        for name in variant.output_names:
            states = {n: inputs[n] for n in variant.input_names[1:]}
            alone = client.infer(inputs["input"], **states, outputs=[name])
            np.testing.assert_allclose(getattr(alone, name), whole[name], rtol=0, atol=1e-6)
            assert all(getattr(alone, n) is None for n in variant.output_names if n != name)

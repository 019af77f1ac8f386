"""silero-vad's LSTM, against its own ONNX model, whose states ONNX Runtime makes."""

import dataclasses
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import shared
import stream
from looprnn_client import Client
from real_weights import MUTANTS, SILENT, fetched, interpreted, opened

from looprnn import parity
from looprnn.importers import Imported
from looprnn.server import Server
from looprnn.spec import Profile, Range


@dataclasses.dataclass(frozen=True)
class Listened:
    """One checkpoint: what is imported from it, and what the package's model hears with it."""

    imported: Imported
    model: onnx.ModelProto
    heard: stream.Heard


@pytest.fixture(scope="module")
def silero_wheel():
    return fetched(stream.PACKAGE)


@pytest.fixture(scope="module")
def audio():
    return stream.sound(60)


@pytest.fixture(scope="module", params=stream.CHECKPOINTS, ids=lambda c: c.name)
def silero(request, silero_wheel, audio, tmp_path_factory):
    folder, checkpoint = tmp_path_factory.mktemp("silero"), request.param
    file, model = (
        shared.unpack(silero_wheel, f, folder) for f in (checkpoint.file, stream.STREAMING)
    )
    model = stream.streaming_model(model, file if checkpoint.replaces else None)
    heard = stream.listen(model, audio, SILENT)
    return Listened(stream.imported(checkpoint, file), model, heard)


def differs(session, heard, chunks=None):
    """The largest difference of any h and c after any chunk."""
    h, c = stream.stream(session, heard.features[:chunks], SILENT)
    return max(stream.largest(h, heard.h[:chunks]), stream.largest(c, heard.c[:chunks]))


def test_the_sound_wakes_the_model(silero):
    """States that never move would agree with anything."""
    assert len(silero.heard.h) == 1875
    assert silero.heard.probability.min() < 0.1 and silero.heard.probability.max() > 0.9
    assert np.abs(silero.heard.c).max() > 10 and np.ptp(silero.heard.h, axis=0).min() > 0.01


def test_a_minute_of_states_is_silero_vads(silero, tmp_path):
    with shared.built(silero.imported, tmp_path) as (session, _):
        h, c = stream.stream(session, silero.heard.features, SILENT)
    assert stream.largest(h, silero.heard.h) <= stream.TOLERANCE
    assert stream.largest(c, silero.heard.c) <= stream.TOLERANCE
    speech = stream.probability(silero.model, h)
    assert stream.largest(speech, silero.heard.probability) <= stream.TOLERANCE


def test_looking_inside_changes_nothing(silero_wheel, audio, tmp_path):
    """The package's default model, not even read by us, has the states of the one we look into."""
    asked = [
        shared.unpack(silero_wheel, stream.DATA + name, tmp_path)
        for name in ("silero_vad.onnx", "silero_vad_16k_op15.onnx")
    ]
    published = stream.listen(onnx.load(asked[0]), audio[: 10 * stream.RATE], SILENT)
    looked_into = stream.listen(stream.streaming_model(asked[1]), audio[: 10 * stream.RATE], SILENT)
    assert stream.largest(published.h, looked_into.h) <= 1e-6
    assert stream.largest(published.c, looked_into.c) <= 1e-5


def test_many_chunks_a_call_are_the_same_stream(silero, tmp_path):
    h = c = np.zeros((1, 1, 128), np.float32)
    outputs = []
    with opened(silero.imported, tmp_path) as session:
        for start in range(0, 1875, 50):
            x = silero.heard.features[np.newaxis, start : start + 50]
            answer = session.run({"input": x, "h_0": h, "c_0": c})
            h, c = answer["h_n"], answer["c_n"]
            outputs.append(answer["output"][0])
    assert stream.largest(np.concatenate(outputs), silero.heard.h) <= stream.TOLERANCE
    assert stream.largest(c[0, 0], silero.heard.c[-1]) <= stream.TOLERANCE


@pytest.mark.live
def test_a_minute_through_the_server_in_two_streams(silero, tmp_path):
    """One sound cut in two ways, chunk by chunk: every state is silero-vad's own."""
    profile = Profile(batch=Range(1, 2, 8), time=Range(1, 20, 64))
    spec = dataclasses.replace(silero.imported.spec, lengths=True, streaming=True, profile=profile)
    with shared.built(dataclasses.replace(silero.imported, spec=spec), tmp_path):
        pass  # it is there now; what answers is the server
    heard, x = silero.heard, silero.heard.features[np.newaxis]
    with ExitStack() as stack:
        server = stack.enter_context(Server(tmp_path / "model_repository"))
        client = stack.enter_context(Client(server.grpc, model=spec.name, timeout_s=60))
        both = {step: stack.enter_context(client.stream()) for step in (17, 64)}
        answers = {step: [] for step in both}
        for first in range(x.shape[1]):
            for step, of in both.items():
                if first % step == 0:
                    answers[step].append(of.send(x[:, first : first + step]))
    for got in answers.values():
        h = np.concatenate([answer.output[0] for answer in got])
        assert stream.largest(h, heard.h) <= stream.TOLERANCE
        assert stream.largest(got[-1].c_n[0, 0], heard.c[-1]) <= stream.TOLERANCE


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_states_notice(mutant, silero, tmp_path):
    with opened(mutant(silero.imported), tmp_path) as session:
        assert not differs(session, silero.heard, chunks=300) <= stream.TOLERANCE


@pytest.mark.parametrize("state", ["h_n", "c_n"])
def test_a_forgotten_state_is_noticed(state, silero, tmp_path):
    with opened(silero.imported, tmp_path) as session:

        def forgets(inputs):
            return session.run({**inputs, state.replace("n", "0"): np.zeros((1, 1, 128), "f4")})

        assert not differs(SimpleNamespace(run=forgets), silero.heard, 300) <= stream.TOLERANCE


@pytest.mark.parametrize("precision", parity.TOLERANCE)
def test_the_network_on_sound(precision, silero):
    imported, x = silero.imported, silero.heard.features[np.newaxis, :125]  # 4 s
    inputs = {**imported.spec.defaults(1, 125), "input": x}
    got = interpreted(imported, inputs, precision)
    found = parity.differences(imported.spec, imported.weights, inputs, got)
    assert all(parity.agrees(value, precision) for value in found.values()), found

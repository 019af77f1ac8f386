"""Weights that others trained, against what others compute with them.

g2p-en's own NumPy code spells the words; its class alone is executed, without what the module
around it imports. silero-vad's own ONNX model, under ONNX Runtime, makes the states. Both come from
PyPI, pinned; in CI a package that cannot be fetched is an error.
"""

import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
import warnings
import zipfile
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tensorrt_rtx as trt
from conftest import ROOT
from interpreter import run
from looprnn_client import Client

from looprnn import engines, network, parity
from looprnn.importers import Imported
from looprnn.server import Server
from looprnn.spec import Profile, Range
from looprnn.weights import reorder

sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "examples/g2p"))
sys.path.insert(0, str(ROOT / "examples/silero_vad"))
import shared
import spell
import stream

STATE_ATOL = 1e-4  # g2p-en computes in float32 too: 5e-6 apart over 35 words
ODD = ["b", "o'zone", "ünïcode", "a" * 40, "zzzzzz"]  # one letter, unknown ones, a runaway
LOGGER = trt.Logger(trt.Logger.ERROR)
BUILDER = trt.Builder(LOGGER)


def SILENT(*_):
    """No progress bar."""


def fetched(package):
    try:
        return shared.fetch(package)
    except shared.NotFetched as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"needs the network: {error}")


@contextmanager
def opened(imported, folder):
    """The CPU engine of the imported weights; unproved, for mutants pass every proof but ours."""
    engine, path = engines.get("onnxruntime"), folder / f"{imported.spec.name}.onnx"
    engine.build(imported.spec, imported.weights, path, progress=SILENT, workspace=0)
    with engine.session(path, imported.spec) as session:
        yield session


def interpreted(imported, inputs, precision):
    """The TensorRT network in that precision, read back and evaluated: every output."""
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    made = BUILDER.create_network(flag)
    spec = dataclasses.replace(imported.spec, precision=precision)
    kept = network.define(trt, made, spec, imported.weights)
    answer = run(trt, made, inputs)
    del kept
    return answer


def changed(imported, **arrays):
    return Imported(imported.spec, {**imported.weights, **arrays})


def swap_first_gates(imported):
    order = imported.spec.layers[0].gates
    return regated(imported, order[1] + order[0] + order[2:])


def swap_last_gates(imported):
    order = imported.spec.layers[0].gates
    return regated(imported, order[:-2] + order[-1] + order[-2])


def regated(imported, order):
    gates = imported.spec.layers[0].gates
    arrays = {
        n: reorder(a, src=order, dst=gates) for n, a in imported.weights.items() if n.endswith("l0")
    }
    return changed(imported, **arrays)


def swap_input_and_state(imported):
    w = imported.weights
    return changed(imported, weight_ih_l0=w["weight_hh_l0"], weight_hh_l0=w["weight_ih_l0"])


def drop_bias(imported):
    return changed(imported, bias_ih_l0=np.zeros_like(imported.weights["bias_ih_l0"]))


def swap_biases(imported):
    """Told apart by a GRU alone: r is multiplied with one of them."""
    w = imported.weights
    return changed(imported, bias_ih_l0=w["bias_hh_l0"], bias_hh_l0=w["bias_ih_l0"])


def negate_z(imported):
    """h = z·n + (1 - z)·h, the other convention of the GRU."""
    r, z, n = np.split(imported.weights["weight_ih_l0"], 3)
    return changed(imported, weight_ih_l0=np.concatenate([r, -z, n]))


def letters_one_off(imported):
    table = np.roll(imported.weights["embedding.weight"], 1, axis=0)
    return changed(imported, **{"embedding.weight": table})


MUTANTS = [swap_first_gates, swap_last_gates, swap_input_and_state, drop_bias]
GRU_MUTANTS = [*MUTANTS, swap_biases, negate_z, letters_one_off]
# The encoder's swapped biases move its states by 0.1, which changes no word: see its states' test.
HEARD_IN_WORDS = [
    *(("encoder", m) for m in GRU_MUTANTS if m is not swap_biases),
    *(("decoder", m) for m in GRU_MUTANTS),
]


# g2p-en


@pytest.fixture(scope="module")
def g2p_wheel():
    return fetched(spell.PACKAGE)


@pytest.fixture(scope="module")
def g2p(g2p_wheel, tmp_path_factory):
    """g2p_en.G2p, constructed: its class as published, in a module without nltk and dictionary."""
    folder = tmp_path_factory.mktemp("g2p")
    shared.unpack(g2p_wheel, "g2p_en/checkpoint20.npz", folder)
    with zipfile.ZipFile(g2p_wheel) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\-" in one of its strings
        tree = ast.parse(file.read("g2p_en/g2p.py"))
        tree.body = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "G2p"]
        code = compile(tree, "g2p.py", "exec")
    around = {
        "np": np,
        "os": os,
        "dirname": str(folder / "g2p_en"),
        "cmudict": SimpleNamespace(dict=dict),
        "construct_homograph_dictionary": dict,
    }
    exec(code, around)
    return around["G2p"]()


@pytest.fixture(scope="module")
def speller(g2p_wheel, tmp_path_factory):
    """The encoder and the decoder, as the example builds them: each proved."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("speller")
        yield [stack.enter_context(shared.built(i, folder))[0] for i in spell.imported(g2p_wheel)]


def test_the_same_symbols(g2p):
    assert (g2p.graphemes, g2p.phonemes) == (spell.LETTERS, spell.PHONEMES)


def test_every_word_is_spelled_as_g2p_en_spells_it(g2p, speller):
    words = spell.WORDS + ODD
    assert spell.spell(words, *speller) == [g2p.predict(word) for word in words]


def test_a_word_among_others_is_spelled_as_alone(speller):
    words = spell.WORDS[:5] + ODD
    alone = [spell.spell([word], *speller)[0] for word in words]
    assert spell.spell(words, *speller) == alone


def encoder_states(words, run_encoder):
    """h_n [B, H] of every word."""
    start = np.zeros((len(words), 1, 256), np.float32)
    return run_encoder({**spell.letters(words), "h_0": start})["h_n"][:, 0]


@pytest.fixture(scope="module")
def right_states(g2p):
    """What g2p-en's gru() ends with for every word."""
    weights = [getattr(g2p, f"enc_{part}") for part in ("w_ih", "w_hh", "b_ih", "b_hh")]
    every = [g2p.gru(g2p.encode(w), len(w) + 1, *weights)[0, -1] for w in spell.WORDS + ODD]
    return np.stack(every)


def test_the_encoders_states_are_g2p_ens(right_states, speller):
    got = encoder_states(spell.WORDS + ODD, speller[0].run)
    np.testing.assert_allclose(got, right_states, rtol=0, atol=STATE_ATOL)


@pytest.mark.parametrize("mutant", GRU_MUTANTS, ids=lambda m: m.__name__)
def test_the_encoders_states_notice(mutant, g2p_wheel, right_states, tmp_path):
    with opened(mutant(spell.imported(g2p_wheel)[0]), tmp_path) as wrong:
        got = encoder_states(spell.WORDS + ODD, wrong.run)
    assert not np.abs(got - right_states).max() <= STATE_ATOL


@pytest.mark.parametrize(
    ("which", "mutant"), HEARD_IN_WORDS, ids=lambda p: getattr(p, "__name__", p)
)
def test_some_word_notices(which, mutant, g2p, g2p_wheel, speller, tmp_path):
    at = ["encoder", "decoder"].index(which)
    with opened(mutant(spell.imported(g2p_wheel)[at]), tmp_path) as wrong:
        pair = [wrong if k == at else session for k, session in enumerate(speller)]
        spelled = spell.spell(spell.WORDS, *pair)
    assert spelled != [g2p.predict(word) for word in spell.WORDS]


@pytest.mark.parametrize("count", [0, spell.ROWS.max + 1])
def test_too_many_words_are_refused(count, speller):
    with pytest.raises(spell.RequestError, match=f"got {count},"):
        spell.spell(["word"] * count, *speller)


def test_a_word_too_long_is_refused(speller):
    with pytest.raises(spell.RequestError, match="the longest of 64"):
        spell.spell(["a" * 64], *speller)


def what_g2p_reads(words, g2p, encoder):
    """The encoder's inputs, and the decoder's when it is told each right phoneme: real data."""
    first = {**spell.letters(words), "h_0": np.zeros((len(words), 1, 256), np.float32)}
    ids = np.zeros((len(words), spell.LONGEST), np.int32)
    for row, word in zip(ids, words, strict=True):
        right = [2, *map(g2p.p2idx.get, g2p.predict(word))][: spell.LONGEST]
        row[: len(right)] = right
    return first, {"input": ids, "h_0": encoder.run(first)["h_n"]}


@pytest.mark.parametrize("precision", parity.TOLERANCE)
def test_the_network_on_words(precision, g2p, g2p_wheel, speller):
    inputs = what_g2p_reads(spell.WORDS, g2p, speller[0])
    for imported, asked in zip(spell.imported(g2p_wheel), inputs, strict=True):
        got = interpreted(imported, asked, precision)
        found = parity.differences(imported.spec, imported.weights, asked, got)
        assert all(parity.agrees(value, precision) for value in found.values()), found


# silero-vad


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


# What a user types


README = (ROOT / "examples/README.md").read_text(encoding="utf-8")
(BLOCK,) = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("line", BLOCK.splitlines())
def test_what_the_examples_readme_says_runs(line, g2p_wheel, silero_wheel):
    program, *rest = shlex.split(line)
    assert program == ".venv/bin/python"
    done = subprocess.run([sys.executable, *rest], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert any(known in done.stdout for known in ("W AH1 G IH0 NG", "silero-vad says"))


def test_without_a_network_it_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(shared.NotFetched, match=r"type: python -m pip download .* g2p-en==2\.1\.0"):
        shared.fetch(spell.PACKAGE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_not_read(tmp_path):
    (tmp_path / spell.PACKAGE.file).write_bytes(b"half of it")
    with pytest.raises(shared.WrongFile, match="remove it and run again"):
        shared.fetch(spell.PACKAGE, tmp_path)

"""looprnn-client stream: from files, sound and standard input, against a running tritonserver."""

import io
import os
import subprocess
import sys
import wave

import numpy as np
import pytest
from client_doubles import TOKENS, config
from looprnn_client import BadInput, Client
from looprnn_client.cli import main
from looprnn_client.commands.chunks import chunks
from looprnn_client.signature import Signature
from test_client_command import command

X = np.random.default_rng(8).standard_normal((23, 7), np.float32)
FLOATS = Signature.from_config("m", config())  # I = 7
IDS = Signature.from_config("m", TOKENS)


class Stdin(io.RawIOBase):
    """Standard input that has one part at each read; an exception among them is raised."""

    def __init__(self, *parts):
        self.parts = list(parts)
        self.buffer = self

    def read1(self, size):
        part = self.parts.pop(0) if self.parts else b""
        if isinstance(part, BaseException):
            raise part
        return part


@pytest.fixture
def stdin(monkeypatch):
    return lambda *parts: monkeypatch.setattr(sys, "stdin", Stdin(*parts))


def text(rows):
    return "".join(" ".join(f"{v:.9g}" for v in row) + "\n" for row in rows).encode()


def taken(source, signature=FLOATS, most=4, raw=False):
    source = source if isinstance(source, int) else str(source)
    return list(chunks(source, signature, most, raw=raw))


def write_wav(path, frames, channels=1, size=2):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(size)
        file.setframerate(16000)
        file.writeframes(frames)
    return path


@pytest.mark.parametrize("array", [X, X[np.newaxis]], ids=["T_I", "1_T_I"])
def test_an_array_is_cut_into_chunks(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    got = taken(tmp_path / "x.npy")
    assert [c.shape for c in got] == [(1, 4, 7)] * 5 + [(1, 3, 7)]
    np.testing.assert_array_equal(np.concatenate(got, 1)[0], X)


def test_an_array_of_ids(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(9))
    np.testing.assert_array_equal(np.concatenate(taken(tmp_path / "x.npy", IDS), 1), [range(9)])


def test_random_steps_are_cut_into_chunks():
    assert [c.shape for c in taken(9)] == [(1, 4, 7), (1, 4, 7), (1, 1, 7)]
    assert np.concatenate(taken(999, IDS), 1).max() == IDS.vocabulary - 1


def test_text_is_sent_as_it_comes_and_lines_may_be_torn(stdin):
    lines = text(X)
    stdin(lines[:200], lines[200:210], lines[210:-1])
    got = taken("-", most=100)
    assert len(got) == 3 and got[0].shape[1] == lines[:200].count(b"\n")
    np.testing.assert_array_equal(np.concatenate(got, 1)[0], X)


def test_text_may_have_commas_and_blank_lines(stdin):
    stdin(b"1,2,3,4,5,6,7\n\n  \n", b"7, 6, 5, 4, 3, 2, 1")
    np.testing.assert_array_equal(np.concatenate(taken("-"), 1)[0][:, 0], [1, 7])


def test_raw_steps_may_be_torn(stdin):
    data = X.tobytes()
    stdin(data[:3], data[3:100], data[100:])
    np.testing.assert_array_equal(np.concatenate(taken("-", raw=True), 1)[0], X)


def test_ids_as_text_and_raw(stdin):
    stdin(b"3\n1\n", b"4\n")
    np.testing.assert_array_equal(np.concatenate(taken("-", IDS), 1), [[3, 1, 4]])
    stdin(np.array([3, 1, 4], "<i4").tobytes())
    np.testing.assert_array_equal(np.concatenate(taken("-", IDS, raw=True), 1), [[3, 1, 4]])


@pytest.mark.parametrize(("size", "kind"), [(1, "u1"), (2, "<i2"), (3, "<i4"), (4, "<i4")])
def test_sound_of_every_width_is_scaled_to_one(tmp_path, size, kind):
    want = np.linspace(-1, 0.99, 21, dtype=np.float32)
    scaled = np.round(want.astype(np.float64) * 2.0 ** (8 * min(size, 4) - 1) + 128 * (size == 1))
    data = scaled.astype(kind)
    frames = data.view(np.uint8).reshape(-1, 4)[:, :3].tobytes() if size == 3 else data.tobytes()
    got = np.concatenate(taken(write_wav(tmp_path / "x.wav", frames, size=size)), 1)
    assert got.shape == (1, 3, 7)
    np.testing.assert_allclose(got.ravel(), want, rtol=0, atol=2.0 ** -(8 * size - 1))


def test_mono_sound_ends_with_silence_and_channels_are_inputs(tmp_path):
    frames = np.arange(1, 17, dtype="<i2")
    mono = np.concatenate(taken(write_wav(tmp_path / "1.wav", frames.tobytes()), most=2), 1)
    np.testing.assert_array_equal(mono.ravel() * 2**15, [*range(1, 17), *[0] * 5])
    seven = taken(write_wav(tmp_path / "7.wav", frames[:14].tobytes(), channels=7), most=1)
    assert [c.shape for c in seven] == [(1, 1, 7)] * 2


@pytest.mark.parametrize(
    ("parts", "raw", "words"),
    [
        ([b"1 2 3\n"], False, "line 1 of standard input: 3 numbers, but m takes 7 a step"),
        ([b"1 2 3 4 5 6 7\n1 2 x"], False, "line 2 of standard input: could not convert"),
        ([b"\xff\xfe\n"], False, "line 1"),
        ([bytes(30)], True, "2 bytes are left over, a step is 28"),
    ],
    ids=["count", "word", "binary", "torn_at_the_end"],
)
def test_bad_standard_input_is_named_by_its_place(stdin, parts, raw, words):
    stdin(*parts)
    with pytest.raises(BadInput, match=words):
        taken("-", raw=raw)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"RIFF....")
    np.save(tmp_path / "two.npy", np.zeros((2, 5, 7), np.float32))
    for source, words in [
        (tmp_path / "none.npy", "no such file. Did you mean .*/two.npy"),
        (tmp_path / "x.wav", "not a .wav of PCM"),
        (tmp_path / "two.npy", r"a stream is one sequence: \[T, I\] or \[1, T, I\]"),
        (write_wav(tmp_path / "s.wav", bytes(8), channels=2), "has 2 channels, but m takes 7"),
    ]:
        with pytest.raises(BadInput, match=words):
            taken(source)
    with pytest.raises(BadInput, match="takes ids"):
        taken(tmp_path / "s.wav", IDS)
    with pytest.raises(BadInput, match="--raw is for standard input"):
        taken("x.npy", raw=True)


def stream_words(url, *more):
    return command("stream", "--url", url, "--model", "lstm", "--timeout", 30, *more)


@pytest.mark.live
def test_a_streamed_file_is_the_whole_sequence(url, tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    files = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz")
    assert main(stream_words(url, *files, "--chunk", 5)) == 0
    with Client(url, "lstm", timeout_s=30) as client:
        whole = client.infer(X[np.newaxis])
    with np.load(tmp_path / "y.npz") as got:
        assert set(got) == {"output", "h_n", "c_n"}
        for name in got:
            np.testing.assert_allclose(got[name], getattr(whole, name), rtol=0, atol=1e-6)
    printed = np.loadtxt(capsys.readouterr().out.splitlines())
    np.testing.assert_array_equal(printed[:, 0], range(23))
    np.testing.assert_allclose(printed[:, 1:], whole.output[0], rtol=0, atol=1e-5)


@pytest.mark.live
def test_a_saved_state_goes_on_where_it_was(url, tmp_path, capsys, stdin):
    state = tmp_path / "s.npz"
    stdin(text(X[:9]))
    assert main(stream_words(url, "--input", "-", "--save-state", state)) == 0
    stdin(X[9:].tobytes())
    assert main(stream_words(url, "--input", "-", "--raw", "--resume", state)) == 0
    printed = np.loadtxt(capsys.readouterr().out.splitlines())
    with Client(url, "lstm", timeout_s=30) as client:
        whole = client.infer(X[np.newaxis])
    np.testing.assert_array_equal(printed[:, 0], range(23))
    np.testing.assert_allclose(printed[:, 1:], whole.output[0], rtol=0, atol=1e-5)


@pytest.mark.live
def test_ctrl_c_writes_what_came_until_then(url, tmp_path, capsys, stdin):
    stdin(text(X[:3]), KeyboardInterrupt())
    files = ("--output", tmp_path / "y.npz", "--save-state", tmp_path / "s.npz")
    assert main(stream_words(url, "--input", "-", *files)) == 130
    assert len(capsys.readouterr().out.splitlines()) == 3
    with np.load(tmp_path / "y.npz") as got:
        assert got["output"].shape == (1, 3, 5)
    assert (tmp_path / "s.npz").exists()


@pytest.mark.live
def test_a_terminal_sees_the_last_steps(url, tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(stream_words(url, "--input", tmp_path / "x.npy")) == 0
    said = capsys.readouterr().out
    assert "output of lstm_stream at" in said and "23 steps" in said


@pytest.mark.live
def test_what_is_wrong_is_said_and_nothing_is_written(url, tmp_path, capsys, stdin):
    target = tmp_path / "y.npz"
    stdin()
    assert main(stream_words(url, "--input", "-", "--output", target)) == 1
    assert "not one step came" in capsys.readouterr().err
    words = [*stream_words(url, "--input", "-"), "--output", str(tmp_path / "no" / "y.npz")]
    assert main(words) == 1
    assert "no such directory" in capsys.readouterr().err
    assert main([*stream_words(url, "--input", "-"), "--model", "bilstm"]) == 1
    said = capsys.readouterr().err
    assert "has no model 'bilstm_stream': 'bilstm' takes whole sequences alone" in said
    assert "with streaming = true. Served there: lstm_random_stream, lstm_stream" in said
    stdin(text(X[:1]), b"nan 1 2 3 4 5 6\n")
    assert main(stream_words(url, "--input", "-", "--output", target)) == 1
    assert "is nan" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.live
def test_a_reader_that_has_seen_enough_ends_it_quietly(server, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((20_000, 7), np.float32))
    words = stream_words(server.grpc, "--input", tmp_path / "x.npy")
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "looprnn_client.cli", *words], stdout=write, stderr=subprocess.PIPE
    ) as process:
        os.close(write)
        assert os.read(read, 2) == b"0 "
        os.close(read)
        assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == 1

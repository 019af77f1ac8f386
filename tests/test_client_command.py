"""The looprnn-client command, without a server."""

import numpy as np
import pytest
from client_doubles import BROKEN, IDS, READY, STATE, TOKENS, Fake, X, state_of
from looprnn_client.cli import main


def command(*words):
    return [str(word) for word in words]


def infer_command(folder, **changes):
    np.save(folder / "x.npy", X)
    options = {
        "url": "http://127.0.0.1:1",
        "model": "lstm",
        "input": folder / "x.npy",
        "output": folder / "y.npz",
        **changes,
    }
    return command("infer", *(w for key, value in options.items() for w in (f"--{key}", value)))


@pytest.fixture
def pretend(monkeypatch):
    """Every connection is to one fake."""
    fake = Fake(models=[*READY, *BROKEN, state_of("old", "")])
    monkeypatch.setattr("looprnn_client.client.connect", lambda url: fake)
    return fake


def test_command_writes_the_answer(pretend, tmp_path, capsys):
    np.save(tmp_path / "h0.npy", STATE)
    np.save(tmp_path / "c0.npy", STATE * 2)
    states = {"h0": tmp_path / "h0.npy", "c0": tmp_path / "c0.npy"}
    assert main(infer_command(tmp_path, **states)) == 0
    np.testing.assert_array_equal(pretend.inputs["input"], X)
    np.testing.assert_array_equal(pretend.inputs["h_0"], STATE)
    np.testing.assert_array_equal(pretend.inputs["c_0"], STATE * 2)
    with np.load(tmp_path / "y.npz") as written:
        assert set(written) == {"output", "h_n", "c_n"}
        for name in written:
            np.testing.assert_array_equal(written[name], pretend.answer[name])
    assert capsys.readouterr().out.splitlines() == [
        "output [3, 4, 10] float32", "h_n [3, 4, 5] float32", "c_n [3, 4, 5] float32",
    ]  # fmt: skip
    assert not list(tmp_path.glob(".*")), "the part file stays"


def test_command_with_ids_lengths_and_a_head(pretend, tmp_path, capsys):
    pretend.model = TOKENS
    np.save(tmp_path / "ids.npy", IDS)
    np.save(tmp_path / "l.npy", np.array([4, 0, 1]))
    files = {"input": tmp_path / "ids.npy", "lengths": tmp_path / "l.npy"}
    assert main(infer_command(tmp_path, **files)) == 0
    np.testing.assert_array_equal(pretend.inputs["input"], IDS)
    np.testing.assert_array_equal(pretend.inputs["lengths"], [[4], [0], [1]])
    with np.load(tmp_path / "y.npz") as written:
        assert set(written) == {"output", "h_n", "c_n", "head"}
        np.testing.assert_array_equal(written["head"], pretend.answer["head"])
    assert capsys.readouterr().out.splitlines()[-1] == "head [3, 4, 4] float32"


def test_command_keeps_the_old_answer_when_writing_fails(pretend, tmp_path, capsys, monkeypatch):
    (tmp_path / "y.npz").write_bytes(b"old")

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert main(infer_command(tmp_path)) == 1
    assert (tmp_path / "y.npz").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*")), "half a file stays"
    assert "No space left" in capsys.readouterr().err


def save_pickle(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "x.npy'?"),
        (lambda path: path.mkdir(), "is a directory, wanted a file"),
        (lambda path: path.write_bytes(b""), "not a .npy file"),
        (lambda path: path.write_bytes(b"rubbish"), "not a .npy file"),
        (save_pickle, "not a .npy file"),
        (lambda path: np.savez(path.open("wb"), X), "several arrays"),
        (lambda path: np.save(path, X.astype(np.float64)), "astype"),
    ],
    ids=["missing", "directory", "empty", "rubbish", "pickle", "npz", "float64"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_command_with_a_bad_file(pretend, tmp_path, capsys, make, words):
    make(tmp_path / "bad.npy")
    assert main(infer_command(tmp_path, input=tmp_path / "bad.npy")) == 1
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "y.npz").exists()
    assert "infer" not in pretend.asked


def test_command_with_a_missing_file_where_there_is_none_to_mean(pretend, tmp_path, capsys):
    assert main(infer_command(tmp_path, input=tmp_path / "none" / "x.npy")) == 1
    assert "Write one with np.save, or try the model with --random" in capsys.readouterr().err


@pytest.mark.parametrize("model", [None, TOKENS], ids=["numbers", "ids"])
def test_command_draws_what_it_has_no_file_for(pretend, tmp_path, model):
    pretend.model = model or pretend.model
    words = ["--model", "lstm", "--random", "2", "4", "--output", str(tmp_path / "y.npz")]
    drawn = []
    for _ in range(2):
        assert main(["infer", *words]) == 0
        drawn.append(pretend.inputs["input"])
    assert [x.shape for x in drawn] == 2 * [(2, 4) if model else (2, 4, 7)]
    assert drawn[0].dtype == (np.int32 if model else np.float32)
    assert (drawn[0] != drawn[1]).any(), "no two are equal"


def test_command_into_no_directory(pretend, tmp_path, capsys):
    assert main(infer_command(tmp_path, output=tmp_path / "none" / "y.npz")) == 1
    assert "no such directory" in capsys.readouterr().err
    assert pretend.asked == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("y.csv", "holds several arrays; type y.npz"),
        ("folder.npz", "is a directory, wanted a file"),
    ],
)
def test_command_into_what_is_no_npz(pretend, tmp_path, capsys, name, words):
    (tmp_path / "folder.npz").mkdir()
    assert main(infer_command(tmp_path, output=tmp_path / name)) == 1
    assert words in capsys.readouterr().err
    assert pretend.asked == []


def test_command_lists_models(pretend, capsys):
    assert main(command("models", "--url", "here:8001")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "bilstm  1  READY",
        "bilstm  1  UNAVAILABLE  no model.onnx",
        "lstm    1  READY",
        "old     1  -",
    ]


def test_command_without_an_address_asks_this_machine(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "looprnn_client.client.connect", lambda line: asked.append(line) or Fake(models=READY)
    )
    assert main(["models"]) == 0
    assert [(line.scheme, line.address) for line in asked] == [("grpc", "localhost:8001")]


def test_command_without_a_server(tmp_path, capsys):
    assert main(infer_command(tmp_path)) == 1
    assert main(command("models", "--url", "http://127.0.0.1:1")) == 1
    said = capsys.readouterr().err
    assert said.count("looprnn-client: no Triton server answers") == 2


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["infer"],
        ["infer", "--model", "m", "--output", "y.npz"],
        ["infer", "--model", "m", "--output", "y.npz", "--input", "x.npy", "--random", "1", "2"],
        ["infer", "--model", "m", "--output", "y.npz", "--random", "0", "2"],
        ["stream", "--model", "m"],
        ["models", "--url", "a:1", "--timeout", "soon"],
        ["fly"],
    ],
)
def test_command_used_wrongly(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err

"""import: what is written is what was read, and nothing of the user's is written over."""

import argparse
import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from looprnn import build, importing
from looprnn.errors import LoopRNNError, SpecError, WeightsError
from looprnn.spec import Head, Layer, Range, RNNSpec, WeightSource
from looprnn.variants import load_spec
from looprnn.weights import load_weights, save_weights

TRAINED = RNNSpec(
    name="trained",
    input_size=3,
    layers=(Layer(cell="gru", hidden_size=4),) * 2,
    weights=WeightSource(seed=7),
)


@pytest.fixture
def trained(tmp_path):
    save_weights(tmp_path / "trained.safetensors", load_weights(TRAINED))
    return tmp_path / "trained.safetensors"


@pytest.fixture
def say(tmp_path):
    def ask(*words):
        parser = argparse.ArgumentParser()
        importing.add_arguments(parser)
        options = parser.parse_args([str(w) for w in words])
        options.variants, options.repository = tmp_path / "variants", tmp_path / "models"
        options.verbose = False
        out = io.StringIO()
        assert importing.run(options, Console(file=out, width=80)) == 0
        return out.getvalue()

    return ask


def test_an_import_is_a_variant_that_builds_and_says_what_to_type(say, trained, tmp_path):
    text = say(trained, "--name", "mine")
    spec = load_spec(tmp_path / "variants/mine.toml")
    assert spec.layers == TRAINED.layers
    for name, array in load_weights(TRAINED).items():
        np.testing.assert_array_equal(load_weights(spec)[name], array)
    assert "mine.toml: 3 → 2 × gru 4; 228 parameters" in text
    assert "python build_engines.py --variant mine\n" in text
    wanted, _ = build.buildable(["onnxruntime"])
    models = tmp_path / "models"
    (outcome,) = build.build_variant(spec, wanted, models, progress=lambda *_: None)
    assert outcome.status == "built"


def test_the_options_reach_the_toml(say, trained, tmp_path):
    say(trained, "--name", "mine", "--lengths", "--batch", 1, 4, 16, "--time", 2, 50, 400)
    spec = load_spec(tmp_path / "variants/mine.toml")
    assert spec.lengths
    assert (spec.profile.batch, spec.profile.time) == (Range(1, 4, 16), Range(2, 50, 400))
    say(trained, "--name", "other", "--time", 2, 50, 400)
    spec = load_spec(tmp_path / "variants/other.toml")
    assert not spec.lengths
    assert (spec.profile.batch, spec.profile.time.max) == (TRAINED.profile.batch, 400)


def test_an_import_that_streams(say, trained, tmp_path):
    assert "2 × gru 4, with lengths, streaming; " in say(trained, "--name", "mine", "--streaming")
    spec = load_spec(tmp_path / "variants/mine.toml")
    assert spec.streaming and spec.lengths
    with pytest.raises(SpecError, match="streaming needs profile.time to begin at 1, got .2, 50,"):
        say(trained, "--name", "other", "--streaming", "--time", 2, 50, 400)
    assert not (tmp_path / "variants/other.toml").exists()


def test_one_of_several_layers(say, tmp_path):
    arrays = load_weights(TRAINED)
    both = {
        f"{p}.{n}": a * k for k, p in ((1, "encoder"), (2, "decoder")) for n, a in arrays.items()
    }
    save_file({n: a.astype(np.float32) for n, a in both.items()}, tmp_path / "both.safetensors")
    with pytest.raises(WeightsError, match="--layer encoder"):
        say(tmp_path / "both.safetensors", "--name", "mine")
    assert not (tmp_path / "variants").exists()
    say(tmp_path / "both.safetensors", "--name", "mine", "--layer", "decoder")
    found = load_file(tmp_path / "variants/mine.safetensors")
    np.testing.assert_array_equal(found["bias_hh_l1"], 2 * arrays["bias_hh_l1"])


def test_the_notes_are_read_whole(say, tmp_path):
    tanh = replace(TRAINED, layers=(Layer(cell="rnn", hidden_size=4),))
    save_weights(tmp_path / "rnn.safetensors", load_weights(tanh))
    # A sentence is one line, whatever the width of the screen.
    assert 'Trained with relu? Write activations = ["relu"] into the TOML.\n' in say(
        tmp_path / "rnn.safetensors", "--name", "mine"
    )


@pytest.mark.parametrize("there", ["mine.toml", "mine.safetensors"])
def test_a_variant_is_not_written_over_without_force(say, trained, tmp_path, there):
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / there).write_text("the user's own")
    with pytest.raises(SpecError, match=f"{there}: there is a variant of that name.*--force"):
        say(trained, "--name", "mine")
    assert (tmp_path / "variants" / there).read_text() == "the user's own"
    say(trained, "--name", "mine", "--force")
    assert load_spec(tmp_path / "variants/mine.toml").layers == TRAINED.layers


def test_the_file_itself_is_not_written_over_even_with_force(say, trained, tmp_path):
    (tmp_path / "variants").mkdir()
    inside = tmp_path / "variants/mine.safetensors"
    trained.rename(inside)
    before = inside.read_bytes()
    with pytest.raises(WeightsError, match="the import would write over it. Take another --name"):
        say(inside, "--name", "mine", "--force")
    assert inside.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "../mine"], "name must be letters"),
        (["--name", "mine", "--batch", "2", "4", "8"], "profile.batch must begin at 1"),
        (
            ["--name", "mine", "--time", "9", "4", "8"],
            r"profile.time: .*min <= opt <= max, got \[9, 4, 8\]",
        ),
    ],
)
def test_what_no_spec_allows_writes_nothing(say, trained, tmp_path, words, message):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LoopRNNError, match=message):
        say(trained, *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_is_not_there(say, tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        say(tmp_path / "gone.pt", "--name", "mine")


def test_a_folder_or_a_name_that_is_nearly_right_names_the_file(say, trained):
    with pytest.raises(WeightsError, match=f"a folder, wanted a file. It has: .*{trained.name}"):
        say(trained.parent, "--name", "mine")
    with pytest.raises(WeightsError, match=f"no such file. Did you mean '{trained.name}'"):
        say(trained.with_stem(f"{trained.stem}s"), "--name", "mine")


def test_the_summary_names_what_stands_around_the_layers():
    spec = replace(
        TRAINED,
        vocabulary=11,
        lengths=True,
        head=Head(size=5, on="last"),
        layers=(
            Layer(cell="lstm", hidden_size=4, direction="bidirectional"),
            Layer(cell="gru", hidden_size=6, reset="before", bias=False),
            *TRAINED.layers,
        ),
    )
    assert importing.summary(spec).startswith(
        "11 ids → 3 → lstm 4 bidirectional → gru 6, bias = false, reset = before → 2 × gru 4 → "
        "head 5 on last, with lengths; "
    )

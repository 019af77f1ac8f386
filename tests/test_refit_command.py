"""looprnn refit: what the command says, of weights that fit and of those that do not."""

import argparse
import io
from dataclasses import replace

import numpy as np
import pytest
from refit_double import NEW, SPEC, a_repository, files
from rich.console import Console

from looprnn import refit
from looprnn.errors import WeightsError
from looprnn.spec import WeightSource
from looprnn.variants import dump_spec
from looprnn.weights import load_weights, save_weights


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A repository with version 1 of SPEC; a host with a GPU, so far as plans are concerned."""
    return a_repository(tmp_path, monkeypatch)


@pytest.fixture
def say(tmp_path):
    def ask(*words):
        parser = argparse.ArgumentParser()
        refit.add_arguments(parser)
        options = parser.parse_args([str(w) for w in words])
        options.variants, options.repository = tmp_path / "variants", tmp_path / "models"
        options.verbose = False
        out = io.StringIO()
        assert refit.run(options, Console(file=out, width=80)) == 0
        return out.getvalue()

    return ask


def test_the_command_says_what_came_of_it_and_that_a_build_would_go_back(models, say, tmp_path):
    save_weights(tmp_path / "new.safetensors", NEW)
    text = say("small", "--weights", tmp_path / "new.safetensors")
    assert "small/2" in text and "refitted" in text and "rebuilt" in text
    assert 'write there: [weights] file = "new.safetensors"' in text
    assert "small/2 has these weights already" in say(
        "small", "--weights", tmp_path / "new.safetensors"
    )
    own = replace(SPEC, weights=WeightSource(file=tmp_path / "variants/own.safetensors"))
    (tmp_path / "variants/small.toml").write_text(dump_spec(own))
    save_weights(tmp_path / "variants/own.safetensors", load_weights(SPEC))
    assert "go" not in say("small", "--weights", tmp_path / "variants/own.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: {**w, "bias_hh_l0": w["bias_hh_l0"][:-1]},
            r"bias_hh_l0 is \[15\].*needs \[16\]",
        ),
        (lambda w: {n: a for n, a in w.items() if n != "head.bias"}, "small needs head.bias"),
        (lambda w: {**w, "more": w["head.bias"]}, "more not used by small"),
        (lambda w: {**w, "head.bias": w["head.bias"] * np.nan}, "head.bias holds NaN"),
    ],
    ids=["misshapen", "missing", "left_over", "nan"],
)
def test_weights_that_do_not_fit_are_named_before_anything_is_done(
    say, tmp_path, change, words, models
):
    save_weights(tmp_path / "new.safetensors", {n: np.array(a) for n, a in change(NEW).items()})
    before = files(models.folder)
    with pytest.raises(WeightsError, match=words):
        say("small", "--weights", tmp_path / "new.safetensors")
    assert files(models.folder) == before


def test_weights_in_another_format_say_what_to_type(say, models):
    with pytest.raises(WeightsError, match="looprnn import new.pt --name OTHER"):
        say("small", "--weights", "new.pt")

"""docs/variants.md names every key that a variant may have, and nothing that it may not; what
docs/streams.md shows is run.
"""

import dataclasses
import re

import pytest
from conftest import ROOT

from looprnn import weights
from looprnn.spec import ACTIVATIONS, Head, Layer, RNNSpec, Stream, WeightSource
from looprnn.variants import load_spec

PAGE = (ROOT / "docs/variants.md").read_text(encoding="utf-8")
STREAMS = (ROOT / "docs/streams.md").read_text(encoding="utf-8")


def keys(heading: str) -> set[str]:
    """The first column of the table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([\w, {}.\[\]]+) \|", section, re.MULTILINE)
    return {key for row in rows for key in row.split(", ")} - {"key", "array"}


def fields(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def test_every_key_of_the_whole_is_explained():
    in_tables = fields(RNNSpec) - {"name", "layers", "head", "profile", "stream", "weights"}
    assert keys("The whole") == in_tables | {"num_layers"}


def test_every_key_of_a_layer_is_explained():
    assert keys("A layer") == fields(Layer)


@pytest.mark.parametrize("cls", [Head, Stream, WeightSource])
def test_every_key_of_the_tables_is_named(cls):
    for key in fields(cls):
        assert f"`{key}`" in PAGE, key


def test_every_activation_is_named():
    for kind in ACTIVATIONS:
        assert kind in PAGE


def test_every_array_is_named():
    every = Layer(cell="lstm", hidden_size=4, proj_size=2, peepholes=True, layer_norm=True)
    named = {key.removesuffix("_l{k}") for key in keys("Weights")}
    assert named == {
        *weights.layer_shapes(every, 3),
        "embedding.weight",
        "head.weight",
        "head.bias",
    }


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", STREAMS, re.MULTILINE | re.DOTALL)
    return str(text)


def test_the_streaming_variant_it_shows_is_one(tmp_path):
    (tmp_path / "voice.toml").write_text(block("toml"))
    spec = load_spec(tmp_path / "voice.toml")
    assert spec.streaming and spec.stream == Stream(), "the comments give the defaults"


@pytest.mark.live
def test_the_stream_it_shows_is_the_whole_sequence(server, capsys):
    code = block("python")
    exec(code.replace("localhost:8001", server.grpc), {})
    printed = re.search(r"print\(.*\)\s+# (.*)", code)[1]
    assert capsys.readouterr().out.strip() == printed

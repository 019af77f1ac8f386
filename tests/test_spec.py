"""A spec that exists is valid; a TOML mistake is answered with how to write it."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import ROOT, VARIANTS
from drawn import specs
from hypothesis import given

from looprnn.errors import SpecError
from looprnn.spec import Activation, Head, Layer, Profile, Range, RNNSpec, Stream, WeightSource
from looprnn.variants import dump_spec, load_spec

GOOD = {"name": "good", "input_size": 3, "weights": WeightSource(seed=1)}
LSTM = {"cell": "lstm", "hidden_size": 4}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ({"hidden_size": 2.0}, "got 2.0"),
        ({"hidden_size": True}, "got True"),
        ({"cell": "lsmt"}, "Did you mean 'lstm'"),
        ({"direction": "backward"}, "forward, reverse, bidirectional"),
        ({"activations": (Activation("tanh"),)}, "lstm has 3 (usually sigmoid, tanh, tanh), got 1"),
        ({"merge": "sum"}, "merge = 'sum' is for bidirectional layers, this is forward"),
        ({"cell": "gru", "peepholes": True}, "peepholes is the lstm's, this is gru"),
        ({"reset": "before"}, "reset is the gru's, this is lstm"),
        ({"bias": "no"}, "bias must be true or false, without quotes; got 'no'"),
        ({"skip_input": 1}, "skip_input must be true or false, without quotes; got 1"),
        ({"proj_size": 4}, "proj_size must be below hidden_size, got 4 and 4"),
        ({"clip": 0.0}, "clip must be a number above 0, got 0.0"),
        ({"layer_norm": True, "skip_input": True}, "there is no W"),
    ],
)
def test_a_bad_layer_is_refused_with_the_value(change, words):
    with pytest.raises(SpecError, match=re.escape(words)):
        Layer(**{**LSTM, **change})


def stack(*layers, **options):
    return RNNSpec(**{**GOOD, "layers": tuple(Layer(**x) for x in layers), **options})


def streaming(*layers, **options):
    return stack(*layers, lengths=True, streaming=True, **options)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: stack(LSTM, input_size=-1),
            "input_size must be a whole number of at least 1, got -1",
        ),
        (lambda: stack(), "at least one layer"),
        (
            lambda: stack({"cell": "rnn", "hidden_size": 2}, c_0=1.0),
            "only an lstm has c_0, got 1.0",
        ),
        (lambda: stack(LSTM, h_0=float("nan")), "h_0 must be a finite number, got nan"),
        (lambda: stack(LSTM, name="../etc"), "letters, digits"),
        (lambda: stack(LSTM, name=""), "letters, digits"),
        (lambda: stack(LSTM, precision="fp8"), "precision must be one of fp32, fp16"),
        (lambda: stack(LSTM, padding="repeat"), "set lengths = true"),
        (
            lambda: stack({**LSTM, "skip_input": True}),
            "layer 0: skip_input needs input and hidden size equal, got 3 and 4",
        ),
        (
            lambda: stack(LSTM, {**LSTM, "hidden_size": 5, "residual": True}),
            "layer 1: residual needs input and output size equal, got 4 and 5",
        ),
        (
            lambda: stack({**LSTM, "direction": "bidirectional", "merge": "none"}, LSTM),
            "layer 0: merge = 'none' gives two outputs",
        ),
        (lambda: stack(LSTM, lengths="yes"), "lengths must be true or false"),
        (lambda: Head(size=1, bias=0), "bias must be true or false"),
        (lambda: Activation("relu", 0.1), "relu takes no alpha; hard_sigmoid, leaky_relu, elu"),
        (lambda: Activation("leaky_relu", 0.1, 0.5), "leaky_relu takes no beta; hard_sigmoid"),
        (lambda: Range(1, 2, 2**31), "sizes must not be above 2147483647"),
        (
            lambda: stack(LSTM, lengths=True, padding="left"),
            "left padding is not served. Pad on the right",
        ),
        (lambda: Activation("swish"), "activation must be one of tanh"),
        (lambda: Activation("affine"), "affine needs alpha and beta"),
        (lambda: Head(size=0), "head.size must be a whole number"),
        (lambda: stack(LSTM, streaming=1, lengths=True), "streaming must be true or false"),
        (
            lambda: stack(LSTM, streaming=True),
            "streaming runs chunks of different lengths together",
        ),
        (
            lambda: streaming(LSTM, {**LSTM, "direction": "bidirectional"}),
            "layer 1 is bidirectional: it reads a sequence from its last step",
        ),
        (lambda: streaming({**LSTM, "direction": "reverse"}), "layer 0 is reverse: it reads"),
        (lambda: streaming(LSTM, padding="repeat"), "Set padding = 'zero' to stream"),
        (
            lambda: streaming(LSTM, profile=Profile(time=Range(2, 2, 9))),
            "streaming needs profile.time to begin at 1, got [2, 2, 9]",
        ),
        (lambda: stack(LSTM, stream=Stream(capacity=2)), "set streaming = true as well"),
        (
            lambda: stack(LSTM, name="voice_stream"),
            "names that end in _stream are the stream models'. Call it 'voice' and set streaming",
        ),
        (lambda: Stream(capacity=0), "stream.capacity must be a whole number of at least 1, got 0"),
        (lambda: Stream(capacity=10**7), "stream.capacity must be at most 1,000,000, got 10000000"),
        (lambda: Stream(idle_s=0), "stream.idle_s must be seconds from 0.001 to 1e+09, got 0"),
        (lambda: Stream(idle_s=float("nan")), "stream.idle_s must be seconds from 0.001"),
        (lambda: Stream(idle_s="60"), "stream.idle_s must be seconds from 0.001"),
    ],
)
def test_a_bad_value_is_refused_with_the_value(build, words):
    with pytest.raises(SpecError, match=re.escape(words)):
        build()


@pytest.mark.parametrize("sizes", [(0, 1, 2), (3, 2, 4), (1, 5, 4), (1, 2.5, 4)])
def test_a_range_out_of_order_is_refused(sizes):
    with pytest.raises(SpecError):
        Range(*sizes)


def test_a_profile_that_cannot_take_one_row_is_refused():
    with pytest.raises(SpecError, match="begin at 1"):
        Profile(batch=Range(2, 2, 4))


@pytest.mark.parametrize("given", [{}, {"seed": 1, "constant": 1.0}])
def test_weights_come_from_exactly_one_place(given):
    with pytest.raises(SpecError, match="exactly one of file, constant, seed"):
        WeightSource(**given)


TOML = """
cell = "lstm"
input_size = 3
hidden_size = 4
[weights]
seed = 1
[profile]
time = [1, 4, 8]
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("hidden_size", "hiden_size", "unknown key 'hiden_size'. Did you mean 'hidden_size'"),
        ("[weights]", "[wieghts]", "unknown key 'wieghts'. Did you mean 'weights'"),
        ("seed = 1", "sead = 1", "unknown key 'sead' in [weights]. Did you mean 'seed'"),
        ("time =", "tiem =", "unknown key 'tiem' in [profile]. Did you mean 'time'"),
        ("[1, 4, 8]", "[1, 4]", "profile.time must be [min, opt, max], got [1, 4]"),
        ("[1, 4, 8]", "4", "profile.time must be [min, opt, max], got 4"),
        ("input_size = 3", "input_size = 3\nactivations = ['tahn']", "Did you mean 'tanh'"),
        ("input_size = 3", "input_size = 3\nactivations = 'tanh'", "must be a list such as"),
        ("input_size = 3", "input_size = 3\nnum_layers = 0", "num_layers must be a whole number"),
        (
            "[weights]",
            "[head]\nsiez = 3\n[weights]",
            "unknown key 'siez' in [head]. Did you mean 'size'",
        ),
        (
            "[weights]",
            "[[layers]]\nbais = true\n[weights]",
            "unknown key 'bais' in [layers]. Did you mean 'bias'",
        ),
        ("[weights]", "[stream]\ncapcity = 3\n[weights]", "in [stream]. Did you mean 'capacity'"),
        ("hidden_size = 4", "hidden_size = 0", "got 0"),
        ("hidden_size = 4", "hidden_size = ", "line 4"),
        ('cell = "lstm"', "", "missing cell"),
        ("[weights]\nseed = 1", "", "missing weights: a table [weights] with file = "),
        (
            'cell = "lstm"',
            'cell = "lstm"\nengine = "fused"',
            "'engine': every engine is built. Which ",
        ),
        ('cell = "lstm"', 'cell = "lstm"\nname = "other"', "the file is called v.toml"),
        ("seed = 1", 'seed = "one"', "seed must be"),
        ("seed = 1", 'constant = "one"', "constant must be"),
    ],
)
def test_a_typo_names_the_file_the_place_and_the_nearest_key(tmp_path, old, new, words):
    path = tmp_path / "v.toml"
    assert old in TOML
    path.write_text(TOML.replace(old, new))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_variant_that_is_not_there_names_those_that_are():
    with pytest.raises(SpecError, match="no such variant.*bilstm, bilstm_random, lstm"):
        load_spec(ROOT / "variants" / "lstn.toml")


def test_the_committed_variants_are_the_seeds_and_useful_ones():
    assert set(VARIANTS) >= {
        "relu_rnn", "lstm", "bilstm", "tanh_rnn", "relu_rnn_random", "lstm_random", "bilstm_random",
    }  # fmt: skip
    for name in ("relu_rnn", "lstm", "bilstm"):
        spec = VARIANTS[name]
        (layer,) = spec.layers
        assert (spec.input_size, layer.hidden_size, spec.h_0, spec.c_0) == (7, 5, 1.0, 0.0)
        assert (spec.profile.batch.opt, spec.profile.time.opt) == (3, 4)
        assert spec.weights == WeightSource(constant=1.0, bias=0.0)


@given(spec=specs())
def test_the_card_and_the_toml_give_the_spec_back(spec):
    again = RNNSpec.from_network_dict(spec.network_dict())
    assert again.network_dict() == spec.network_dict()
    assert again.digest() == spec.digest()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.toml"
        path.write_text(dump_spec(spec))
        assert load_spec(path) == spec


def test_a_streaming_variants_toml_gives_the_spec_back(tmp_path):
    for stream in (Stream(), Stream(capacity=7, idle_s=0.5), Stream(idle_s=90)):
        spec = streaming(LSTM, LSTM, name="v", stream=stream, head=Head(size=2, on="last"))
        (tmp_path / "v.toml").write_text(dump_spec(spec))
        assert load_spec(tmp_path / "v.toml") == spec


def test_how_a_variant_is_served_does_not_change_the_digest():
    kept = streaming(LSTM, stream=Stream(capacity=7))
    assert kept.digest() == stack(LSTM, lengths=True).digest()


def test_unequal_layers_lay_their_states_side_by_side():
    spec = stack(
        {**LSTM, "proj_size": 3, "direction": "bidirectional"}, {"cell": "gru", "hidden_size": 5}
    )
    assert spec.state_slots("h") == {
        (0, "forward"): (0, 3),
        (0, "reverse"): (3, 3),
        (1, "forward"): (6, 5),
    }
    assert spec.state_slots("c") == {(0, "forward"): (0, 4), (0, "reverse"): (4, 4)}
    assert spec.shapes(2, 9)["h_0"] == (2, 1, 11)
    assert spec.shapes(2, 9)["c_0"] == (2, 2, 4)


def test_every_field_that_changes_an_engine_changes_the_digest():
    changes = [
        {},
        {"input_size": 4},
        {"h_0": 1.0},
        {"c_0": 1.0},
        {"profile": Profile(time=Range(1, 2, 3))},
        {"name": "other"},
        {"lengths": True},
        {"lengths": True, "padding": "repeat"},
        {"vocabulary": 7},
        {"head": Head(size=2)},
        {"head": Head(size=2, on="last")},
        {"precision": "fp16"},
        {"refit": True},
    ]
    layers = [
        {"hidden_size": 5},
        {"direction": "reverse"},
        {"direction": "bidirectional"},
        {"bias": False},
        {"direction": "bidirectional", "merge": "sum"},
        {"peepholes": True},
        {"coupled": True},
        {"proj_size": 2},
        {"clip": 1.0},
        {"cell_clip": 1.0},
        {"layer_norm": True},
        {"cell": "gru"},
        {"cell": "gru", "reset": "before"},
        {"activations": (Activation("relu"),) * 3},
    ]
    digests = [stack(LSTM, **change).digest() for change in changes]
    digests += [stack({**LSTM, **change}).digest() for change in layers]
    assert len(set(digests)) == len(changes) + len(layers)

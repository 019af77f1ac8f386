"""A spec that exists is valid; a TOML mistake is answered with how to write it."""

import pytest
from conftest import ROOT, VARIANTS

from looprnn.errors import SpecError
from looprnn.spec import Profile, Range, RNNSpec, WeightSource, load_spec

GOOD = {
    "name": "good", "cell": "lstm", "input_size": 3, "hidden_size": 4,
    "weights": WeightSource(seed=1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ({"hidden_size": 2.0}, "got 2.0"),
        ({"hidden_size": True}, "got True"),
        ({"input_size": -1}, "got -1"),
        ({"cell": "lsmt"}, "Did you mean 'lstm'"),
        ({"direction": "backward"}, "forward, reverse, bidirectional"),
        ({"cell": "rnn", "activation": "rleu"}, "Did you mean 'relu'"),
        ({"activation": "relu"}, "an lstm has the activation tanh"),
        ({"cell": "rnn", "c_0": 1.0}, "an rnn has no c_0"),
        ({"h_0": float("nan")}, "finite"),
        ({"name": "../etc"}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
    ],
)
def test_a_bad_value_is_refused_with_the_value(change, words):
    with pytest.raises(SpecError, match=words.replace(".", r"\.")):
        RNNSpec(**{**GOOD, **change})


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
        ("hidden_size = 4", "hidden_size = 0", "got 0"),
        ("hidden_size = 4", "hidden_size = ", "line 4"),
        ('cell = "lstm"', "", "missing cell"),
        ("[weights]\nseed = 1", "", "missing weights"),
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
        assert (spec.input_size, spec.hidden_size, spec.h_0, spec.c_0) == (7, 5, 1.0, 0.0)
        assert (spec.profile.batch.opt, spec.profile.time.opt) == (3, 4)
        assert spec.weights == WeightSource(constant=1.0, bias=0.0)


def test_the_card_gives_the_spec_back():
    for spec in VARIANTS.values():
        again = RNNSpec.from_network_dict(spec.network_dict())
        assert again.network_dict() == spec.network_dict()
        assert again.digest() == spec.digest()


def test_every_field_that_changes_an_engine_changes_the_digest():
    spec = RNNSpec(**GOOD)
    changes = [
        {"cell": "rnn"}, {"input_size": 4}, {"hidden_size": 5}, {"direction": "reverse"},
        {"h_0": 1.0}, {"c_0": 1.0}, {"profile": Profile(time=Range(1, 2, 3))}, {"name": "other"},
        {"cell": "rnn", "activation": "relu"},
    ]  # fmt: skip
    digests = [RNNSpec(**{**GOOD, **change}).digest() for change in changes]
    assert len({spec.digest(), *digests}) == len(changes) + 1

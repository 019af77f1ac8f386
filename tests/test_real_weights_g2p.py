"""g2p-en's GRUs, against its own NumPy code: it spells the words. Its class alone is executed,
without what the module around it imports.
"""

import ast
import os
import warnings
import zipfile
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import shared
import spell
from real_weights import MUTANTS, changed, fetched, interpreted, opened

from looprnn import parity

STATE_ATOL = 1e-4  # g2p-en computes in float32 too: 5e-6 apart over 35 words
ODD = ["b", "o'zone", "ünïcode", "a" * 40, "zzzzzz"]  # one letter, unknown ones, a runaway


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


GRU_MUTANTS = [*MUTANTS, swap_biases, negate_z, letters_one_off]
# The encoder's swapped biases move its states by 0.1, which changes no word: see its states' test.
HEARD_IN_WORDS = [
    *(("encoder", m) for m in GRU_MUTANTS if m is not swap_biases),
    *(("decoder", m) for m in GRU_MUTANTS),
]


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

"""Words nobody has in a dictionary → phonemes, with the trained weights of g2p-en served by
looprnn.

.venv/bin/python examples/g2p/spell.py WORD…

Two variants: an encoder (embedding, GRU) reads the letters of all words in one request, each row
`lengths` long; its h_n is the decoder's h_0. The decoder (embedding, GRU, linear head) is asked one
step at a time: the likeliest phoneme of its head is its next input, its h_n its next h_0.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import Package, bar, built, exit_status, fetch, working_folder

from looprnn.engines import Session
from looprnn.errors import RequestError
from looprnn.importers import PLACEHOLDER, Imported, checked
from looprnn.spec import Head, Layer, Profile, Range, RNNSpec

PACKAGE = Package(
    name="g2p-en",
    version="2.1.0",
    file="g2p_en-2.1.0-py3-none-any.whl",
    sha256="2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f",
)
# ARPAbet, as the CMU dictionary writes it: a vowel carries its stress.
VOWELS = [
    "AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW",
]  # fmt: skip
CONSONANTS = [
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH",
    "T", "TH", "V", "W", "Y", "Z", "ZH",
]  # fmt: skip
STRESSED = [vowel + stress for vowel in VOWELS for stress in "012"]
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*STRESSED, *CONSONANTS, "UW"])]
LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
LONGEST = 20  # phonemes
ROWS, STEPS = Range(1, 8, 64), Range(1, 12, 64)

WORDS = [
    "activationist", "blorptastic", "quizzaciously", "snorfle", "wugging", "zyxtopia",
    "thrackerzod", "jabberwock", "frabjous", "vorpal", "borogoves", "mimsily", "pythonista",
    "tensorflowing", "unfriendable", "doomscroll", "grokkable", "xylophonatic",
    "knightlessness", "psychedelify", "rhythmology", "chthonicus", "embiggening", "cromulently",
    "yoctosecond", "bureaucratese", "gnocchify", "phlebotomizer", "squeegeed", "oompahs",
]  # fmt: skip

# Our canonical names ← theirs. Gates are r z n, reset after the product, two biases: as ours.
GRU = {
    "embedding.weight": "emb",
    "weight_ih_l0": "w_ih",
    "weight_hh_l0": "w_hh",
    "bias_ih_l0": "b_ih",
    "bias_hh_l0": "b_hh",
}
ENCODER = {ours: f"enc_{theirs}" for ours, theirs in GRU.items()}
DECODER = {ours: f"dec_{theirs}" for ours, theirs in GRU.items()}
DECODER |= {"head.weight": "fc_w", "head.bias": "fc_b"}


def imported(wheel: Path) -> tuple[Imported, Imported]:
    """The encoder and the decoder in the package's checkpoint. Raises WeightsError."""
    member = "g2p_en/checkpoint20.npz"
    with zipfile.ZipFile(wheel) as opened, np.load(io.BytesIO(opened.read(member))) as file:
        arrays = {name: file[name] for name in file.files}
    layers = (Layer(cell="gru", hidden_size=256),)
    encoder = RNNSpec(
        name="g2p_encoder",
        vocabulary=len(LETTERS),
        input_size=256,
        layers=layers,
        lengths=True,
        profile=Profile(batch=ROWS, time=STEPS),
        weights=PLACEHOLDER,
    )
    decoder = RNNSpec(
        name="g2p_decoder",
        vocabulary=len(PHONEMES),
        input_size=256,
        layers=layers,
        head=Head(size=len(PHONEMES)),
        profile=Profile(batch=ROWS, time=Range(1, 1, LONGEST)),
        weights=PLACEHOLDER,
    )
    return _renamed(encoder, ENCODER, arrays, member), _renamed(decoder, DECODER, arrays, member)


def _renamed(
    spec: RNNSpec, names: Mapping[str, str], arrays: Mapping[str, NDArray[np.float32]], origin: str
) -> Imported:
    return checked(Imported(spec, {n: arrays[theirs] for n, theirs in names.items()}), origin)


def letters(words: Sequence[str]) -> dict[str, NDArray[np.int32]]:
    """input [B, T] and lengths [B]: each word's letters and </s>, padded to the longest."""
    ids = [[LETTERS.index(c) if c in LETTERS else 1 for c in word] + [2] for word in words]
    lengths = np.array([len(row) for row in ids], np.int32)
    padded = np.zeros((len(ids), lengths.max()), np.int32)
    for row, own in zip(padded, ids, strict=True):
        row[: len(own)] = own
    return {"input": padded, "lengths": lengths}


def spell(words: Sequence[str], encoder: Session, decoder: Session) -> list[list[str]]:
    """The phonemes of each word. Raises RequestError for more or longer words than the profile."""
    if not 1 <= len(words) <= ROWS.max or max(map(len, words)) >= STEPS.max:
        raise RequestError(
            f"1 to {ROWS.max} words of at most {STEPS.max - 1} letters fit into one request; got "
            f"{len(words)}, the longest of {max(map(len, words), default=0)}"
        )
    start = np.zeros((len(words), 1, 256), np.float32)
    h = encoder.run({**letters(words), "h_0": start})["h_n"]  # [B, 1, H]
    ids = np.full((len(words), 1), PHONEMES.index("<s>"), np.int32)  # [B, T=1]
    chosen = []
    for _ in range(LONGEST):
        answer = decoder.run({"input": ids, "h_0": h})
        h, ids = answer["h_n"], answer["head"].argmax(axis=-1).astype(np.int32)  # head [B, 1, 74]
        chosen.append(ids[:, 0])
    rows = [[PHONEMES[i] for i in row] for row in np.stack(chosen, axis=1)]
    return [row[: row.index("</s>")] if "</s>" in row else row for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Words to phonemes, with g2p-en's weights.")
    parser.add_argument("words", nargs="*", metavar="WORD", help="default: thirty invented ones")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep variants and engines here")
    options = parser.parse_args(arguments)
    words = [word.lower() for word in options.words or WORDS]
    console = Console()
    wheel = fetch(PACKAGE, console=console)
    with working_folder(options.folder) as folder:
        first, second = imported(wheel)
        with (
            built(first, folder, console) as (encoder, encoder_differs),
            built(second, folder, console) as (decoder, decoder_differs),
            bar(console, "spelling"),
        ):
            spelled = spell(words, encoder, decoder)
    table = Table("word", "phonemes", box=SIMPLE_HEAD, pad_edge=False)
    for word, phonemes in zip(words, spelled, strict=True):
        table.add_row(escape(word), escape(" ".join(phonemes)))
    console.print(table)
    console.print(
        f"engines against the NumPy reference: encoder {encoder_differs:.1e}, "
        f"decoder {decoder_differs:.1e}"
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))

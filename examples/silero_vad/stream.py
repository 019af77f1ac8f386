"""A minute of sound, 32 ms at a time, through the trained LSTM of silero-vad served by looprnn.

.venv/bin/python examples/silero_vad/stream.py

What comes before the LSTM is convolutions, so it stays in the package's own ONNX model, which ONNX
Runtime runs. That model has an LSTM too, and its h and c are what ours must equal after every one
of 1875 chunks, each side carrying its own. The probability of speech is the package's last layer on
our h. Two checkpoints, for the package's files hold two trainings: weight_ih differs by up to 1.

silero_vad       the LSTM node of the sequence model, an .onnx: gates in ONNX's order, i o f g. Its
                 weights are the streaming model's, which is asked as it was published.
silero_vad_16k   lstm_cell.weight_ih, … of the .safetensors: PyTorch's order, i f g o. No published
                 model has these weights: the streaming model is asked with all of its own replaced.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from shared import Package, bar, built, exit_status, fetch, unpack, working_folder

from looprnn import importers
from looprnn.engines import Session
from looprnn.errors import ParityError, WeightsError
from looprnn.importers import Imported
from looprnn.spec import Profile, Range

Array = NDArray[np.float32]
Report = Callable[[str, int, int], None]

PACKAGE = Package(
    name="silero-vad",
    version="6.2.3",
    file="silero_vad-6.2.3-py3-none-any.whl",
    sha256="7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)
DATA = "silero_vad/data/"
STREAMING = DATA + "silero_vad_16k_op15.onnx"
FEATURES = "/model/encoder/3/activation/Relu_output_0"  # what its LSTM reads, [1, 128, 1]
# The streaming model's initializers ← the tensors of the .safetensors.
REPLACED = {
    "model.stft.forward_basis_buffer": "stft_conv.weight",
    "model.decoder.decoder.2.weight": "final_conv.weight",
    "model.decoder.decoder.2.bias": "final_conv.bias",
    **{
        f"model.encoder.{k}.reparam_conv.{part}": f"conv{k + 1}.{part}"
        for k in range(4)
        for part in ("weight", "bias")
    },
    **{
        f"model.decoder.rnn.{part}": f"lstm_cell.{part}"
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
}
RATE, CHUNK, CONTEXT = 16_000, 512, 64  # samples: a second, a step, those seen again by the next
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One training's weights: the file its LSTM is imported from, and the layer's name in it."""

    name: str
    file: str
    layer: str
    replaces: bool  # whether the streaming model is asked with this file's weights, not its own


CHECKPOINTS = (
    Checkpoint(
        name="silero_vad",
        file=DATA + "silero_vad_16k_sequence.onnx",
        layer="/recurrent/LSTM",
        replaces=False,
    ),
    Checkpoint(
        name="silero_vad_16k",
        file=DATA + "silero_vad_16k.safetensors",
        layer="lstm_cell",
        replaces=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the package's ONNX model said of each of N chunks."""

    features: Array  # [N, 128], the LSTM's input
    h: Array  # [N, 128], after the chunk
    c: Array  # [N, 128]
    probability: Array  # [N]


def imported(checkpoint: Checkpoint, file: Path) -> Imported:
    """The LSTM as a variant that takes one chunk, or up to 64 at once. Raises WeightsError."""
    found = importers.read(file, name=checkpoint.name, layer=checkpoint.layer)
    profile = Profile(batch=Range(1, 1, 8), time=Range(1, 1, 64))
    return dataclasses.replace(found, spec=dataclasses.replace(found.spec, profile=profile))


def streaming_model(file: Path, weights: Path | None = None) -> onnx.ModelProto:
    """The package's model with its LSTM's input as one more output; with `weights`, a .safetensors,
    every array in it is replaced.
    """
    model = onnx.load(file)
    if weights is not None:
        fresh = load_file(weights)
        for array in model.graph.initializer:
            theirs = fresh.pop(REPLACED[array.name])
            if theirs.shape != tuple(array.dims):
                raise WeightsError(f"{weights}: {array.name} would be {list(theirs.shape)}")
            array.CopyFrom(onnx.numpy_helper.from_array(theirs, array.name))
        if fresh:
            raise WeightsError(f"{weights}: {', '.join(fresh)} left over")
    kind = onnx.TensorProto.FLOAT
    model.graph.output.append(onnx.helper.make_tensor_value_info(FEATURES, kind, None))
    return model


def sound(seconds: int, seed: int = 0) -> Array:
    """Synthetic audio [samples]: 3 s of a voice-like hum in syllables, 3 s without, the second half
    of that in every other turn a hiss.
    """
    rng = np.random.default_rng(seed)
    t = np.arange(seconds * RATE) / RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.6 * t) + 10 * np.sin(2 * np.pi * 2.3 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formants = (  # Hz, how wide, how strong
        (600 + 250 * np.sin(2 * np.pi * 1.9 * t), 90, 1.0),
        (1500 + 600 * np.sin(2 * np.pi * 1.3 * t + 1), 120, 0.6),
        (2600 + 200 * np.sin(2 * np.pi * 0.8 * t), 180, 0.3),
    )
    voice = np.zeros_like(t)
    for k in range(1, 31):
        strength = sum(s / (1 + ((k * pitch - hz) / width) ** 2) for hz, width, s in formants)
        voice += strength * np.sin(k * phase)
    voice *= np.sqrt(np.maximum(0, np.sin(2 * np.pi * 3.1 * t))) * (t % 6 < 3)
    hiss = rng.standard_normal(len(t)) * np.where(t % 12 > 9, 0.05, 0.001)
    return (0.3 * voice / np.abs(voice).max() + hiss).astype(np.float32)


def listen(model: onnx.ModelProto, audio: Array, report: Report) -> Heard:
    """The package's model, chunk by chunk: each with the end of the one before, and its state."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    data = model.SerializeToString()
    theirs = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    starts = range(0, len(audio) - CHUNK + 1, CHUNK)
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), audio])
    state = np.zeros((2, 1, 128), np.float32)  # h, c
    answers = []
    for n, start in enumerate(starts, 1):
        samples = padded[np.newaxis, start : start + CONTEXT + CHUNK]
        rate = np.array(RATE, np.int64)
        answers.append(theirs.run(None, {"input": samples, "state": state, "sr": rate}))
        state = answers[-1][1]
        report("silero-vad's model", n, len(starts))
    probability, states, *features = (np.stack(each) for each in zip(*answers, strict=True))
    return Heard(
        features=features[0][:, 0, :, 0] if features else np.zeros((0, 128), np.float32),
        h=states[:, 0, 0],
        c=states[:, 1, 0],
        probability=probability[:, 0, 0],
    )


def stream(ours: Session, features: Array, report: Report) -> tuple[Array, Array]:
    """h and c [N, 128] after each chunk of features [N, 128], one step a call, states carried."""
    h = c = np.zeros((1, 1, 128), np.float32)
    every = []
    for n, x in enumerate(features, 1):
        answer = ours.run({"input": x[np.newaxis, np.newaxis], "h_0": h, "c_0": c})
        h, c = answer["h_n"], answer["c_n"]
        every.append((h[0, 0], c[0, 0]))
        report("looprnn", n, len(features))
    return np.stack([h for h, _ in every]), np.stack([c for _, c in every])


def probability(model: onnx.ModelProto, h: Array) -> Array:
    """The model's last layer, sigmoid(w · relu(h) + b): h [N, 128] → [N]."""
    arrays = {a.name: onnx.numpy_helper.to_array(a) for a in model.graph.initializer}
    w, b = (arrays[f"model.decoder.decoder.2.{part}"].ravel() for part in ("weight", "bias"))
    found: Array = 1 / (1 + np.exp(-(np.maximum(h, 0) @ w + b)))
    return found


def largest(got: Array, want: Array) -> float:
    """The largest absolute difference; NaN if any is."""
    return float(np.abs(got - want).max())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Speech or not, with silero-vad's weights.")
    parser.add_argument("--seconds", type=int, default=60, help="of sound (default: %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep variants and engines here")
    options = parser.parse_args(arguments)
    if options.seconds < 1:
        parser.error(f"--seconds must be at least 1, got {options.seconds}")
    console = Console()
    wheel = fetch(PACKAGE, console=console)
    audio = sound(options.seconds)
    with working_folder(options.folder) as folder:
        for checkpoint in CHECKPOINTS:
            file, model_file = (unpack(wheel, f, folder) for f in (checkpoint.file, STREAMING))
            model = streaming_model(model_file, file if checkpoint.replaces else None)
            with (
                built(imported(checkpoint, file), folder, console) as (ours, differs),
                bar(console, "listening") as report,
            ):
                heard = listen(model, audio, report)
                h, c = stream(ours, heard.features, report)
            console.print(table(checkpoint, heard, h, c, probability(model, h)))
            console.print(f"the engine against the NumPy reference: {differs:.1e}\n")
            worst = max(largest(h, heard.h), largest(c, heard.c))
            if not worst <= TOLERANCE:
                raise ParityError(
                    f"{checkpoint.name}: the states differ from silero-vad's by {worst:.1e}; "
                    f"at most {TOLERANCE:g} is allowed"
                )


def table(checkpoint: Checkpoint, heard: Heard, h: Array, c: Array, speech: Array) -> Table:
    """One row for each 4 s: the mean probability of speech, and the largest differences."""
    title = f"{checkpoint.name}, from {Path(checkpoint.file).name}"
    made = Table("seconds", title=title, box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for name in ("speech", "silero-vad says", "h differs", "c differs"):
        made.add_column(name, justify="right")
    step = 4 * RATE // CHUNK
    for start in range(0, len(h), step):
        part = slice(start, start + step)
        made.add_row(
            f"{start * CHUNK // RATE}",
            f"{speech[part].mean():.3f}",
            f"{heard.probability[part].mean():.3f}",
            f"{largest(h[part], heard.h[part]):.1e}",
            f"{largest(c[part], heard.c[part]):.1e}",
        )
    return made


if __name__ == "__main__":
    sys.exit(exit_status(main))

"""Trained weights from where they were trained → a variant: NAME.toml and NAME.safetensors. One
file per format.

| file                        | module   | read with                                  |
|-----------------------------|----------|--------------------------------------------|
| .pt .pth .bin               | torch    | torch.load(weights_only=True)              |
| .safetensors                | torch    | safetensors                                |
| .onnx                       | onnx     | onnx                                       |
| .keras .h5 .hdf5            | keras    | zipfile and h5py; Keras is not needed      |
| .npz                        | rnnv2…   | NumPy, without pickle                      |

Each module has read(path, *, name, layer) → Imported. Everything read is checked: nothing missing,
nothing left over.
"""

import dataclasses
import importlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from looprnn import variants, weights
from looprnn.errors import WeightsError
from looprnn.layer import near
from looprnn.spec import RNNSpec, WeightSource

MODULES: Final = {
    ".pt": "torch", ".pth": "torch", ".bin": "torch", ".safetensors": "torch",
    ".onnx": "onnx",
    ".keras": "keras", ".h5": "keras", ".hdf5": "keras",
    ".npz": "rnnv2_file",
}  # fmt: skip
EXTRA: Final = {"torch": "torch", "onnx": "looprnn[onnxruntime]", "keras": "looprnn[keras]"}
BYTES_MAX: Final = (
    4 << 30
)  # of arrays in one file: what claims more is refused before it is allocated


@dataclass(frozen=True, slots=True)
class Imported:
    """A spec, its arrays by canonical names (weights.py), and sentences the user should read.

    The spec's [weights] is a placeholder until write() names the file.
    """

    spec: RNNSpec
    weights: Mapping[str, NDArray[Any]]
    notes: tuple[str, ...] = ()


PLACEHOLDER: Final = WeightSource(constant=0.0)


def read(path: Path, *, name: str, layer: str | None = None) -> Imported:
    """Read one file by its suffix. `layer` chooses one of several recurrent layers by its name in
    the file.

    Raises WeightsError: no such file, an unknown suffix, several layers and none chosen (it lists
    them), a tensor that is not understood (it names it), or a hostile file. Raises SpecError for
    what no spec can express.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: {_no_file(path)}")
    if path.suffix.lower() not in MODULES:
        raise WeightsError(
            f"{path}: cannot import {path.suffix or 'a file without suffix'}; "
            f"known: {', '.join(MODULES)}"
        )
    module = MODULES[path.suffix.lower()]
    try:
        importer = importlib.import_module(f"looprnn.importers.{module}")
    except ImportError as error:
        raise WeightsError(
            f"{path}: reading it needs {error.name}. "
            f"Type: pip install '{EXTRA.get(module, module)}'"
        ) from error
    imported: Imported = importer.read(path, name=name, layer=layer)
    return checked(imported, str(path))


def _no_file(path: Path) -> str:
    """What it is instead, and which file may have been meant."""
    folder = path if path.is_dir() else path.parent
    files = [p.name for p in folder.glob("*") if p.suffix.lower() in MODULES and p.is_file()]
    if path.is_dir():
        return (
            f"a folder, wanted a file. It has: {', '.join(sorted(files)) or 'none that is known'}"
        )
    return f"no such file{near(path.name, tuple(files))}"


def checked(imported: Imported, origin: str) -> Imported:
    """The same with its arrays checked against the spec, float32 and contiguous. Raises
    WeightsError.
    """
    return dataclasses.replace(
        imported, weights=weights.check(imported.spec, imported.weights, origin)
    )


def write(imported: Imported, folder: Path) -> Path:
    """folder/NAME.safetensors and folder/NAME.toml; the TOML appears last, whole. Answers its
    path.
    """
    name = imported.spec.name
    folder.mkdir(parents=True, exist_ok=True)
    spec = dataclasses.replace(
        imported.spec, weights=WeightSource(file=folder / f"{name}.safetensors")
    )
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=folder) as staging:
        made = Path(staging) / "made"
        weights.save_weights(
            made, {n: np.asarray(a, np.float32) for n, a in imported.weights.items()}
        )
        made.replace(folder / f"{name}.safetensors")
        made.write_text(variants.dump_spec(spec), encoding="utf-8")
        made.replace(folder / f"{name}.toml")
    return folder / f"{name}.toml"

"""ONNX Runtime on the CPU: the default on hosts without an NVIDIA GPU."""

from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from looprnn.card import EngineCard
from looprnn.engines import Arrays, Engine, Progress
from looprnn.errors import EngineError, EngineMissing
from looprnn.spec import RNNSpec
from looprnn.weights import Weights

# A run of small layers on a few rows is over before a second thread has come: LSTM 64→256 (0.3
# million weights), T = 32, 2 cores, with one thread and with two takes 0.40 and 0.47 ms at B = 1,
# 0.66 and 1.00 at 4, 0.80 and 0.68 at 5, 1.34 and 0.85 at 8, 4.60 and 2.47 at 32.
SMALL = 1_000_000  # weights of a layer
FEW = 4  # rows


class OnnxRuntime(Engine):
    name = "onnxruntime"
    file = "model.onnx"

    def libraries(self) -> dict[str, str]:
        return {"onnxruntime": str(ort.__version__), "onnx": version("onnx")}

    def cannot_build(self) -> str | None:
        try:
            version("onnx")
        except ImportError:
            return "onnx is not installed here. Type: pip install 'looprnn[onnxruntime]'"
        return None

    def cannot_run(self, card: EngineCard, device: int = 0) -> str | None:
        return None  # ONNX files are portable: any CPU, any ONNX Runtime that knows their opset

    def build(
        self, spec: RNNSpec, weights: Weights, path: Path, *, progress: Progress, workspace: int
    ) -> dict[str, Any]:
        from looprnn.engines.onnx_model import build_model, how  # needed to build, not to serve

        progress("ONNX model", 0, 1)
        path.write_bytes(build_model(spec, weights).SerializeToString())
        progress("ONNX model", 1, 1)
        return {"gpu": None, "capabilities": [], "precision": "fp32", "made_of": how(spec)}

    def session(self, path: Path, spec: RNNSpec, device: int = 0) -> "OnnxSession":
        return OnnxSession(path, spec)


class OnnxSession:
    """ONNX Runtime on the CPU provider, with as many threads as pay for the rows of a run."""

    def __init__(self, path: Path, spec: RNNSpec) -> None:
        try:
            model = path.read_bytes()
        except FileNotFoundError:
            raise EngineMissing(f"{path}: no such engine") from None
        try:
            if small(spec):
                # Threads that spin for work to come take the core that the server needs.
                self._few = load(model, threads=1)
                self._many = load(model, spin=False)
            else:
                self._few = self._many = load(model)
        except Exception as error:  # ort raises a class of its own for each cause
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        self._outputs = spec.output_names

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._few, self._many

    def run(
        self, inputs: Arrays, wanted: Collection[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        names = self._outputs if wanted is None else tuple(wanted)
        session = self._few if len(inputs["input"]) <= FEW else self._many
        return dict(zip(names, session.run(names, inputs), strict=True))


def load(model: bytes, *, threads: int = 0, spin: bool = True) -> ort.InferenceSession:
    """threads: of one run; 0 is ONNX Runtime's choice, one for each core."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def small(spec: RNNSpec) -> bool:
    """Whether every layer has fewer than SMALL weights."""
    sizes = (
        len(layer.gates) * layer.hidden_size * (spec.layer_input(k) + layer.output_size)
        for k, layer in enumerate(spec.layers)
    )
    return max(sizes) < SMALL


def engine(name: str) -> Engine:
    return OnnxRuntime()

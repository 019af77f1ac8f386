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

# Weights of a layer. LSTM 64→256 (0.3 million), T = 32, on 2 idle cores, one thread and two that
# spin: 0.40 and 0.29 ms at B = 1, 1.32 and 0.73 at B = 8. Served, one has the lower p99 at
# concurrency 8 (5.1 to 6.9 ms) for 0.6 of the CPU time, and 5 % fewer requests/s (at 32, 19 %).
SHARED_FROM = 1_000_000


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
    """One ort.InferenceSession on the CPU provider."""

    def __init__(self, path: Path, spec: RNNSpec) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads(spec)
        try:
            self._session = ort.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except FileNotFoundError:
            raise EngineMissing(f"{path}: no such engine") from None
        except Exception as error:  # ort raises a class of its own for each cause
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        self._outputs = spec.output_names

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._session

    def run(
        self, inputs: Arrays, wanted: Collection[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        names = self._outputs if wanted is None else tuple(wanted)
        return dict(zip(names, self._session.run(names, inputs), strict=True))


def threads(spec: RNNSpec) -> int:
    """1 for small layers: the other cores are the server's and other models'; else 0, ONNX
    Runtime's choice of one for each core.
    """
    sizes = (
        len(layer.gates) * layer.hidden_size * (spec.layer_input(k) + layer.output_size)
        for k, layer in enumerate(spec.layers)
    )
    return 1 if max(sizes) < SHARED_FROM else 0


def engine(name: str) -> Engine:
    return OnnxRuntime()

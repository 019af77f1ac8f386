"""A model repository whose one model doubles its input: it fails at 86 and takes its time at 77."""

from pathlib import Path

MODEL = """
import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb.get_input_tensor_by_name(request, "input").as_numpy()
        h = pb.get_input_tensor_by_name(request, "h_0")
        h = np.zeros((len(x), 1, 3), np.float32) if h is None else h.as_numpy()
        if x.flat[0] == 86:
            return pb.InferenceResponse([], pb.TritonError("eighty-six"))
        if x.flat[0] == 77:
            time.sleep(1)
        found = {"output": x * 2, "h_n": h + 1}
        return pb.InferenceResponse([pb.Tensor(n, found[n])
                                     for n in request.requested_output_names()])
"""
CONFIG = """
name: "double"
backend: "python"
max_batch_size: 8
input [
  { name: "input" data_type: TYPE_FP32 dims: [-1, 3] },
  { name: "h_0" data_type: TYPE_FP32 dims: [1, 3] optional: true }
]
output [
  { name: "output" data_type: TYPE_FP32 dims: [-1, 3] },
  { name: "h_n" data_type: TYPE_FP32 dims: [1, 3] }
]
instance_group [{ count: 1 kind: KIND_CPU }]
"""


def write_repository(folder: Path) -> Path:
    """folder as a model repository."""
    version = folder / "double" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    return folder

"""A model repository whose one model holds streams: running sums, which NumPy checks in a line.

output: the sum of the stream's inputs so far, at every step. h_n: the last of them. c_n: the steps
so far, in every place. It refuses as looprnn's stream models do, and says how many streams live.
"""

from pathlib import Path

SIZE = 3
CAPACITY = 8
MODEL = """
import numpy as np
import triton_python_backend_utils as pb

CAPACITY = {capacity}

class TritonPythonModel:
    def initialize(self, args):
        self.streams = {{}}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        try:
            return pb.InferenceResponse(self.outputs(request))
        except ValueError as error:
            return pb.InferenceResponse([], pb.TritonError(str(error)))

    def outputs(self, request):
        given = {{}}
        for name in ("input", "lengths", "h_0", "c_0"):
            tensor = pb.get_input_tensor_by_name(request, name)
            if tensor is not None:
                given[name] = tensor.as_numpy()
        key, x = request.correlation_id(), given["input"]
        start, end = (
            bool(request.flags() & flag)
            for flag in (pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
                         pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
        )
        if not np.isfinite(x).all():
            raise ValueError("bad input: NaN")
        if x[0, 0, 0] == 86:
            raise ValueError("engine failed: eighty-six")
        if start:
            if len(self.streams) >= CAPACITY:
                raise ValueError(f"stream refused: capacity {{CAPACITY}} is used up")
            zero = np.zeros((1, 1, {size}), np.float32)
            self.streams[key] = [given.get("h_0", zero), given.get("c_0", zero)]
        if key not in self.streams:
            raise ValueError(f"stream {{key}}: unknown: send START")
        steps = int(given.get("lengths", [[x.shape[1]]])[0][0])
        h, c = self.streams[key]
        output = np.zeros_like(x)
        output[:, :steps] = h + np.cumsum(x[:, :steps], 1)
        h = output[:, steps - 1 : steps] if steps else h
        found = {{"output": output, "h_n": h, "c_n": c + steps}}
        self.streams[key] = [found["h_n"], found["c_n"]]
        if end:
            del self.streams[key]
        return [pb.Tensor(n, np.ascontiguousarray(found[n], np.float32))
                for n in request.requested_output_names()]
"""
CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 64
input [
  {{ name: "input" data_type: TYPE_FP32 dims: [-1, {size}] }},
  {{ name: "lengths" data_type: TYPE_INT32 dims: [1] optional: true }},
  {{ name: "h_0" data_type: TYPE_FP32 dims: [1, {size}] optional: true }},
  {{ name: "c_0" data_type: TYPE_FP32 dims: [1, {size}] optional: true }}
]
output [
  {{ name: "output" data_type: TYPE_FP32 dims: [-1, {size}] }},
  {{ name: "h_n" data_type: TYPE_FP32 dims: [1, {size}] }},
  {{ name: "c_n" data_type: TYPE_FP32 dims: [1, {size}] }}
]
instance_group [{{ count: 1 kind: KIND_CPU }}]
parameters {{ key: "time_max" value {{ string_value: "64" }} }}
parameters {{ key: "streaming" value {{ string_value: "true" }} }}
sequence_batching {{
  oldest {{ max_candidate_sequences: {candidates} }}
  max_sequence_idle_microseconds: 60000000
  control_input [
    {{ name: "START" control [{{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }}] }}
  ]
}}
"""


def write_repository(
    folder: Path,
    *,
    name: str = "sum_stream",
    size: int = SIZE,
    capacity: int = CAPACITY,
    candidates: int = 64,
) -> Path:
    """folder as a model repository."""
    version = folder / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL.format(size=size, capacity=capacity))
    (version.parent / "config.pbtxt").write_text(
        CONFIG.format(name=name, size=size, candidates=candidates)
    )
    return folder

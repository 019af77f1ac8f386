"""The same ONNX file behind FastAPI: MODEL=model.onnx python -m uvicorn fastapi_app:app.

Arrays travel as raw float32: JSON would cost several times the network itself.
"""

import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request, Response

options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("THREADS", 0))
session = ort.InferenceSession(os.environ["MODEL"], options)
app = FastAPI()


@app.post("/infer")
async def infer(request: Request) -> Response:
    x = np.frombuffer(await request.body(), np.float32).reshape(1, -1, 64)
    state = np.zeros((1, 1, 256), np.float32)
    lengths = np.array([x.shape[1]], np.int32)
    feeds = {"input": x, "lengths": lengths, "h_0": state, "c_0": state}
    outputs = session.run(["output", "h_n", "c_n"], feeds)
    return Response(b"".join(array.tobytes() for array in outputs))

"""The same ONNX file behind FastAPI and uvicorn: python fastapi_app.py model.onnx PORT.

Arrays travel as raw float32: JSON would cost several times the network itself.
"""

import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response

path, port = sys.argv[1:]
session = ort.InferenceSession(path)
app = FastAPI()


@app.post("/infer")
async def infer(request: Request) -> Response:
    x = np.frombuffer(await request.body(), np.float32).reshape(1, -1, 64)
    state = np.zeros((1, 1, 256), np.float32)
    lengths = np.array([x.shape[1]], np.int32)
    feeds = {"input": x, "lengths": lengths, "h_0": state, "c_0": state}
    outputs = session.run(["output", "h_n", "c_n"], feeds)
    return Response(b"".join(array.tobytes() for array in outputs))


uvicorn.run(app, host="127.0.0.1", port=int(port), access_log=False, log_level="warning")

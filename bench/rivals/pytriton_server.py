"""The same ONNX file behind PyTriton: python pytriton_server.py model.onnx HTTP GRPC METRICS."""

import os
import sys

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

path, http, grpc, metrics = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("THREADS", 0))
session = ort.InferenceSession(path, options)


@batch
def infer(input):
    state = np.zeros((len(input), 1, 256), np.float32)
    lengths = np.full(len(input), input.shape[1], np.int32)
    feeds = {"input": input, "lengths": lengths, "h_0": state, "c_0": state}
    return session.run(["output", "h_n", "c_n"], feeds)


config = TritonConfig(
    http_address="127.0.0.1",
    http_port=int(http),
    grpc_address="127.0.0.1",
    grpc_port=int(grpc),
    metrics_port=int(metrics),
)
with Triton(config=config) as triton:
    triton.bind(
        model_name="pytriton",
        infer_func=infer,
        inputs=[Tensor(name="input", dtype=np.float32, shape=(-1, 64))],
        outputs=[
            Tensor(name="output", dtype=np.float32, shape=(-1, 256)),
            Tensor(name="h_n", dtype=np.float32, shape=(1, 256)),
            Tensor(name="c_n", dtype=np.float32, shape=(1, 256)),
        ],
        config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher()),
    )
    triton.serve()

"""Triton's HTTP, as much of it as a model that doubles its input."""

import gzip
import zlib
from typing import ClassVar

import numpy as np
from test_client_wire import Index


class Doubling(Index):
    """Triton's HTTP, as much of it as the model `double`; keeps each request's headers."""

    seen: ClassVar = []

    def do_GET(self):
        self.seen.append(dict(self.headers))
        row = {"data_type": "TYPE_FP32"}
        self.answer(
            {
                "max_batch_size": 8,
                "input": [
                    row | {"name": "input", "dims": [-1, 3]},
                    row | {"name": "h_0", "dims": [1, 3]},
                ],
                "output": [
                    row | {"name": "output", "dims": [-1, 3]},
                    row | {"name": "h_n", "dims": [1, 3]},
                ],
            }
        )

    def do_POST(self):
        self.seen.append(dict(self.headers))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(
            self.headers.get("Content-Encoding"), bytes
        )(body)
        if self.path.endswith("index"):
            return self.answer([{"name": "double", "version": "1", "state": "READY"}])
        x = np.frombuffer(body[int(self.headers["Inference-Header-Content-Length"]) :], "<f4")
        x = x.reshape(-1, 50, 3)
        rows = [("output", x * 2), ("h_n", np.zeros((len(x), 1, 3)))]
        self.answer(
            {
                "outputs": [
                    {"name": n, "datatype": "FP32", "shape": a.shape, "data": a.ravel().tolist()}
                    for n, a in rows
                ]
            }
        )

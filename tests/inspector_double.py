"""A double of what `looprnn inspect` asks TensorRT about a plan."""

import json

from conftest import needs

trt = needs("tensorrt_rtx", "pip install 'looprnn[rtx]'")
WORDS = {"Layers": [{"Name": "l0/forward/h_r"}], "Bindings": ["input"]}


class Double:
    """TensorRT's runtime, engine and inspector in one."""

    ILogger, LayerInformationFormat = trt.ILogger, trt.LayerInformationFormat

    def Runtime(self, logger):
        return self

    def deserialize_cuda_engine(self, plan):
        return None if plan == b"damaged" else self

    def create_engine_inspector(self):
        return self

    def get_engine_information(self, form):
        assert form == trt.LayerInformationFormat.JSON
        return json.dumps(WORDS)

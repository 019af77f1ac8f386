from looprnn.stream_model import TritonPythonModel  # noqa: F401

from looprnn.triton_model import TritonPythonModel  # noqa: F401

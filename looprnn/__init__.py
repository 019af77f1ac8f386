"""looprnn: recurrent networks as engines that Triton Inference Server serves. Importing it needs
NumPy only.
"""

from looprnn.errors import LoopRNNError
from looprnn.spec import Profile, Range, RNNSpec, WeightSource, load_spec

__all__ = ["LoopRNNError", "Profile", "RNNSpec", "Range", "WeightSource", "load_spec"]

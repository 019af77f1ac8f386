"""looprnn: recurrent networks as engines that Triton Inference Server serves. Importing it needs
NumPy only.
"""

from looprnn.errors import LoopRNNError
from looprnn.spec import Activation, Head, Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.variants import load_spec

__all__ = [
    "Activation",
    "Head",
    "Layer",
    "LoopRNNError",
    "Profile",
    "RNNSpec",
    "Range",
    "WeightSource",
    "load_spec",
]

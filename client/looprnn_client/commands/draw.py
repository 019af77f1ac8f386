"""Inputs that nobody needs a file for: normal numbers, or ids below the vocabulary."""

from __future__ import annotations

import numpy as np

from looprnn_client.signature import Signature
from looprnn_client.transport import Tensor


def draw(signature: Signature, batch: int, time: int, rng: np.random.Generator) -> Tensor:
    """[B, T, I] float32, or ids [B, T] int32."""
    if signature.vocabulary is not None:
        return rng.integers(0, signature.vocabulary, (batch, time)).astype(np.int32)
    return rng.standard_normal((batch, time, signature.takes["input"][1]), np.float32)

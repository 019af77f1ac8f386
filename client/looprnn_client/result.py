"""What a call answers."""

from __future__ import annotations

from dataclasses import dataclass

from looprnn_client.transport import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """The answer to one call; an array is None when it was not asked for or the model has none.

    output: [B, T, ...], what the last layer puts out at every step; output_reverse: the same of its
    reverse direction, where the model keeps the two apart. h_n, c_n: [B, N, H], the last states.
    head: [B, T, size] or [B, size], what the linear layer at the end makes of every step or of
    the last.
    Each is float32, C-contiguous, writable, and memory of its own.
    """

    output: Array | None = None
    output_reverse: Array | None = None
    h_n: Array | None = None
    c_n: Array | None = None
    head: Array | None = None

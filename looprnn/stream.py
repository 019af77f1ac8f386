"""Stream: how the model NAME_stream keeps the states of live streams, and what cannot stream."""

import math
from dataclasses import dataclass
from typing import Any, Final

from looprnn.errors import SpecError
from looprnn.layer import whole

SUFFIX: Final = "_stream"
CAPACITY_MAX: Final = 1_000_000
IDLE_MIN, IDLE_MAX = 0.001, 1e9  # Triton counts whole microseconds, and takes 0 for its own default


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """How many streams are kept, and for how long.

    capacity   streams that live at once; a START beyond is refused
    idle_s     seconds after which a stream that sends nothing is forgotten
    """

    capacity: int = 1024
    idle_s: float = 60.0

    def __post_init__(self) -> None:
        whole("stream.capacity", self.capacity)
        if self.capacity > CAPACITY_MAX:
            raise SpecError(
                f"stream.capacity must be at most {CAPACITY_MAX:,}, got {self.capacity}"
            )
        number = isinstance(self.idle_s, int | float) and not isinstance(self.idle_s, bool)
        if not number or not IDLE_MIN <= self.idle_s <= IDLE_MAX:  # which NaN is not
            raise SpecError(
                f"stream.idle_s must be seconds from {IDLE_MIN:g} to {IDLE_MAX:g}, "
                f"got {self.idle_s!r}"
            )

    @property
    def idle_us(self) -> int:
        """Triton's max_sequence_idle_microseconds."""
        return math.ceil(self.idle_s * 1e6)


def stream_name(name: str) -> str:
    """The model that serves a variant's streams."""
    return name + SUFFIX


def variant_of(model: str) -> str:
    """The variant behind a model's name: no variant's own name ends like a stream model's."""
    return model.removesuffix(SUFFIX)


def check_model(spec: Any, model: str) -> None:
    """Raises SpecError unless the RNNSpec is served as this model."""
    if model not in spec.models:
        raise SpecError(
            f"{model}: {spec.name} has no streams. Set streaming = true in {spec.name}.toml"
        )


def check_streaming(spec: Any) -> None:
    """Raises SpecError for an RNNSpec with streaming = true that cannot be cut into chunks."""
    for k, layer in enumerate(spec.layers):
        if layer.direction != "forward":
            raise SpecError(
                f"layer {k} is {layer.direction}: it reads a sequence from its last step, which a "
                "stream does not have yet. Set direction = 'forward', or leave streaming out"
            )
    if not spec.lengths:
        raise SpecError(
            "streaming runs chunks of different lengths together: set lengths = true as well"
        )
    if spec.padding == "repeat":
        raise SpecError(
            "padding = 'repeat' repeats a row's last output, which a chunk of no steps does not "
            "have. Set padding = 'zero' to stream"
        )
    if spec.profile.time.min != 1:
        raise SpecError(
            "a chunk may be a single step: streaming needs profile.time to begin at 1, "
            f"got {spec.profile.time}"
        )

"""Range and Profile: the sizes for which engines are built."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from looprnn.errors import SpecError

SIZE_MAX: Final = 2**31 - 1  # Triton's and TensorRT's own limit


@dataclass(frozen=True, slots=True)
class Range:
    """The sizes of one axis that an engine accepts (min, max) and is tuned for (opt)."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not all(type(n) is int for n in (self.min, self.opt, self.max)):
            raise SpecError(f"sizes must be whole numbers, got {self}")
        if not 1 <= self.min <= self.opt <= self.max:
            raise SpecError(f"sizes must satisfy 1 <= min <= opt <= max, got {self}")
        if self.max > SIZE_MAX:
            raise SpecError(f"sizes must not be above {SIZE_MAX}, got {self}")

    def __str__(self) -> str:
        return f"[{self.min}, {self.opt}, {self.max}]"


def sizes(axis: str, values: Sequence[int]) -> Range:
    """[min, opt, max] of an axis, which a SpecError names."""
    try:
        return Range(*values)
    except SpecError as error:
        raise SpecError(f"profile.{axis}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Batch rows B and time steps T; TensorRT's optimization profile is made from it."""

    batch: Range = field(default_factory=lambda: Range(1, 1, 8))
    time: Range = field(default_factory=lambda: Range(1, 32, 256))

    def __post_init__(self) -> None:
        if self.batch.min != 1:
            # Triton's dynamic batcher may always send a single row.
            raise SpecError(f"profile.batch must begin at 1, got {self.batch}")

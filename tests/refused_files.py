"""What a hostile file cost until it was refused."""

import tracemalloc

import pytest

from looprnn import importers
from looprnn.errors import WeightsError


def peak(path):
    """The bytes that refusing a file took at most, and the words."""
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as caught:
            importers.read(path, name="net")
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()

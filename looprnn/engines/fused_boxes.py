"""How Hopper's copy engine finds an array in device memory, as the driver encodes it."""

import ctypes
import math
from typing import Any

from cuda.bindings import driver

from looprnn.cuda import check
from looprnn.engines.fused_program import Boxes


def tensor_map(address: int, boxes: Boxes) -> ctypes.Array[Any]:
    """Of the array at `address`; beyond its edges the engine reads zeros and writes nothing.

    In shared memory a box's rows are 128 bytes, whose 16-byte chunk c lies at c ^ row % 8. Raises
    CudaError for an array whose rows do not begin at multiples of 16 bytes.
    """
    kinds = driver.CUtensorMapDataType
    kind = {
        2: kinds.CU_TENSOR_MAP_DATA_TYPE_UINT16,  # of any kind: bits are copied
        4: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    }[boxes.width]
    rank = len(boxes.shape)  # its last axis comes first here
    apart = [boxes.width * math.prod(boxes.shape[axis:]) for axis in range(rank - 1, 0, -1)]
    made = check(
        driver.cuTensorMapEncodeTiled(
            kind,
            rank,
            address,
            [driver.cuuint64_t(size) for size in reversed(boxes.shape)],
            [driver.cuuint64_t(size) for size in apart],
            [driver.cuuint32_t(size) for size in reversed(boxes.box)],
            [driver.cuuint32_t(1)] * rank,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    words = (ctypes.c_ulonglong * 16)()
    ctypes.memmove(words, made.getPtr(), ctypes.sizeof(words))
    return words

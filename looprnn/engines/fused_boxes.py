"""How Hopper's copy engine finds a matrix in device memory, as the driver encodes it."""

import ctypes
from typing import Any

from cuda.bindings import driver

from looprnn.cuda import check
from looprnn.engines.fused_program import Boxes


def tensor_map(address: int, boxes: Boxes) -> ctypes.Array[Any]:
    """Of the matrix at `address`; beyond its edges the engine reads zeros and writes nothing.

    In shared memory a box's rows are 128 bytes, whose 16-byte chunk c lies at c ^ row % 8. Raises
    CudaError for a matrix whose rows do not begin at multiples of 16 bytes.
    """
    kinds = driver.CUtensorMapDataType
    kind = {
        2: kinds.CU_TENSOR_MAP_DATA_TYPE_UINT16,  # of any kind: bits are copied
        4: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    }[boxes.width]
    made = check(
        driver.cuTensorMapEncodeTiled(
            kind,
            2,
            address,
            [driver.cuuint64_t(boxes.columns), driver.cuuint64_t(boxes.rows)],
            [driver.cuuint64_t(boxes.columns * boxes.width)],  # from one row to the next
            [driver.cuuint32_t(size) for size in reversed(boxes.box)],
            [driver.cuuint32_t(1)] * 2,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    words = (ctypes.c_ulonglong * 16)()
    ctypes.memmove(words, made.getPtr(), ctypes.sizeof(words))
    return words

"""memory="cuda": device memory that another process opens by its handle, as a server would."""

import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.gpu

try:
    from looprnn_client._cuda import CudaRegion, check, runtime

    WHY = "" if check(runtime.cudaGetDeviceCount()) else "no GPU here"
except (ImportError, OSError) as error:
    WHY = str(error)

if WHY:
    pytest.skip(f"device memory cannot be had: {WHY}", allow_module_level=True)

X = np.random.default_rng(7).uniform(-1, 1, (3, 5, 7)).astype(np.float32)
# What a server does: maps the memory, reads the input and writes the output beside it.
SERVER = """
import sys
import numpy as np
from cuda.bindings import runtime
from looprnn_client._cuda import check

handle = runtime.cudaIpcMemHandle_t()
handle.reserved = bytes.fromhex(sys.argv[1])
flags = runtime.cudaIpcMemLazyEnablePeerAccess
address = check(runtime.cudaIpcOpenMemHandle(handle, flags))
x = np.empty(105, np.float32)
kind = runtime.cudaMemcpyKind
check(runtime.cudaMemcpy(x.ctypes.data, address, 420, kind.cudaMemcpyDeviceToHost))
x *= 2
check(runtime.cudaMemcpy(address + 448, x.ctypes.data, 420, kind.cudaMemcpyHostToDevice))
check(runtime.cudaDeviceSynchronize())
check(runtime.cudaIpcCloseMemHandle(address))
"""


@pytest.fixture
def region():
    made = CudaRegion(1 << 16, device=0)
    yield made
    made.close()


def test_what_is_written_is_read(region):
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    region.write(64, np.asfortranarray(X))
    region.write(1024, ids)
    np.testing.assert_array_equal(region.read(64, X.shape), X)
    np.testing.assert_array_equal(region.read(1024, (2, 3), np.int32), ids)


def test_another_process_computes_in_it(region):
    device, handle = region.handle
    assert (device, len(handle), region.cuda) == (0, 64, True)
    region.write(0, X)
    subprocess.run([sys.executable, "-c", SERVER, handle.hex()], check=True, timeout=120)
    np.testing.assert_array_equal(region.read(448, X.shape), 2 * X)


def test_closing_gives_the_memory_back():
    before = check(runtime.cudaMemGetInfo())[0]
    region = CudaRegion(1 << 28, device=0)
    assert check(runtime.cudaMemGetInfo())[0] < before
    region.close()
    region.close()
    assert check(runtime.cudaMemGetInfo())[0] == before


@pytest.mark.parametrize(("size", "device"), [(1 << 50, 0), (1024, 99)])
def test_memory_that_is_not_to_be_had(size, device):
    with pytest.raises(OSError, match="CUDA: cudaError"):
        CudaRegion(size, device=device)

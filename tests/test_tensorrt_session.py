"""The session's use of TensorRT's runtime, against a double of it whose memory is the host's, and
against real CUDA copies where there is a GPU. There, test_engines.py executes plans.
"""

import ctypes
import importlib.util
from contextlib import contextmanager

import numpy as np
import pytest
from cases import CASES, worst
from conftest import needs

from looprnn import parity, reference
from looprnn.engines import tensorrt_session
from looprnn.engines.tensorrt import no_gpu
from looprnn.errors import EngineError, EngineMismatch

# Either module will do: they share one API.
found = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]
trt = needs((found or ["tensorrt_rtx"])[0], "pip install 'looprnn[rtx]'")


class HostCuda:
    """looprnn.cuda on host memory, counting what is open; fresh memory holds NaN."""

    class Buffer:
        def __init__(self, size):
            self.size = size

        def __enter__(self):
            self.memory = np.full(self.size // 4, np.nan, np.float32)
            self.address = self.memory.ctypes.data
            HostCuda.live += 1
            return self

        def __exit__(self, *_):
            HostCuda.live -= 1
            self.memory[:] = np.nan

        def view(self, shape, dtype=np.float32):
            return self.memory[: int(np.prod(shape))].view(dtype).reshape(shape)

    live = 0
    PinnedBuffer = DeviceBuffer = Buffer

    class Stream:
        handle = 77

        def __enter__(self):
            HostCuda.live += 1
            return self

        def __exit__(self, *_):
            HostCuda.live -= 1

        def synchronize(self):
            pass

    @staticmethod
    def use(device):
        HostCuda.device = device

    @staticmethod
    def copy_in(device, host, size, stream):
        ctypes.memmove(device.address, host.address, size)

    @staticmethod
    def copy_out(host, device, size, stream):
        ctypes.memmove(host.address, device.address, size)


class Double:
    """TensorRT's runtime, engine and context in one, with the reference inside."""

    ILogger = trt.ILogger

    def __init__(self, case, plan=b"plan"):
        self.case, self.plan = case, plan
        self.shapes, self.addresses = {}, {}

    # trt.Runtime(logger)
    def Runtime(self, logger):
        return self

    def deserialize_cuda_engine(self, plan):
        return self if plan == self.plan else None

    # ICudaEngine
    @property
    def num_io_tensors(self):
        return len(self._names)

    @property
    def _names(self):
        return [*self.case.spec.input_names, *self.case.spec.output_names]

    def get_tensor_name(self, k):
        return self._names[k]

    def create_execution_context(self):
        return self

    # IExecutionContext
    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        profile = self.case.spec.profile
        most = self.case.spec.shapes(profile.batch.max, profile.time.max)[name]
        self.shapes[name] = tuple(shape)
        return all(n <= m for n, m in zip(shape, most, strict=True))

    def get_tensor_shape(self, name):
        batch, time = self.shapes["input"][:2]
        return self.case.spec.shapes(batch, time)[name]

    def execute_async_v3(self, stream):
        def at(name, shape):
            size = int(np.prod(shape)) * 4
            memory = (ctypes.c_byte * size).from_address(self.addresses[name])
            return np.frombuffer(memory, self.case.spec.dtype(name)).reshape(shape)

        inputs = {name: at(name, self.shapes[name]).copy() for name in self.case.spec.input_names}
        answer = reference.run(self.case.spec, self.case.weights, inputs)
        for name, array in answer.items():
            at(name, array.shape)[...] = array
        return stream == 77


@contextmanager
def session_on_the_host(case, tmp_path, monkeypatch, double=None):
    monkeypatch.setattr(tensorrt_session, "cuda", HostCuda)
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    HostCuda.live = 0
    opened = tensorrt_session.TensorRTSession(double or Double(case), path, case.spec, device=3)
    with opened as session:
        yield session


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_session_moves_every_array_to_its_place_and_back(case, tmp_path, monkeypatch):
    with session_on_the_host(case, tmp_path, monkeypatch) as session:
        first = session.run(case.inputs)
        kept = {name: array.copy() for name, array in first.items()}
        other = parity.draw_inputs(case.spec, 1, 2, seed=99)
        session.run(other)
        assert parity.agrees(worst(case, session.run(case.inputs)))
        assert HostCuda.live == 1 + 2 * (len(case.inputs) + len(case.spec.output_names))
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name], "an answer changed after it was given")
    assert HostCuda.live == 0
    assert HostCuda.device == 3


class DeviceDouble(Double):
    """The same with tensors in GPU memory: what it reads and writes went through real copies."""

    def execute_async_v3(self, stream):
        from cuda.bindings import runtime as cudart

        from looprnn.cuda import check

        def move(name, array, kind):
            host, device = array.ctypes.data, self.addresses[name]
            to, source = (host, device) if kind.name.endswith("DeviceToHost") else (device, host)
            check(cudart.cudaMemcpyAsync(to, source, array.nbytes, kind, stream))

        kinds = cudart.cudaMemcpyKind
        inputs = {
            n: np.full(self.shapes[n], -1, self.case.spec.dtype(n))
            for n in self.case.spec.input_names
        }
        for name, array in inputs.items():
            move(name, array, kinds.cudaMemcpyDeviceToHost)
        check(cudart.cudaStreamSynchronize(stream))
        answer = reference.run(self.case.spec, self.case.weights, inputs)
        for name, array in answer.items():
            move(name, np.ascontiguousarray(array, np.float32), kinds.cudaMemcpyHostToDevice)
        check(cudart.cudaStreamSynchronize(stream))
        return True


@pytest.mark.gpu
@pytest.mark.skipif(no_gpu() is not None, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_session_on_real_gpu_memory(case, tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    with tensorrt_session.TensorRTSession(DeviceDouble(case), path, case.spec) as session:
        session.run(parity.draw_inputs(case.spec, 1, 2, seed=99))
        assert parity.agrees(worst(case, session.run(case.inputs)))


def test_a_plan_tensorrt_cannot_load_frees_what_was_opened(tmp_path, monkeypatch):
    refusing = Double(CASES[0], plan=b"another")
    with (
        pytest.raises(EngineMismatch, match=r"model\.plan: TensorRT cannot load this plan"),
        session_on_the_host(CASES[0], tmp_path, monkeypatch, refusing),
    ):
        pass
    assert HostCuda.live == 0


def test_a_plan_of_another_network_is_refused_by_its_tensors(tmp_path, monkeypatch):
    rnn = next(c for c in CASES if c.name == "tanh_rnn")
    with (
        pytest.raises(EngineMismatch, match=r"\['h_0', 'h_n', 'input', 'output'\], wanted \['c_0'"),
        session_on_the_host(CASES[0], tmp_path, monkeypatch, Double(rnn)),
    ):
        pass


def test_an_input_beyond_the_profile_is_refused_with_its_shape(tmp_path, monkeypatch):
    case = CASES[0]
    too_long = parity.draw_inputs(case.spec, 1, case.spec.profile.time.max + 1)
    with (
        session_on_the_host(case, tmp_path, monkeypatch) as session,
        pytest.raises(EngineError, match=r"refused the shape \[1, 65, 5\] of input"),
    ):
        session.run(too_long)


def test_the_double_has_no_method_that_tensorrt_lacks():
    runtime, engine, context = trt.Runtime, trt.ICudaEngine, trt.IExecutionContext
    real = set(dir(runtime)) | set(dir(engine)) | set(dir(context)) | {"Runtime", "ILogger"}
    ours = {name for name in vars(Double) if not name.startswith("_")}
    assert ours - real == set()

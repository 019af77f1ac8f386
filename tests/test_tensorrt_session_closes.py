"""What a TensorRT session has opened is closed, however it ends; on the host's double of CUDA."""

import pytest
from cases import CASES
from test_tensorrt_session import Double, HostCuda, session_on_the_host

from looprnn import parity
from looprnn.errors import CudaError, EngineError


def test_a_session_whose_stream_fails_frees_everything_in_order(tmp_path, monkeypatch):
    def fail(self):
        raise CudaError("cudaErrorIllegalAddress")

    def freed(self, *_):
        HostCuda.live -= 1
        assert not {"context", "engine", "runtime"} & vars(session).keys(), "its memory went first"

    monkeypatch.setattr(HostCuda.Stream, "synchronize", fail)
    monkeypatch.setattr(HostCuda.Buffer, "__exit__", freed)
    with (
        pytest.raises(CudaError, match="IllegalAddress"),
        session_on_the_host(CASES[0], tmp_path, monkeypatch) as session,
    ):
        assert HostCuda.live > 1
    assert HostCuda.live == 0


def test_a_session_without_memory_for_a_context_frees_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(Double, "create_execution_context", lambda self: None)
    with (
        pytest.raises(EngineError, match="no memory for an execution context"),
        session_on_the_host(CASES[0], tmp_path, monkeypatch),
    ):
        pass
    assert HostCuda.live == 0


def test_an_error_shows_none_of_an_earlier_runs(tmp_path, monkeypatch):
    case = CASES[0]
    too_long = parity.draw_inputs(case.spec, 1, case.spec.profile.time.max + 1)
    with session_on_the_host(case, tmp_path, monkeypatch) as session:
        session.log.errors.append("of an earlier request")
        with pytest.raises(EngineError) as caught:
            session.run(too_long)
    assert "of an earlier request" not in str(caught.value)

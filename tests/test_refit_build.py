"""The build of a plan that can be refitted: for the GPU at hand, or refused with what to do."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from refit_double import SPEC, trt

from looprnn.engines.tensorrt import RTX_CAPABILITIES, TensorRT, no_gpu
from looprnn.errors import EngineError
from looprnn.weights import load_weights


class Spy:
    """A TensorRT whose builder keeps its configuration and builds nothing."""

    def __getattr__(self, name):
        return getattr(trt, name)

    def Builder(self, logger):
        real = trt.Builder(logger)

        def build_serialized_network(network, config):
            self.refit = config.get_flag(trt.BuilderFlag.REFIT)
            self.capabilities = [
                config.get_compute_capability(k) for k in range(config.num_compute_capabilities)
            ]
            return b"plan"

        return SimpleNamespace(
            create_network=real.create_network,
            create_builder_config=real.create_builder_config,
            create_optimization_profile=real.create_optimization_profile,
            build_serialized_network=build_serialized_network,
        )


def build_with(spy, spec, tmp_path):
    engine = TensorRT("tensorrt_rtx")
    engine.trt = spy
    return engine.build(
        spec, load_weights(spec), tmp_path / "p", progress=lambda *_: None, workspace=1 << 28
    )


def test_a_refittable_plan_is_for_this_hosts_gpu_alone(tmp_path, monkeypatch):
    spy = Spy()
    assert build_with(spy, replace(SPEC, refit=False), tmp_path)["capabilities"] == [
        *RTX_CAPABILITIES
    ]
    assert (spy.refit, len(spy.capabilities)) == (False, len(RTX_CAPABILITIES))
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: None)
    monkeypatch.setattr("looprnn.cuda.gpu", lambda device=0: SimpleNamespace(capability="8.9"))
    assert build_with(spy, SPEC, tmp_path)["capabilities"] == ["8.9"]
    assert (spy.refit, spy.capabilities) == (True, [trt.ComputeCapability.SM89])


def test_without_its_gpu_a_refittable_plan_is_refused_with_what_to_do(tmp_path, monkeypatch):
    words = "for one compute capability, that of the GPU at hand; {}. Build it on .*remove refit"
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: "there is none")
    with pytest.raises(EngineError, match=words.format("there is none")):
        build_with(trt, SPEC, tmp_path)
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: None)
    monkeypatch.setattr("looprnn.cuda.gpu", lambda device=0: SimpleNamespace(capability="9.0"))
    with pytest.raises(EngineError, match=words.format("TensorRT-RTX does not run on .*")):
        build_with(trt, SPEC, tmp_path)


@pytest.mark.skipif(no_gpu() is None, reason="about hosts without a GPU")
def test_tensorrt_rtx_itself_builds_no_refittable_plan_without_a_gpu(tmp_path, monkeypatch):
    # So the refusal above is no caution of ours: with one capability it still asks for the driver.
    monkeypatch.setattr("looprnn.engines.tensorrt.refittable_capability", lambda spec: ("8.6",))
    with pytest.raises(EngineError, match="built no plan.*Myelin"):
        build_with(trt, SPEC, tmp_path)
    assert not (tmp_path / "p").exists()

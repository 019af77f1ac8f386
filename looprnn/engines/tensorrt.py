"""Plans: serves both `tensorrt` and `tensorrt_rtx`, which share one API. What differs between them,
and between TensorRT 10 and 11, is in this file.

- The flag STRONGLY_TYPED has another value in 10 than in 11: always 1 << int(flag).
- tensorrt_rtx builds for a list of compute capabilities and needs no GPU; tensorrt builds for the
  GPU it finds.
- TF32 is on by default where the flag exists, and would cost three digits: cleared.
"""

import importlib
import logging
from pathlib import Path
from typing import Any

from looprnn.card import EngineCard
from looprnn.engines import Engine, Progress
from looprnn.errors import EngineError
from looprnn.network import define
from looprnn.spec import RNNSpec
from looprnn.weights import Weights

log = logging.getLogger("looprnn.tensorrt")
FILE = {"tensorrt": "model.plan", "tensorrt_rtx": "model.rtx.plan"}
# TensorRT-RTX has no FP32 matmul for 7.5; 9.0 and 10.0 are not RTX GPUs and refused when loading.
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")


class TensorRT(Engine):
    def __init__(self, name: str) -> None:
        self.name = name
        self.file = FILE[name]
        self.trt: Any = importlib.import_module(name)

    def libraries(self) -> dict[str, str]:
        return {self.name: str(self.trt.__version__)}

    def cannot_build(self) -> str | None:
        return None if self.name == "tensorrt_rtx" else no_gpu()

    def cannot_run(self, card: EngineCard, device: int = 0) -> str | None:
        if reason := no_gpu(device):
            return reason
        from looprnn.cuda import gpu

        return mismatch(card, self.libraries(), gpu(device).name, gpu(device).capability)

    def build(
        self, spec: RNNSpec, weights: Weights, path: Path, *, progress: Progress, workspace: int
    ) -> dict[str, Any]:
        trt = self.trt
        logger = make_logger(trt)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        network.name = spec.name
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        config.profiling_verbosity = (
            trt.ProfilingVerbosity.DETAILED
        )  # our layer names in the inspector
        if hasattr(trt.BuilderFlag, "TF32"):
            config.clear_flag(trt.BuilderFlag.TF32)
        config.progress_monitor = make_monitor(trt, progress)
        config.add_optimization_profile(optimization_profile(builder, spec))
        if spec.refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        target = self._target(config, spec)
        kept = define(trt, network, spec, weights)
        plan = builder.build_serialized_network(network, config)
        del kept
        if plan is None:
            raise EngineError(f"{spec.name}: {self.name} built no plan: {'; '.join(logger.errors)}")
        path.write_bytes(plan)
        return {**target, "precision": spec.precision, "made_of": "Loop"}

    def _target(self, config: Any, spec: RNNSpec) -> dict[str, Any]:
        if self.name == "tensorrt_rtx":
            capabilities = refittable_capability(spec) if spec.refit else RTX_CAPABILITIES
            config.num_compute_capabilities = len(capabilities)
            for k, capability in enumerate(capabilities):
                member = getattr(self.trt.ComputeCapability, f"SM{capability.replace('.', '')}")
                config.set_compute_capability(member, k)
            return {"gpu": None, "capabilities": list(capabilities)}
        from looprnn.cuda import gpu

        here = gpu()
        return {"gpu": here.name, "capabilities": [here.capability]}

    def session(self, path: Path, spec: RNNSpec, device: int = 0) -> Any:
        from looprnn.engines.tensorrt_session import TensorRTSession  # needs cuda-python

        return TensorRTSession(self.trt, path, spec, device)


def engine(name: str) -> Engine:
    return TensorRT(name)


def optimization_profile(builder: Any, spec: RNNSpec) -> Any:
    """The profile's min, opt and max of B and T, for each input."""
    profile = builder.create_optimization_profile()
    batch, time = spec.profile.batch, spec.profile.time
    sizes = [
        spec.shapes(batch.min, time.min),
        spec.shapes(batch.opt, time.opt),
        spec.shapes(batch.max, time.max),
    ]
    for name in spec.input_names:
        profile.set_shape(name, *(size[name] for size in sizes))
    return profile


def refittable_capability(spec: RNNSpec) -> tuple[str]:
    """The one compute capability that TensorRT-RTX builds a refittable plan for: this host's.

    Raises EngineError where there is no such GPU.
    """
    if (reason := no_gpu()) is None:
        from looprnn.cuda import gpu

        if (capability := gpu().capability) in RTX_CAPABILITIES:
            return (capability,)
        reason = f"TensorRT-RTX does not run on {gpu()}"
    raise EngineError(
        f"{spec.name}: with refit = true TensorRT-RTX builds for one compute capability, that of "
        f"the GPU at hand; {reason}. Build it on the host that will serve it, or remove refit from "
        f"{spec.name}.toml to build for {', '.join(RTX_CAPABILITIES)}"
    )


def no_gpu(device: int = 0) -> str | None:
    """Why there is no GPU to use, or None."""
    try:
        from looprnn import cuda
    except ImportError:
        return "cuda-python is not installed here. Type: pip install 'looprnn[gpu]'"
    try:
        cuda.gpu(device)
    except Exception as error:  # cuda-python raises RuntimeError where there is no driver at all
        return f"no NVIDIA GPU answers here ({error})"
    return None


def mismatch(card: EngineCard, libraries: dict[str, str], gpu: str, capability: str) -> str | None:
    """Why a plan does not fit this library or GPU, or None: it runs on the exact version that built
    it.
    """
    for library, here in libraries.items():
        if card.libraries.get(library) != here:
            return f"built by {library} {card.libraries.get(library)}, but this is {library} {here}"
    if capability not in card.capabilities or card.gpu not in (None, gpu):
        return f"built for {card.target}, but this is {gpu} (compute capability {capability})"
    return None


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps errors for our own message, and passes all to --verbose."""
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.INFO,  # our own error will show it in full
        severity.ERROR: logging.INFO,
        severity.WARNING: logging.INFO,
        severity.INFO: logging.INFO,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            log.log(levels.get(level, logging.DEBUG), "%s", message)
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.errors.append(message)

    return Logger()


def make_monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's progress callbacks, reported for the outermost phase, whose name is the
    longest-lived.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[phase] = steps
                progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.steps:
                progress(phase, step + 1, self.steps[phase])
            return True

        def phase_finish(self, phase: str) -> None:
            if steps := self.steps.pop(phase, None):
                progress(phase, steps, steps)

    return Monitor()

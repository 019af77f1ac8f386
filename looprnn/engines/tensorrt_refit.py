"""A refittable plan takes new weights on the GPU: read it beside "Refitting an Engine"."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from looprnn.engines.tensorrt import make_logger
from looprnn.errors import EngineError, EngineMismatch


class Plan:
    """A refittable plan; to be read beside TensorRT's "Refitting an Engine".

    take() once, then serialized(). Needs the GPU that the plan was built for. Raises EngineMismatch
    if it cannot be loaded, or was built without refit = true.
    """

    def __init__(self, trt: Any, path: Path) -> None:
        self.trt, self.path, self.log = trt, path, make_logger(trt)
        self.runtime = trt.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise EngineMismatch(f"{path}: TensorRT cannot load this plan{self._words}")
        if not self.engine.refittable:
            raise EngineMismatch(f"{path}: was built without refit = true: rebuild it")
        self.refitter = trt.Refitter(self.engine, self.log)

    def take(self, arrays: Mapping[str, NDArray[Any]], wanted: set[str]) -> None:
        """Every constant that TensorRT offers to change; `wanted` must be among them.

        TensorRT 11.3 names a fault of its own: a bias may be dropped from a refittable plan, and is
        then not offered. Such a plan would keep the old weights, so it is refused.
        """
        offered = set(self.refitter.get_all_weights())
        if folded := sorted(wanted - offered):
            raise EngineError(
                f"{self.path}: TensorRT does not offer {', '.join(folded)} for a refit: they would "
                "keep their old values. Rebuild it"
            )
        if unknown := sorted(offered - arrays.keys()):
            raise EngineError(f"{self.path}: TensorRT wants unknown weights {', '.join(unknown)}")
        held = {name: self.trt.Weights(arrays[name]) for name in sorted(offered)}
        for name, own in held.items():
            self._must(self.refitter.set_named_weights(name, own), f"the weights {name}")
        if missing := self.refitter.get_missing_weights():
            raise EngineError(f"{self.path}: TensorRT still wants {', '.join(missing)}")
        self._must(self.refitter.refit_cuda_engine(), "the refit")

    def serialized(self) -> bytes:
        """The plan with its weights, refittable again."""
        config, flag = self.engine.create_serialization_config(), self.trt.SerializationFlag
        config.clear_flag(flag.EXCLUDE_WEIGHTS)
        if hasattr(flag, "INCLUDE_REFIT"):  # from TensorRT 10.14 on
            config.set_flag(flag.INCLUDE_REFIT)
        plan = self.engine.serialize_with_config(config)
        if plan is None:
            raise EngineError(f"{self.path}: TensorRT wrote no plan{self._words}")
        return bytes(plan)

    def close(self) -> None:
        """In this order: the refitter uses the engine, and that its runtime."""
        del self.refitter, self.engine, self.runtime

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(f"{self.path}: TensorRT refused {what}{self._words}")

    @property
    def _words(self) -> str:
        return f": {'; '.join(self.log.errors)}" if self.log.errors else ""


@contextmanager
def opened(trt: Any, path: Path) -> Iterator[Plan]:
    plan = Plan(trt, path)
    try:
        yield plan
    finally:
        plan.close()

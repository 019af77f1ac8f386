"""A small variant, its build for the CPU, and a builder that says no."""

from pathlib import Path

from looprnn import build
from looprnn.engines.onnxruntime import OnnxRuntime
from looprnn.errors import EngineError
from looprnn.spec import Layer, Profile, Range, RNNSpec, WeightSource

SPEC = RNNSpec(
    name="small",
    input_size=3,
    layers=(Layer(cell="lstm", hidden_size=4),),
    weights=WeightSource(seed=1),
    profile=Profile(batch=Range(1, 2, 4), time=Range(1, 3, 8)),
)


def run(folder: Path, spec: RNNSpec = SPEC, names=("onnxruntime",), **options):
    wanted, _ = build.buildable(names)
    return build.build_variant(spec, wanted, folder, progress=lambda *_: None, **options)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


class Refused(OnnxRuntime):
    name = "tensorrt_rtx"
    file = "model.rtx.plan"

    def build(self, spec, weights, path, **_):
        path.write_bytes(b"half")
        raise EngineError("the builder said no")

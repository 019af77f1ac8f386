"""Every error looprnn raises on purpose.

LoopRNNError
├── SpecError            a variant's TOML or a spec's values
├── WeightsError         a weights file that is missing, short, wrong in shape or dtype
├── EngineError          an engine that cannot be built, loaded or run here
│   ├── EngineMissing    no file, no card, or the engine's library is not installed
│   ├── EngineMismatch   a card that does not fit its file, this GPU or this library
│   └── CudaError        a CUDA call that failed
│       └── CudaLost     work on the GPU that failed: this process can use it no more
├── ParityError          an engine whose answers are not the reference's
├── RequestError         what a client sent cannot be served
│   ├── StreamUnknown    a chunk of a stream that does not live here
│   └── StreamRefused    a START where as many streams live as there may
└── ServerError          the tritonserver could not be found, started or kept running

Each message says what was wanted, what came, and what to type next where that is known.
"""


class LoopRNNError(Exception):
    """Base of all of them: the command line prints its message alone and exits 1."""


class SpecError(LoopRNNError):
    """A spec is not valid; the message names the file, the key and the value."""


class WeightsError(LoopRNNError):
    """Weights do not fit the spec; the message names the array."""


class EngineError(LoopRNNError):
    """An engine cannot be built, loaded or run here."""


class EngineMissing(EngineError):
    """There is no such engine, or its library is not installed."""


class EngineMismatch(EngineError):
    """The engine was built from other bytes, for another GPU or by another library."""


class CudaError(EngineError):
    """A CUDA call returned a status other than success."""


class CudaLost(CudaError):
    """Work on the GPU failed, and with it every later call of this process."""


class ParityError(LoopRNNError):
    """An engine differs from the reference by more than the tolerance; it is not kept."""


class RequestError(LoopRNNError):
    """A request's arrays cannot be served: the message names the input, what came and what fits."""


class StreamUnknown(RequestError):
    """The chunk's stream never started here, has ended or expired; the message says what to do."""


class StreamRefused(RequestError):
    """Every slot is taken by a live stream."""


class ServerError(LoopRNNError):
    """The tritonserver could not be found, started or kept running."""

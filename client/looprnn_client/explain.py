"""Turns a `Failure` of either protocol into the public error that says how to mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from looprnn_client.drive import Plan
from looprnn_client.errors import (
    BadInput,
    LoopRNNClientError,
    NotReady,
    ServerError,
    StreamLost,
    StreamRefused,
    Timeout,
    UnknownModel,
    Unreachable,
)
from looprnn_client.transport import Code, Failure, ModelState

BAD_INPUT = "bad input: "  # how looprnn's model begins a refusal, whatever the status is

ENGINE_FAILED = "engine failed: "  # in a stream too: its state is that of before
# how its stream model does: "stream 42: unknown: …", "stream refused: …"
STREAM_GONE = re.compile(r"stream \S+: (unknown|expired)\b")
STREAM_REFUSED = "stream refused: "
NO_START = "must specify the START flag"  # Triton's own words for a sequence it does not know

SUFFIX = "_stream"  # how the name of a model that holds streams ends

# scheme → the other protocol and its scheme
OTHER = {
    "grpc": ("HTTP", "http"),
    "grpcs": ("HTTP", "https"),
    "http": ("gRPC", "grpc"),
    "https": ("gRPC", "grpcs"),
}

# when even its list fails so
NO_SERVER = (Code.UNAVAILABLE, Code.UNREACHABLE, Code.BROKEN, Code.TIMEOUT)


def explain(
    failure: Failure,
    *,
    url: str,
    model: str | None,
    timeout_s: float,
    index: Plan[Sequence[ModelState]],
) -> Plan[LoopRNNClientError]:
    """The error to raise. `index` reads the server's repository, and may itself raise `Failure`.

    It is read only when the failure could be a missing model, one that is not ready, or no server.
    """
    words = failure.words
    if is_stream_gone(failure):
        return StreamLost(
            f"{model} at {url} has lost the stream: {words}. Open a new one, from a saved state "
            "with client.resume(state); stream(..., resume=True) does so by itself"
        )
    if words.startswith(STREAM_REFUSED):
        return StreamRefused(
            f"{model} at {url} takes no further stream: {words.removeprefix(STREAM_REFUSED)}. "
            "Try again when others have ended"
        )
    if words.startswith(BAD_INPUT):
        return BadInput(f"{model} at {url} refused the input: {words.removeprefix(BAD_INPUT)}")
    if failure.code is Code.TIMEOUT:
        return Timeout(
            f"{url}: no answer within {timeout_s:g} s ({words}). "
            "Give a longer timeout_s, or see whether the server is overloaded"
        )
    if failure.code is Code.UNREACHABLE or (failure.code is Code.BROKEN and model is None):
        return _unreachable(url, failure)
    if failure.code is Code.INVALID and "unknown model" not in words:
        return BadInput(f"{model} at {url} refused the request: {words}")
    if failure.code is Code.INTERNAL or model is None:
        return ServerError(f"{url}: the server failed: {words}")
    try:
        models = yield from index
    except Failure as second:
        if failure.code in (Code.BROKEN, Code.UNAVAILABLE) and second.code in NO_SERVER:
            return _unreachable(url, failure)
        if second.code is Code.UNREACHABLE:  # what it said of the model was no Triton's either
            return _unreachable(url, second)
        return ServerError(f"{url}: {words} (nor can its list of models be read: {second.words})")
    return _about_the_model(words, url, model, models)


def is_stream_gone(failure: Failure) -> bool:
    """Whether the server does not know the stream (any more): its state is nowhere."""
    return bool(STREAM_GONE.match(failure.words)) or NO_START in failure.words


def _about_the_model(
    words: str, url: str, model: str, models: Sequence[ModelState]
) -> LoopRNNClientError:
    versions = [state for state in models if state.name == model]
    names = sorted({state.name for state in models})
    ready = sorted({state.name for state in models if state.state == "READY"})
    if not versions:
        whole = model.removesuffix(SUFFIX)
        if whole != model and whole in names:
            return UnknownModel(
                f"{url} has no model {model!r}: {whole!r} takes whole sequences alone. A "
                "variant whose layers all run forward holds streams with streaming = true. "
                f"{_served([name for name in ready if name.endswith(SUFFIX)])}"
            )
        has = "It has none at all"
        if names:
            has = f"Did you mean {nearest(model, names)!r}? It has: {', '.join(names)}"
        return UnknownModel(f"{url} has no model {model!r}. {has}")
    if any(state.state == "READY" for state in versions):
        return ServerError(
            f"{model} at {url}: {words} (the server lists the model as READY: try again)"
        )
    if not any(state.state or state.reason for state in versions):
        return NotReady(
            f"{model!r} is in the repository of {url}, but that server has not loaded it: it loads "
            "what is there when it starts. Start it again: Ctrl-C, then looprnn serve. "
            f"{_served(ready)}"
        )
    said = "; ".join(
        f"version {state.version or '?'} is {state.state or 'not loaded'}"
        + (f": {headline(state.reason)}" if state.reason else "")
        for state in versions
    )
    then = ""
    if any(state.state == "UNAVAILABLE" for state in versions):
        then = ". Then start the server again: Ctrl-C, then looprnn serve"
    return NotReady(f"{url} has {model!r}, but it cannot serve it: {said}{then}")


def _served(names: Sequence[str]) -> str:
    """What a caller may take instead."""
    return f"Served there: {', '.join(names) or 'none'}"


def _unreachable(url: str, failure: Failure) -> Unreachable:
    scheme, _, address = url.rpartition("://")
    other, its = OTHER.get(scheme, OTHER["grpc"])
    start = "" if failure.code is Code.UNREACHABLE else "Start one: looprnn serve. "
    if scheme in ("grpcs", "https"):
        start = f"If it speaks no TLS, write {scheme[:-1]}://{address}. "
    return Unreachable(
        f"no Triton server answers at {url}: {failure.words}. {start}If that is the port of "
        f"{other}, write {its}://{address}; Triton's own are 8001 for gRPC and 8000 for HTTP"
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """The most similar of names, which may not be empty."""
    return difflib.get_close_matches(name, list(names), n=1, cutoff=0)[0]


def headline(reason: str) -> str:
    """The server's reason without its wrapping: the exception's class and Python's stack."""
    words = reason.removeprefix("Internal: ").removeprefix("TritonModelException: ")
    return words.split("\n\nAt:")[0].strip()

"""The seam over HTTP: for asyncio here, and for threads by way of `_http`, which adds none of it.

tritonclient writes and reads the bodies; aiohttp carries them, once each. tritonclient's own HTTP
clients build a request anew for every attempt, and the one over gevent belongs to one thread and,
in versions that are still about, sends a POST again by itself when a connection breaks: a stream's
chunk would be applied twice.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zlib
from base64 import b64encode
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import quote

import aiohttp
import tritonclient.http as triton  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray
from tritonclient.utils import (  # type: ignore[import-untyped,unused-ignore]
    np_to_triton_dtype,
    triton_to_np_dtype,
)
from yarl import URL

from looprnn_client.address import Line, context
from looprnn_client.transport import Answer, Call, Code, Failure, elsewhere

T = TypeVar("T")

CODES = {
    400: Code.INVALID,
    404: Code.NOT_FOUND,
    405: Code.UNREACHABLE,  # Triton's metrics port says so
    503: Code.UNAVAILABLE,
    504: Code.TIMEOUT,
}
CONNECTIONS = 64  # at most, opened as calls overlap; further calls wait, within their timeout
CLOSED = "the connection was closed"
FAREWELL_S = 1.0  # for what nobody waits for
# Type, flags and stream of the frame that a gRPC server greets with, as aiohttp shows it
SETTINGS = repr(b"\x04\x00\x00\x00\x00\x00")[2:-1]
LARGE = 1 << 20  # aiohttp sends such a body in parts, so as not to hold up its other calls
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A request as it travels."""

    path: str
    body: bytes
    headers: Mapping[str, str]


class AsyncHttpTransport:
    """See `transport.AsyncTransport`."""

    def __init__(self, to: Line) -> None:
        self._to = to
        self._context = context(to.tls) if to.secure else None
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._under_way: set[asyncio.Task[Any]] = set()

    def prepare(self, call: Call) -> Any:
        return encode(call, self._to.compression)

    async def config(self, model: str, timeout_s: float) -> Mapping[str, Any]:
        path = f"v2/models/{quote(model, safe='')}/config"
        return cast(Mapping[str, Any], await self._json("GET", path, None, timeout_s))

    async def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        answer = await self._json("POST", "v2/repository/index", None, timeout_s)
        return cast(Sequence[Mapping[str, Any]], answer)

    async def infer(self, request: Post, timeout_s: float) -> Answer:
        return await self._within(self._infer(request), timeout_s)

    chunk = infer

    def forget(self, request: Post) -> None:
        async def send() -> None:
            with suppress(Failure):
                await self.infer(request, FAREWELL_S)

        self._start(send())

    async def share(self, name: str, handle: Any, size: int, timeout_s: float) -> None:
        if isinstance(handle, str):
            kind, body = "system", {"key": handle, "offset": 0, "byte_size": size}
        else:
            device, raw = handle
            handle = {"b64": b64encode(raw).decode()}
            kind, body = "cuda", {"raw_handle": handle, "device_id": device, "byte_size": size}
        path = f"v2/{kind}sharedmemory/region/{quote(name)}/register"
        await self._json("POST", path, body, timeout_s)

    async def unshare(self, name: str, cuda: bool, timeout_s: float) -> None:
        kind = "cuda" if cuda else "system"
        path = f"v2/{kind}sharedmemory/region/{quote(name)}/unregister"
        await self._json("POST", path, None, timeout_s)

    async def close(self) -> None:
        self._closed = True
        for task in list(self._under_way):
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def _infer(self, request: Post) -> Answer:
        headers, body = await self._call("POST", request.path, request.body, request.headers)
        length = headers.get("Inference-Header-Content-Length")
        answer = triton.InferenceServerClient.parse_response_body(
            body, header_length=length, content_encoding=headers.get("Content-Encoding")
        )
        return {row["name"]: array(answer, row) for row in answer.get_response().get("outputs", [])}

    async def _json(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        sent = b"" if body is None else json.dumps(body).encode()

        async def call() -> Any:
            _, answer = await self._call(method, path, sent, {})
            return json.loads(answer) if answer else None

        return await self._within(call(), timeout_s)

    async def _call(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[Mapping[str, str], bytes]:
        """The answer's headers and body. Raises Failure for any status but 200."""
        if self._session is None:  # aiohttp wants a loop that runs
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._context or False, limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},  # else aiohttp asks for compression
            )
        scheme = "https" if self._to.secure else "http"
        async with self._session.request(
            method,
            URL(f"{scheme}://{self._to.address}/{path}", encoded=True),
            data=body if len(body) < LARGE else io.BytesIO(body),
            headers={**headers, **self._to.metadata()},
            allow_redirects=False,
        ) as response:
            answer = await response.read()
        if response.status != 200:
            raise refusal(response.status, answer)
        return response.headers, answer

    async def _within(self, call: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """call's answer, with what it raised turned into `Failure`.

        The timeout is around the whole call: a socket's own starts again with every byte.
        """
        if self._closed:
            call.close()
            raise Failure(Code.INTERNAL, CLOSED)
        try:
            return await asyncio.wait_for(self._start(call), timeout_s)
        except asyncio.CancelledError as error:
            if self._closed:
                raise Failure(Code.INTERNAL, CLOSED) from error
            raise
        except Failure:
            raise
        except Exception as error:
            raise failure(error) from error

    def _start(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(call)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task


def encode(call: Call, compression: str | None) -> Post:
    """The whole request; arrays become bytes once."""
    inputs = []
    for name, array in call.inputs.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        if place := call.places.get(name):
            tensor.set_shared_memory(place.region, place.size, place.offset)
        else:
            tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = []
    for name in call.outputs:
        wanted = triton.InferRequestedOutput(name)
        if place := call.places.get(name):
            wanted.set_shared_memory(place.region, place.size, place.offset)
        outputs.append(wanted)
    body, length = triton.InferenceServerClient.generate_request_body(
        inputs,
        outputs=outputs,
        sequence_id=call.sequence or 0,
        sequence_start=call.start,
        sequence_end=call.end,
    )
    headers = {"Content-Type": "application/octet-stream"}
    if length is not None:
        headers["Inference-Header-Content-Length"] = str(length)
    if compression is not None:
        body = COMPRESS[compression](body)
        headers |= {"Content-Encoding": compression, "Accept-Encoding": compression}
    return Post(path=f"v2/models/{quote(call.model, safe='')}/infer", body=body, headers=headers)


def array(answer: Any, row: Mapping[str, Any]) -> NDArray[Any]:
    """One output of tritonclient's answer; one in shared memory by its shape alone."""
    if "data" in row or "binary_data_size" in row.get("parameters", {}):
        return cast(NDArray[Any], answer.as_numpy(row["name"]))
    return elsewhere(tuple(row["shape"]), triton_to_np_dtype(row["datatype"]))


def refusal(status: int, body: bytes) -> Failure:
    """Triton's refusals are JSON with words in them; anything else is a stranger's."""
    try:
        words = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        said = body[:200].decode(errors="replace").strip() or "nothing"
        return Failure(Code.UNREACHABLE, f"what answers there is not Triton: {status}, {said}")
    return Failure(CODES.get(status, Code.INTERNAL), str(words))


def failure(error: Exception) -> Failure:
    """What aiohttp, tritonclient and parsers raise, as a Failure."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Failure(Code.TIMEOUT, "no complete answer")
    if isinstance(error, OSError | aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
        return Failure(Code.BROKEN, str(error) or type(error).__name__)
    if isinstance(error, aiohttp.ClientResponseError):  # its words are a dump of what came
        what = "gRPC" if SETTINGS in error.message else "no HTTP"
        return Failure(Code.UNREACHABLE, f"what answers there speaks {what}")
    # parsers of HTTP and JSON raise anything from KeyError to RuntimeError
    words = f"what answers there is not Triton's HTTP protocol ({type(error).__name__}: {error})"
    return Failure(Code.UNREACHABLE, words)

"""One test body for both clients: an AsyncClient that looks like a blocking one."""

import asyncio
import inspect
from contextlib import contextmanager

from looprnn_client import AsyncClient, Client


class Awaited:
    """An AsyncClient or AsyncStream whose awaitables are settled as they come."""

    def __init__(self, inner, loop):
        self.inner, self._loop = inner, loop

    def __getattr__(self, name):
        found = getattr(self.inner, name)
        if not callable(found):
            return self._settle(found)
        return lambda *a, **k: self._settle(found(*a, **k))

    def _settle(self, value):
        if inspect.isawaitable(value):
            return self._loop.run_until_complete(value)
        if inspect.isasyncgen(value):
            return self._each(value)
        return Awaited(value, self._loop) if hasattr(value, "__aenter__") else value

    def _each(self, values):
        try:
            while True:
                yield self._loop.run_until_complete(anext(values))
        except StopAsyncIteration:
            return
        finally:
            self._loop.run_until_complete(values.aclose())

    def __enter__(self):
        self._loop.run_until_complete(self.inner.__aenter__())
        return self

    def __exit__(self, *error):
        self._loop.run_until_complete(self.inner.__aexit__(*error))


@contextmanager
def clients(kind):
    """What opens a client of this kind: connect(url, model, timeout_s=…)."""
    if kind == "threads":
        yield Client
        return
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        yield lambda *a, **k: Awaited(AsyncClient(*a, **k), loop)


def inner(client):
    """The client or stream itself."""
    return client.inner if isinstance(client, Awaited) else client

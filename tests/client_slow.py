"""Transports that wait to be told which call to answer."""

import asyncio
import threading

from client_doubles import Fake
from looprnn_client.transport import Code, Failure


class Slow(Fake):
    """Answers a call when it is released; counts what is under way and what was cancelled."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.begun, self.cancelled, self.under_way, self.most = [], [], 0, 0
        self.changed = threading.Condition()
        self.open = set()

    def start(self, call, timeout_s):
        flight = Flying(self, call)
        with self.changed:
            self.begun.append(flight.number)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.changed.notify_all()
        return flight

    def release(self, *numbers):
        with self.changed:
            self.open.update(numbers)
            self.changed.notify_all()

    def wait_for(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, 20)


class Flying:
    def __init__(self, fake, call):
        self.fake, self.call, self.stopped = fake, call, False
        self.number = int(call.inputs["input"][0, 0, 0])

    def result(self):
        fake = self.fake
        with fake.changed:
            ready = fake.changed.wait_for(lambda: self.stopped or self.number in fake.open, 20)
            fake.under_way -= 1
        if self.stopped or not ready:
            fake.cancelled.append(self.number)
            raise Failure(Code.INTERNAL, "cancelled")
        if self.number == 86:
            raise Failure(Code.INTERNAL, "no such number")
        return {
            n: fake.compute(n, self.call.inputs["input"]) + self.number for n in self.call.outputs
        }

    def cancel(self):
        with self.fake.changed:
            self.stopped = True
            self.fake.changed.notify_all()


class SlowAio(Slow):
    """The same, awaited: what `start` gives is waited for in a thread of its own."""

    async def config(self, *arguments):
        return super().config(*arguments)

    async def infer(self, call, timeout_s):
        flight = self.start(call, timeout_s)
        waiting = asyncio.get_running_loop().run_in_executor(None, flight.result)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            waiting.add_done_callback(lambda done: done.exception())  # read, or asyncio complains
            flight.cancel()
            raise

    async def close(self):
        super().close()

"""A load process from the inside: it sends what it is told to, when it is told to.

The same one runs beside the parent and on the nodes of a cluster; only the socket differs.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import socket
import time
from collections.abc import Callable

import msgspec

from servecap.pipe import Bye, Done, End, Message, Ping, Pipe, Pong, Ready, Send, Start
from servecap.pulse import Pulse
from servecap.record import Arrival, Outcome
from servecap.scenario import Timeouts
from servecap.wire.api import Api
from servecap.wire.client import Client, OnRecord
from servecap.wire.clock import Clock
from servecap.wire.endpoint import Endpoint
from servecap.wire.poller import Alarm

END_LIMIT_S = 15.0  # for the records of what was in flight to be sent, and taken


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a client needs to know. It may hold a key: it is never written down."""

    endpoint: Endpoint
    api: Api
    model: str | None
    stream: bool
    timeouts: Timeouts
    count_tokens: Callable[[str], int] | None
    new_loop: Callable[[], asyncio.AbstractEventLoop]

    def client(self, loop: asyncio.AbstractEventLoop, clock: Clock, on_record: OnRecord) -> Client:
        """A client on *loop* that hands what became of each request to *on_record*."""
        return Client(
            loop,
            clock,
            self.endpoint,
            self.api,
            model=self.model,
            stream=self.stream,
            timeouts=self.timeouts,
            on_record=on_record,
            count_tokens=self.count_tokens,
        )


def work(sock: socket.socket, setup: Setup) -> None:
    """The whole life of a worker whose parent is at the other end of *sock*."""
    pipe = Pipe(sock)
    try:
        with asyncio.Runner(loop_factory=setup.new_loop) as runner:
            runner.run(_Worker(pipe, setup).live())
        pipe.linger(time.monotonic() + END_LIMIT_S)
    finally:
        pipe.close()


class _Worker:
    def __init__(self, pipe: Pipe, setup: Setup) -> None:
        self._pipe = pipe
        self._setup = setup
        self._due: list[tuple[float, int, Arrival]] = []
        self._order = itertools.count()

    async def live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_exception_handler(self._broken)
        self._pipe.attach(self._loop, self._take, self._parent_gone)
        self._pipe.send(Ready())
        await self._over

    def _broken(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if not self._over.done():
            failed = error if isinstance(error, Exception) else RuntimeError(str(context))
            self._over.set_exception(failed)

    def _parent_gone(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _take(self, message: Message) -> None:
        match message:
            case Ping(sent_s):
                self._pipe.send(Pong(sent_s, time.monotonic()))
            case Start(start_s):
                self._begin(Clock(start_s))
            case Send(arrival):
                heapq.heappush(self._due, (arrival.planned_s, next(self._order), arrival))
                self._wake()
            case End(outcome):
                self._end(outcome)

    def _begin(self, clock: Clock) -> None:
        self._clock = clock
        self._client = self._setup.client(
            self._loop, clock, lambda record: self._pipe.send(Done(record))
        )
        self._alarm = Alarm(self._loop, self._wake)
        self._pulse = Pulse(clock.now())
        self._ticker = Alarm(self._loop, self._tick)
        self._ticker.set(clock.start_s + self._pulse.due_s)

    def _wake(self) -> None:
        due, now_s = self._due, self._clock.now()
        while due and due[0][0] <= now_s:
            self._client.send(heapq.heappop(due)[2])
        if due:
            self._alarm.set(self._clock.start_s + due[0][0])

    def _tick(self) -> None:
        if self._over.done():
            return
        self._pulse.beat(self._clock.now())
        if self._pulse.beats % 4 == 0:
            self._client.sweep()
        self._ticker.set(self._clock.start_s + self._pulse.due_s)

    def _end(self, outcome: Outcome) -> None:
        health = self._pulse.health(self._clock.now())
        self._client.end(outcome)
        self._alarm.close()
        self._ticker.close()
        self._pipe.send(Bye(health))
        self._pipe.drain(time.monotonic() + END_LIMIT_S)
        self._parent_gone()

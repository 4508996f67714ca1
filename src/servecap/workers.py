"""Load from several processes: users are dealt out to them, one feed says who sends what, when.

The parent keeps the feed, the records and the run folder. Each worker has an event loop, a client
and connections of its own; it is told of every request a little before it is due, sends it at the
planned time, and hands its record back. So the queue stays one queue: no request can be sent
twice or by nobody. The monotonic clock is the same in all processes of a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import msgspec

from servecap.pipe import Bye, Done, End, Message, Pipe, Ready, Send, Start
from servecap.preflight import Prepared
from servecap.pulse import Pulse
from servecap.record import Arrival, Outcome, Record
from servecap.run import Health
from servecap.scenario import ClosedLoop, Scenario, Timeouts
from servecap.wire.client import Client, OnRecord
from servecap.wire.clock import Clock
from servecap.wire.poller import Alarm

LOOK_AHEAD_S = 0.01  # workers are told so long before a request is due
USERS_EACH = 1000  # users that `auto` gives one process
RATE_EACH_RPS = 500.0

_START_LIMIT_S = 20.0
_END_LIMIT_S = 15.0


class Setup(msgspec.Struct, frozen=True):
    """What a worker needs to know; it is forked, so nothing of it is ever written down."""

    prepared: Prepared
    timeouts: Timeouts
    count_tokens: Callable[[str], int] | None
    new_loop: Callable[[], asyncio.AbstractEventLoop]


def wanted(scenario: Scenario) -> int:
    """Processes that *scenario* is worth: one per `USERS_EACH` users, and a core left free."""
    load = scenario.load
    if isinstance(load, ClosedLoop):
        share = load.users / USERS_EACH
    else:
        share = load.rate_rps / RATE_EACH_RPS
    return max(1, min(len(os.sched_getaffinity(0)) - 1, -int(-share // 1)))


class _Link:
    def __init__(self, number: int, pipe: Pipe, process: BaseProcess) -> None:
        self.number = number
        self.pipe = pipe
        self.process = process
        self.pending: dict[int, Arrival] = {}
        self.health: Health | None = None


class Workers:
    """The parent's side: takes arrivals as a `Client` does, and hands back their records.

    `on_failure` is told once, in words, when a worker is lost; what it had in flight comes back
    as cancelled. The caller then ends the run.
    """

    def __init__(self, count: int, setup: Setup) -> None:
        """
        Raises:
            RuntimeError: a worker did not come up.
        """
        self.failure: str | None = None
        self._links: list[_Link] = []
        context = multiprocessing.get_context("fork")
        for number in range(count):
            ours, theirs = socket.socketpair()
            inherited = [ours, *(link.pipe.sock for link in self._links)]
            process = context.Process(
                target=_work, args=(theirs, inherited, setup), name=f"load-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self._links.append(_Link(number, Pipe(ours), process))
        until_s = time.monotonic() + _START_LIMIT_S
        for link in self._links:
            if not isinstance(next(link.pipe.wait_for(until_s), None), Ready):
                self.close()
                raise RuntimeError(f"load process {link.number} did not start")

    def begin(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        on_record: OnRecord,
        on_failure: Callable[[str], None],
    ) -> None:
        """The run begins on *clock*; records are handed out on *loop*."""
        self._clock = clock
        self._on_record = on_record
        self._on_failure = on_failure
        for link in self._links:
            link.pipe.attach(
                loop,
                lambda message, link=link: self._take(link, message),  # type: ignore[misc]
                lambda link=link: self._lost(link),  # type: ignore[misc]
            )
            link.pipe.send(Start(clock.start_s))

    @property
    def in_flight(self) -> int:
        return sum(len(link.pending) for link in self._links)

    @property
    def pids(self) -> list[int | None]:
        return [link.process.pid for link in self._links]

    def send(self, arrival: Arrival) -> None:
        """Have *arrival* sent at its planned time by the worker of its user."""
        link = self._links[arrival.user % len(self._links)]
        link.pending[arrival.request.request_id] = arrival
        link.pipe.send(Send(arrival))

    def sweep(self) -> None:
        """Nothing: each worker sweeps its own."""

    def end(self, outcome: Outcome) -> None:
        """End everything in flight with *outcome*, take its records, and let the workers go."""
        until_s = time.monotonic() + _END_LIMIT_S
        for link in self._links:
            link.pipe.send(End(outcome))
        for link in self._links:
            for message in link.pipe.wait_for(until_s):
                self._take(link, message)
                if link.health is not None:
                    break
            if link.health is None:
                self._note(link)
        self.close()

    def healths(self) -> list[Health]:
        """The health of every worker that lived to tell."""
        return [link.health for link in self._links if link.health is not None]

    def close(self) -> None:
        """Close the pipes, by which workers end, and wait until they have."""
        for link in self._links:
            link.pipe.close()
        for link in self._links:
            link.process.join(1.0)
            if link.process.is_alive():
                link.process.kill()
                link.process.join()

    def _take(self, link: _Link, message: Message) -> None:
        match message:
            case Done(record):
                link.pending.pop(record.request_id, None)
                self._on_record(record)
            case Bye(health):
                link.health = health
                self._drop(link, "not sent: the run ended before it was due", keep=False)

    def _lost(self, link: _Link) -> None:
        if link.health is None:
            self._note(link)
            assert self.failure is not None
            self._on_failure(self.failure)

    def _note(self, link: _Link) -> None:
        """A worker is gone without a word: say so, and account for what it had."""
        link.pipe.close()
        link.process.join(1.0)
        code = link.process.exitcode
        how = "does not answer" if code is None else f"died (exit code {code})"
        if code is not None and code < 0:
            how = f"died ({signal.Signals(-code).name})"
        why = f"load process {link.number + 1} of {len(self._links)} {how}"
        self.failure = self.failure or why
        self._drop(link, why, keep=True)

    def _drop(self, link: _Link, why: str, *, keep: bool) -> None:
        """What was given to a worker and will never come back; *keep* it as cancelled records."""
        now_s = self._clock.now()
        pending, link.pending = list(link.pending.values()), {}
        for arrival in pending:
            if keep and arrival.planned_s <= now_s:
                self._on_record(
                    Record(
                        request_id=arrival.request.request_id,
                        user=arrival.user,
                        planned_s=arrival.planned_s,
                        sent_s=arrival.planned_s,
                        end_s=now_s,
                        outcome=Outcome.CANCELLED,
                        error=why,
                    )
                )


def _work(sock: socket.socket, inherited: list[socket.socket], setup: Setup) -> None:
    """A worker's whole life, in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    with asyncio.Runner(loop_factory=setup.new_loop) as runner:
        runner.run(_Worker(Pipe(sock), setup).live())


class _Worker:
    """The other side: sends what it is told to at its time, and reports what became of it."""

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
            case Start(start_s):
                self._begin(Clock(start_s))
            case Send(arrival):
                heapq.heappush(self._due, (arrival.planned_s, next(self._order), arrival))
                self._wake()
            case End(outcome):
                self._end(outcome)

    def _begin(self, clock: Clock) -> None:
        setup = self._setup
        self._clock = clock
        self._client = Client(
            self._loop,
            clock,
            setup.prepared.endpoint,
            setup.prepared.api,
            model=setup.prepared.target.model,
            stream=setup.prepared.target.stream,
            timeouts=setup.timeouts,
            on_record=lambda record: self._pipe.send(Done(record)),
            count_tokens=setup.count_tokens,
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
        self._pipe.drain(time.monotonic() + _END_LIMIT_S)
        with contextlib.suppress(OSError):
            self._pipe.sock.shutdown(socket.SHUT_WR)
        self._parent_gone()

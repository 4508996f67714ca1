"""Load from several processes: users are dealt out to them, one feed says who sends what, when.

The parent keeps the feed, the records and the run folder. Each worker has an event loop, a client
and connections of its own; it is told of every request a little before it is due, sends it at the
planned time, and hands its record back. So the queue stays one queue: no request can be sent
twice or by nobody. The monotonic clock is the same in all processes of a machine; to a worker on
another one (`cluster`) its offset is measured, and the run's start is told on the worker's clock.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

from servecap.alignment import Alignment, Offset
from servecap.pipe import Bye, Done, End, Message, Ping, Pipe, Pong, Ready, Send, Start
from servecap.record import Arrival, Outcome, Record
from servecap.run import Health, LoadNode
from servecap.scenario import ClosedLoop, Scenario
from servecap.wire.client import OnRecord
from servecap.wire.clock import Clock
from servecap.worker import END_LIMIT_S, Setup, work

LOOK_AHEAD_S = 0.01  # workers are told so long before a request is due
USERS_EACH = 1000  # users that `auto` gives one process
RATE_EACH_RPS = 500.0
SILENT_PINGS = 25  # a worker that has left so many unanswered (5 s of them) is lost

_START_LIMIT_S = 20.0
_PINGS = 50  # before the run begins, to align the clocks


def wanted(scenario: Scenario) -> int:
    """Processes that *scenario* is worth: one per `USERS_EACH` users, and a core left free."""
    load = scenario.load
    if isinstance(load, ClosedLoop):
        share = load.users / USERS_EACH
    else:
        share = load.rate_rps / RATE_EACH_RPS
    return max(1, min(len(os.sched_getaffinity(0)) - 1, -int(-share // 1)))


class Link:
    """The parent's end of one worker."""

    def __init__(
        self,
        pipe: Pipe,
        *,
        fate: Callable[[], str],
        stop: Callable[[], None],
        node: str | None = None,
    ) -> None:
        """
        Args:
            fate: how the worker ended, in words, once its pipe was found closed.
            stop: waits until the worker has ended, whose pipe is closed, or ends it.
            node: the machine it is on, where that is not ours.
        """
        self.pipe = pipe
        self.fate = fate
        self.stop = stop
        self.node = node
        self.pending: dict[int, Arrival] = {}
        self.health: Health | None = None
        self.lost = False
        self.alignment = Alignment()
        self.offset = Offset(0.0, 0.0)
        self.unanswered = 0

    def align(self, until_s: float) -> bool:
        """Measure the offset of the worker's clock; False: it does not answer."""
        for _ in range(_PINGS):
            self.pipe.send(Ping(time.monotonic()))
            pong = next(self.pipe.wait_for(until_s), None)
            if not isinstance(pong, Pong):
                return False
            self.alignment.note(pong.sent_s, pong.there_s, time.monotonic())
        self.offset = self.alignment.start()
        return True

    def ping(self) -> None:
        self.unanswered += 1
        self.pipe.send(Ping(time.monotonic()))


def forked(count: int, setup: Setup) -> Workers:
    """*count* processes beside this one.

    Raises:
        RuntimeError: a worker did not come up.
    """
    links: list[Link] = []
    context = multiprocessing.get_context("fork")
    for number in range(count):
        ours, theirs = socket.socketpair()
        inherited = [ours, *(link.pipe.sock for link in links)]
        process = context.Process(
            target=_forked, args=(theirs, inherited, setup), name=f"load-{number}", daemon=True
        )
        process.start()
        theirs.close()
        links.append(
            Link(
                Pipe(ours),
                fate=lambda process=process: _fate(process),  # type: ignore[misc]
                stop=lambda process=process: _stop(process),  # type: ignore[misc]
            )
        )
    return Workers(links)


def _forked(sock: socket.socket, inherited: list[socket.socket], setup: Setup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    work(sock, setup)


def _fate(process: BaseProcess) -> str:
    process.join(1.0)
    code = process.exitcode
    if code is None:
        return "does not answer"
    return f"died ({signal.Signals(-code).name})" if code < 0 else f"died (exit code {code})"


def _stop(process: BaseProcess) -> None:
    process.join(1.0)
    if process.is_alive():
        process.kill()
        process.join()


class Workers:
    """The parent's side: takes arrivals as a `Client` does, and hands back their records.

    `on_failure` is told once, in words, when a worker is lost; what it had in flight comes back
    as cancelled. The caller then ends the run.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        """
        Raises:
            RuntimeError: a worker did not come up.
        """
        self.failure: str | None = None
        self._links = links
        until_s = time.monotonic() + _START_LIMIT_S
        for number, link in enumerate(links, start=1):
            ready = isinstance(next(link.pipe.wait_for(until_s), None), Ready)
            if not ready or (link.node is not None and not link.align(until_s)):
                self.close()
                raise RuntimeError(f"load process {number} did not start")
        # A worker that is far away hears of a request later, by half a round trip.
        self.ahead_s = LOOK_AHEAD_S + max(2 * link.offset.error_s for link in links)

    def begin(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        on_record: OnRecord,
        on_failure: Callable[[str], None],
        *,
        users: int | None,
    ) -> None:
        """The run begins on *clock*; records are handed out on *loop*.

        Args:
            users: of a closed loop, to tell how many are lost with a worker.
        """
        self._users = users
        self._clock = clock
        self._on_record = on_record
        self._on_failure = on_failure
        for link in self._links:
            link.pipe.attach(
                loop,
                lambda message, link=link: self._take(link, message),  # type: ignore[misc]
                lambda link=link: self._lost(link),  # type: ignore[misc]
            )
            link.pipe.send(Start(clock.start_s + link.offset.offset_s))

    @property
    def in_flight(self) -> int:
        return sum(len(link.pending) for link in self._links)

    def send(self, arrival: Arrival) -> None:
        """Have *arrival* sent at its planned time by the worker of its user."""
        link = self._links[arrival.user % len(self._links)]
        link.pending[arrival.request.request_id] = arrival
        link.pipe.send(Send(arrival))

    def sweep(self) -> None:
        """Ask the workers on other machines for the time, and find those that fell silent.

        A machine that lost its power or its network closes no connection.
        """
        for link in self._links:
            if link.node is None or link.lost:
                continue
            link.ping()
            if link.unanswered > SILENT_PINGS:
                self._lost(link)

    def end(self, outcome: Outcome) -> None:
        """End everything in flight with *outcome*, take its records, and let the workers go."""
        until_s = time.monotonic() + END_LIMIT_S
        for link in self._links:
            link.pipe.send(End(outcome))
        for link in self._links:
            for message in link.pipe.wait_for(until_s):
                self._take(link, message)
                if link.health is not None:
                    break
            if link.health is None and not link.lost:
                self._note(link)
        self.close()

    def healths(self) -> list[Health]:
        """The health of every worker that lived to tell."""
        return [link.health for link in self._links if link.health is not None]

    def nodes(self) -> tuple[LoadNode, ...]:
        """How far the clocks of the workers on other machines could be trusted."""
        return tuple(
            LoadNode(
                name=link.node,
                offset_s=link.offset.offset_s,
                error_s=link.offset.error_s,
                drift_s=None if drift is None else drift.offset_s,
                drift_error_s=None if drift is None else drift.error_s,
                lost=link.lost,
            )
            for link in self._links
            if link.node is not None
            for drift in (link.alignment.drift(),)
        )

    def close(self) -> None:
        """Close the pipes, by which workers end, and wait until they have."""
        for link in self._links:
            link.pipe.close()
        for link in self._links:
            link.stop()

    def _take(self, link: Link, message: Message) -> None:
        match message:
            case Pong(sent_s, there_s):
                link.unanswered = 0
                link.alignment.note(sent_s, there_s, time.monotonic())
            case Done(record):
                link.pending.pop(record.request_id, None)
                self._on_record(record)
            case Bye(health):
                link.health = health
                self._drop(link, "not sent: the run ended before it was due", keep=False)

    def _lost(self, link: Link) -> None:
        if link.health is None:
            self._note(link)
            assert self.failure is not None
            self._on_failure(self.failure)

    def _note(self, link: Link) -> None:
        """A worker is gone without a word: say so, and account for what it had."""
        link.pipe.close()
        link.lost = True
        number, count = self._links.index(link), len(self._links)
        where = "" if link.node is None else f" on node {link.node}"
        if self._users is None:
            loss = f"1/{count} of the load was lost with it"
        else:
            own = len(range(number, self._users, count))
            loss = f"{own} of {self._users} users were lost with it"
        why = f"load process {number + 1} of {count}{where} {link.fate()}: {loss}"
        self.failure = self.failure or why
        self._drop(link, why, keep=True)

    def _drop(self, link: Link, why: str, *, keep: bool) -> None:
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
                        session=arrival.request.session,
                        turn=arrival.request.turn,
                        part=arrival.request.part,
                        attempt=arrival.attempt,
                        first_planned_s=arrival.first_planned_s,
                    )
                )

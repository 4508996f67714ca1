"""A real load test: a feed drives a client on the wall clock, and a `Run` comes out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from servecap import __version__, process, selftest, steady
from servecap.errors import ServecapError
from servecap.load import Feed, feed_for
from servecap.preflight import Prepared
from servecap.pulse import Pulse, merged
from servecap.record import NOT_SENT, Counts, Outcome, Record, Request, Times
from servecap.run import Header, Health, Run, Status
from servecap.scenario import OpenLoop, Scenario
from servecap.store import RunWriter
from servecap.wire.client import Client
from servecap.wire.clock import Clock
from servecap.wire.poller import Alarm
from servecap.worker import Setup
from servecap.workers import Workers, forked

_T = TypeVar("_T")


class Progress(msgspec.Struct, kw_only=True):
    """What a display may show while a run goes on; counts since the run's start."""

    elapsed_s: float = 0.0
    in_flight: int = 0
    ended: int = 0
    failed: int = 0
    lag_max_s: float = 0.0
    recent: list[Record] = []  # ended since the last report


OnProgress = Callable[[Progress], None]


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of *work* on an event loop of its own, also where one is running already."""

    def alone() -> _T:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(work)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return alone()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(alone).result()


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def measure(
    scenario: Scenario,
    prepared: Prepared,
    requests: Iterator[Request],
    *,
    response_guess_s: float,
    out: Path,
    workload_note: str = "",
    count_tokens: Callable[[str], int] | None = None,
    on_progress: OnProgress | None = None,
    workers: int | None = 1,
    ray: str | None = None,
) -> Run:
    """The run that the scenario asks for, stored in *out* record by record.

    Ctrl-C ends it early; what was measured is kept and the run is marked interrupted. With more
    than one of *workers* the load comes from so many processes of their own; with the address of
    a *ray* cluster from its nodes (None: one process on each).

    Raises:
        UsageError: *out* cannot be written, or there are more users than sockets to be had.
        ServecapError: the disk filled up; the finished records are kept.
    """
    process.room_for_sockets(scenario)
    header = Header(
        scenario=scenario,
        target=prepared.target,
        source="measured",
        servecap_version=__version__,
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        workload_note=workload_note,
        environment=process.environment(),
        notes=prepared.notes,
    )
    writer = RunWriter(out, header)
    feed = feed_for(scenario, requests, response_guess_s=response_guess_s)

    setup = _setup(scenario, prepared, count_tokens)

    async def drive(crew: Workers | None) -> _Driver:
        driver = _Driver(scenario, setup, crew, feed, writer, on_progress)
        await driver.run()
        return driver

    with process.without_gc():
        try:
            with _crew(workers, ray, setup) as crew:
                driver = run_async(drive(crew))
        except BaseException:
            with contextlib.suppress(OSError):
                writer.close(msgspec.structs.replace(header, status=Status.PARTIAL))
            raise
    header = msgspec.structs.replace(
        header,
        status=driver.status,
        stop_reason=driver.stop_reason,
        load_end_s=driver.load_end_s,
        health=driver.health(),
        notes=(*header.notes, *driver.notes()),
    )
    try:
        writer.close(header)
    except OSError as error:
        raise ServecapError(
            f"cannot finish {str(out)!r} ({error.strerror}): the records in it are kept"
        ) from None
    return Run(header=header, records=driver.records, path=str(out))


def _setup(
    scenario: Scenario, prepared: Prepared, count_tokens: Callable[[str], int] | None
) -> Setup:
    return Setup(
        endpoint=prepared.endpoint,
        api=prepared.api,
        model=prepared.target.model,
        stream=prepared.target.stream,
        timeouts=scenario.timeouts,
        count_tokens=count_tokens,
        new_loop=_new_loop,
    )


@contextlib.contextmanager
def _crew(workers: int | None, ray: str | None, setup: Setup) -> Iterator[Workers | None]:
    """The processes of the load; none for a single one, which is this process itself."""
    if ray is not None:
        from servecap import cluster

        made = cluster.on_nodes(ray, workers, setup)
    elif workers is None or workers < 2:
        yield None
        return
    else:
        made = forked(workers, setup)
    with contextlib.closing(made) as crew:
        yield crew


class _Driver:
    """Owns the clock: wakes the feed, hands its arrivals to the client, and ends the run."""

    def __init__(
        self,
        scenario: Scenario,
        setup: Setup,
        crew: Workers | None,
        feed: Feed,
        writer: RunWriter,
        on_progress: OnProgress | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._feed = feed
        self._writer = writer
        self._on_progress = on_progress
        self._enough = steady.Enough(scenario)
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._failure: ServecapError | None = None
        self._due_s = float("inf")
        self._progress = Progress()
        load = scenario.load
        self._ceiling = load.max_in_flight if isinstance(load, OpenLoop) else None
        self.records: list[Record] = []
        self.status = Status.COMPLETE
        self.stop_reason: str | None = None
        self.load_end_s: float | None = None
        self._crew = crew
        self._ahead_s = 0.0 if crew is None else crew.ahead_s
        self._alarm = Alarm(self._loop, self._wake)
        self._ticker = Alarm(self._loop, self._tick)
        self._clock = Clock()
        self._pulse = Pulse(self._clock.now())
        if crew is None:
            self._client: Client | Workers = setup.client(self._loop, self._clock, self._record)
            return
        self._client = crew
        crew.begin(self._loop, self._clock, self._record, self._worker_lost, users=scenario.users)

    async def run(self) -> None:
        self._loop.set_exception_handler(self._broken)
        try:
            with self._interruptible():
                self._tick_again()
                self._wake()
                await self._ended
        finally:
            self._alarm.close()
            self._ticker.close()
        if self._failure is not None:
            raise self._failure

    def _worker_lost(self, why: str) -> None:
        self.status = Status.PARTIAL
        self._stop(why, Outcome.CANCELLED)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the run early; a second one ends the program."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            self._loop.add_signal_handler(number, self._interrupt, number)
        try:
            yield
        finally:
            for number in signals:
                self._loop.remove_signal_handler(number)

    def _interrupt(self, number: signal.Signals) -> None:
        self._loop.remove_signal_handler(number)
        self.status = Status.INTERRUPTED
        self._stop(f"ended early by {number.name}", Outcome.CANCELLED)

    def _broken(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised: the run must end by it and not go on without what it was to do."""
        error = context.get("exception")
        if self._ended.done():
            return
        if isinstance(error, ServecapError):  # such as a workload that cannot make a prompt
            self._failure = error
            self._stop(str(error), Outcome.CANCELLED)
        else:
            self._ended.set_exception(error or RuntimeError(str(context.get("message"))))

    def _wake(self) -> None:
        """Send what is due, and come back when the next request is."""
        self._due_s = float("inf")
        if self._ended.done():
            return
        for arrival in self._feed.take(self._clock.now() + self._ahead_s):
            if self._ceiling is not None and self._client.in_flight >= self._ceiling:
                self._turned_away(arrival.request, arrival.user, arrival.planned_s)
            else:
                self._client.send(arrival)
        self._go_on()

    def _go_on(self) -> None:
        """Wait for what is due next, unless nothing will ever be."""
        if self._feed.finished and self._client.in_flight == 0:
            self._stop("every request was sent and answered", Outcome.CENSORED)
        else:
            self._schedule()

    def _turned_away(self, request: Request, user: int, planned_s: float) -> None:
        """Too many are in flight: this arrival has failed; it is never sent late instead."""
        now_s = self._clock.now()
        self._record(
            Record(
                request_id=request.request_id,
                user=user,
                planned_s=planned_s,
                sent_s=now_s,
                end_s=now_s,
                outcome=Outcome.REFUSED,
                error=f"{NOT_SENT} {self._ceiling} requests were in flight already",
                chunk_s=Times(),
                chunk_tokens=Counts(),
            )
        )

    def _schedule(self) -> None:
        due_s = self._feed.next_s()
        if due_s is not None and due_s < self._due_s:
            self._due_s = due_s
            self._alarm.set(self._clock.start_s + due_s - self._ahead_s)

    def _record(self, record: Record) -> None:
        """One request has ended."""
        if self._failure is not None:
            return
        try:
            self._writer.add(record)
        except ServecapError as error:
            self._failure = error
            self._stop(str(error), Outcome.CANCELLED)
            return
        self.records.append(record)
        if self.load_end_s is not None:
            return
        self._progress.ended += 1
        self._progress.failed += not record.ok
        self._progress.lag_max_s = max(self._progress.lag_max_s, record.lag_s)
        self._progress.recent.append(record)
        self._enough.note(record)
        self._feed.done(record)
        self._go_on()

    def _tick(self) -> None:
        """Twenty times a second: how late are we, who is past a timeout, is it enough?"""
        if self._ended.done():
            return
        now_s = self._clock.now()
        self._pulse.beat(now_s)
        if self._pulse.beats % 4 == 0:
            self._client.sweep()
            reason = self._enough.reason(now_s)
            if reason is not None:
                self._stop(reason, Outcome.CENSORED)
                return
        if self._pulse.beats % 10 == 0:
            self._report(now_s)
        self._tick_again()

    def _tick_again(self) -> None:
        self._ticker.set(self._clock.start_s + self._pulse.due_s)

    def _report(self, now_s: float) -> None:
        progress = self._progress
        progress.elapsed_s = now_s
        progress.in_flight = self._client.in_flight
        if self._on_progress is not None:
            self._on_progress(progress)
        progress.recent = []

    def _stop(self, reason: str, outcome: Outcome) -> None:
        if self._ended.done():
            return
        self.stop_reason = reason
        self.load_end_s = self._clock.now()
        self._health = self._pulse.health(self.load_end_s)
        self._ended.set_result(None)
        self._client.end(outcome)

    def notes(self) -> list[str]:
        """What else is to be said of the client."""
        health = self.health()
        if health.nodes:
            return []  # the self-test was of this machine
        near = selftest.nearness(self.records, self.load_end_s or 0.0, health.processes)
        return [] if near is None else [near]

    def health(self) -> Health:
        """How well the load's processes kept up with their plan."""
        if self._crew is None:
            return self._health
        parts = self._crew.healths()
        whole = merged([self._health, *parts], self._crew.failure)
        return msgspec.structs.replace(whole, processes=len(parts), nodes=self._crew.nodes())

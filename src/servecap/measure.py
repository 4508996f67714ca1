"""A real load test: a feed drives a client on the wall clock, and a `Run` comes out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from servecap import __version__, steady
from servecap.errors import ServecapError, UsageError
from servecap.load import Feed, feed_for
from servecap.preflight import Prepared
from servecap.record import Counts, Outcome, Record, Request, Times
from servecap.run import Header, Health, Run, Status
from servecap.scenario import OpenLoop, Scenario
from servecap.store import RunWriter
from servecap.wire.client import Client
from servecap.wire.clock import Clock

TICK_S = 0.05
_OTHER_FILES = 64  # open files of this process that are no connections
_OPEN_LOOP_SOCKETS = 20_000
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
) -> Run:
    """The run that the scenario asks for, stored in *out* record by record.

    Ctrl-C ends it early; what was measured is kept and the run is marked interrupted.

    Raises:
        UsageError: *out* cannot be written, or there are more users than sockets to be had.
        ServecapError: the disk filled up; the finished records are kept.
    """
    _room_for_sockets(scenario)
    header = Header(
        scenario=scenario,
        target=prepared.target,
        source="measured",
        servecap_version=__version__,
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        workload_note=workload_note,
        environment=environment(),
        notes=prepared.notes,
    )
    writer = RunWriter(out, header)
    feed = feed_for(scenario, requests, response_guess_s=response_guess_s)

    async def drive() -> _Driver:
        driver = _Driver(scenario, prepared, feed, writer, count_tokens, on_progress)
        await driver.run()
        return driver

    with _without_gc():
        try:
            driver = run_async(drive())
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
    )
    try:
        writer.close(header)
    except OSError as error:
        raise ServecapError(
            f"cannot finish {str(out)!r} ({error.strerror}): the records in it are kept"
        ) from None
    return Run(header=header, records=driver.records, path=str(out))


def environment() -> dict[str, str]:
    """What of the client machine may matter to the figures."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
    }


def _room_for_sockets(scenario: Scenario) -> None:
    """Every user may need a socket; the limit on open files is raised as far as it may be."""
    import resource

    users = scenario.users or 0
    wanted = _OTHER_FILES + (users or _OPEN_LOOP_SOCKETS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if users > most - _OTHER_FILES:
        raise UsageError(
            f"{users} users need as many sockets, but this system allows {most} open files: "
            f"raise it (ulimit -Hn {users + _OTHER_FILES}), or test with fewer users"
        )


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """The garbage collector's pauses would be counted as the server's (98 ms at 4096 streams)."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


class _Driver:
    """Owns the clock: wakes the feed, hands its arrivals to the client, and ends the run."""

    def __init__(
        self,
        scenario: Scenario,
        prepared: Prepared,
        feed: Feed,
        writer: RunWriter,
        count_tokens: Callable[[str], int] | None,
        on_progress: OnProgress | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._scenario = scenario
        self._feed = feed
        self._writer = writer
        self._on_progress = on_progress
        self._enough = steady.Enough(scenario)
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._failure: ServecapError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._delays: list[float] = []
        self._progress = Progress()
        self._ticks = 0
        load = scenario.load
        self._ceiling = load.max_in_flight if isinstance(load, OpenLoop) else None
        self.records: list[Record] = []
        self.status = Status.COMPLETE
        self.stop_reason: str | None = None
        self.load_end_s: float | None = None
        self._cpu_s = time.thread_time()
        self._clock = Clock()
        self._client = Client(
            self._loop,
            self._clock,
            prepared.endpoint,
            prepared.api,
            model=prepared.target.model,
            stream=prepared.target.stream,
            timeouts=scenario.timeouts,
            on_record=self._record,
            count_tokens=count_tokens,
        )

    async def run(self) -> None:
        self._loop.set_exception_handler(self._broken)
        with self._interruptible():
            self._tick_due_s = self._clock.now() + TICK_S
            self._loop.call_later(TICK_S, self._tick)
            self._wake()
            await self._ended
        if self._failure is not None:
            raise self._failure
        self._cpu_s = time.thread_time() - self._cpu_s

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
        self._timer = None
        self._timer_s = float("inf")
        if self._ended.done():
            return
        for arrival in self._feed.take(self._clock.now()):
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
                error=f"not sent: {self._ceiling} requests were in flight already",
                chunk_s=Times(),
                chunk_tokens=Counts(),
            )
        )

    def _schedule(self) -> None:
        due_s = self._feed.next_s()
        if due_s is None or due_s >= self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        # The loop's timers count whole milliseconds, rounded: aim so that they are never early.
        delay_s = max(0.0, due_s - self._clock.now()) + 0.0005
        self._timer_s = due_s
        self._timer = self._loop.call_later(delay_s, self._wake)

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
        self._delays.append(max(0.0, now_s - self._tick_due_s))
        self._tick_due_s = max(self._tick_due_s + TICK_S, now_s)
        self._ticks += 1
        if self._ticks % 4 == 0:
            self._client.sweep()
            reason = self._enough.reason(now_s)
            if reason is not None:
                self._stop(reason, Outcome.CENSORED)
                return
        if self._ticks % 10 == 0:
            self._report(now_s)
        self._loop.call_later(max(0.0, self._tick_due_s - self._clock.now()), self._tick)

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
        self._ended.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        self._client.end(outcome)

    def health(self) -> Health:
        """How well this process kept up with its own plan."""
        import psutil

        delays = np.sort(np.asarray(self._delays or [0.0]))
        wall_s = self.load_end_s or 0.0
        return Health(
            loop_delay_p99_s=float(delays[int(0.99 * (len(delays) - 1))]),
            loop_delay_max_s=float(delays[-1]),
            cpu_share=self._cpu_s / wall_s if wall_s > 0 else None,
            rss_bytes=psutil.Process().memory_info().rss,
            clock="monotonic; receive times from the kernel"
            if sys.platform == "linux"
            else "monotonic",
        )

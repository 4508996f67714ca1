"""A real load test: a feed drives a client on the wall clock, and a `Run` comes out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from servecap import process, selftest
from servecap.errors import ServecapError
from servecap.level import Between, Level, cut_off, header_of, turned_away
from servecap.load import Feed, change, feed_for
from servecap.preflight import Prepared
from servecap.pulse import Pulse, merged
from servecap.record import Arrival, Outcome, Record, Request
from servecap.run import Run, Status
from servecap.scenario import OpenLoop, Scenario, Timeouts
from servecap.wire.client import Client
from servecap.wire.clock import Clock
from servecap.wire.poller import Alarm
from servecap.worker import Setup
from servecap.workers import Workers, forked

if TYPE_CHECKING:
    from servecap.telemetry import Sampler

DRAIN_S = 5.0  # that what is in flight has to end after Ctrl-C


class Progress(msgspec.Struct, kw_only=True):
    """What a display may show while a run goes on; counts since the run's start."""

    elapsed_s: float = 0.0
    in_flight: int = 0
    ended: int = 0
    failed: int = 0
    lag_max_s: float = 0.0
    recent: list[Record] = []  # ended since the last report


OnProgress = Callable[[Progress], None]


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
    sampler: Sampler | None = None,
) -> Run:
    """The run that the scenario asks for, stored in *out* record by record.

    Ctrl-C ends it early; what was measured is kept and the run is marked interrupted. With more
    than one of *workers* the load comes from so many processes of their own; with the address of
    a *ray* cluster from its nodes (None: one process on each). The *sampler* looks around.

    Raises:
        UsageError: *out* cannot be written, or there are more users than sockets to be had.
        ServecapError: the disk filled up; the finished records are kept.
    """
    process.room_for_sockets(scenario)
    header = header_of(scenario, prepared, workload_note)
    feed = feed_for(scenario, requests, response_guess_s=response_guess_s)
    setup = setup_of(prepared, scenario.timeouts, count_tokens)
    made: list[Level] = []

    async def drive(crew: Workers | None) -> None:
        made.append(Level(header, out, asyncio.get_running_loop().create_future(), sampler))
        driver = Driver(setup, crew, feed, on_progress, users=scenario.users)
        await driver.alone(made[0])

    with process.without_gc():
        try:
            with _crew(workers, ray, setup) as crew:
                process.run_async(drive(crew))
        except BaseException:
            for level in made:
                level.broken()
            raise
    return made[0].run()


def setup_of(
    prepared: Prepared, timeouts: Timeouts, count_tokens: Callable[[str], int] | None
) -> Setup:
    """What a client of that server needs to know."""
    return Setup(
        endpoint=prepared.endpoint,
        api=prepared.api,
        model=prepared.target.model,
        stream=prepared.target.stream,
        timeouts=timeouts,
        count_tokens=count_tokens,
        new_loop=process.new_loop,
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


class Driver:
    """Owns the clock: wakes the feed, hands its arrivals to the client, and ends each level.

    The load lives on from one level to the next (`through`), or has a single one (`alone`).
    """

    def __init__(
        self,
        setup: Setup,
        crew: Workers | None,
        feed: Feed,
        on_progress: OnProgress | None = None,
        *,
        users: int | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._feed = feed
        self.on_progress = on_progress
        self._level: Level | None = None
        self._between = Between()
        self._in_flight: dict[int, Arrival] = {}
        self._goes_on = True
        self._began = False
        self.over = False
        self.failure: ServecapError | None = None
        self._drain_until_s: float | None = None  # since Ctrl-C
        self._due_s = float("inf")
        self._progress = Progress()
        self._ceiling: int | None = None
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
        crew.begin(self._loop, self._clock, self._record, self._worker_lost, users=users)

    async def alone(self, level: Level) -> None:
        """Live for *level* only; Ctrl-C ends it early."""
        self._goes_on = False
        try:
            with self._interruptible():
                await self.through(level)
        finally:
            self.close()

    async def through(self, level: Level) -> None:
        """Live through *level*; the users go on after it.

        Raises:
            ServecapError: the load had to end: a full disk, a workload that ran out of prompts.
        """
        self._loop.set_exception_handler(self._broken)
        self._begin(level)
        await level.ended

    def _begin(self, level: Level) -> None:
        first, self._began = not self._began, True
        level.zero_s = 0.0 if first else self._clock.now()
        self._level, self._progress = level, Progress()
        load = level.scenario.load
        self._ceiling = load.max_in_flight if isinstance(load, OpenLoop) else None
        if not first:
            change(self._feed, load, level.zero_s)
            self._pulse = Pulse(level.zero_s)
            self._between.into(level)
        self._tick_again()
        self._wake()

    def close(self) -> None:
        """No more load: whatever is in flight is dropped."""
        if not self.over:
            self.over = True
            self._client.end(Outcome.CANCELLED)
        self._alarm.close()
        self._ticker.close()
        self._between.close(keep=self.failure is not None)

    def _worker_lost(self, why: str) -> None:
        if self._level is not None:
            self._level.status = Status.PARTIAL
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
        if self._drain_until_s is not None:
            self._loop.remove_signal_handler(number)  # the third ends the program
        self.interrupt(number.name)

    def interrupt(self, name: str) -> None:
        """The user of the tool wants no more; what was measured is kept.

        Nothing more is sent, and what is in flight may end within `DRAIN_S`, so that the server is
        not left with answers for nobody. A second time: it is dropped at once.
        """
        if self.over:
            return
        level, now_s = self._level, self._clock.now()
        again = self._drain_until_s is not None
        if level is not None and not again:
            level.status = Status.INTERRUPTED
            level.stop(now_s, f"ended early by {name}")
        if level is None or again or self._client.in_flight == 0:
            self._stop(f"ended early by {name}", Outcome.CANCELLED)
        else:
            self._drain_until_s = now_s + DRAIN_S

    def _broken(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised: the run must end by it and not go on without what it was to do."""
        error = context.get("exception")
        if isinstance(error, ServecapError):  # such as a workload that cannot make a prompt
            self.failure = error
            self._stop(str(error), Outcome.CANCELLED)
        elif self._level is not None and not self._level.ended.done():
            self._level.ended.set_exception(error or RuntimeError(str(context.get("message"))))

    def _wake(self) -> None:
        """Send what is due, and come back when the next request is."""
        self._due_s = float("inf")
        if self.over or self._drain_until_s is not None:
            return
        for arrival in self._feed.take(self._clock.now() + self._ahead_s):
            if self._ceiling is not None and self._client.in_flight >= self._ceiling:
                self._record(turned_away(arrival, self._clock.now(), self._ceiling))
            else:
                self._in_flight[arrival.request.request_id] = arrival
                if self._level is not None:
                    self._level.came(arrival)
                self._client.send(arrival)
        self._go_on()

    def _go_on(self) -> None:
        """Wait for what is due next, unless nothing will ever be."""
        if self._drain_until_s is not None:
            if self._client.in_flight == 0:
                self._stop("ended early", Outcome.CANCELLED)
        elif self._feed.finished and self._client.in_flight == 0:
            self._stop("every request was sent and answered", Outcome.CENSORED)
        else:
            self._schedule()

    def _schedule(self) -> None:
        due_s = self._feed.next_s()
        if due_s is not None and due_s < self._due_s:
            self._due_s = due_s
            self._alarm.set(self._clock.start_s + due_s - self._ahead_s)

    def _record(self, record: Record) -> None:
        """One request has ended."""
        self._in_flight.pop(record.request_id, None)
        if self.failure is not None:
            return
        try:
            if self._level is not None:
                self._level.add(record)
            elif not self.over:
                self._between.add(record)
        except ServecapError as error:
            self.failure = error
            self._stop(str(error), Outcome.CANCELLED)
            return
        if self.over:
            return
        self._progress.ended += 1
        self._progress.failed += not record.ok
        self._progress.lag_max_s = max(self._progress.lag_max_s, record.lag_s)
        self._progress.recent.append(record)
        self._feed.done(record)
        self._go_on()

    def _tick(self) -> None:
        """Twenty times a second: how late are we, who is past a timeout, is it enough?"""
        if self.over:
            return
        now_s = self._clock.now()
        self._pulse.beat(now_s)
        if self._pulse.beats % 4 == 0:
            self._client.sweep()
            self._judge(now_s)
        if self._pulse.beats % 10 == 0 and not self.over:
            self._report(now_s)
        if not self.over:
            self._tick_again()

    def _judge(self, now_s: float) -> None:
        """Is it enough?"""
        if self._drain_until_s is not None:
            if now_s > self._drain_until_s:
                self._stop("ended early", Outcome.CANCELLED)
            return
        reason = None if self._level is None else self._level.enough(now_s)
        if reason is not None:
            self._stop(reason, Outcome.CENSORED)

    def _tick_again(self) -> None:
        self._ticker.set(self._clock.start_s + self._pulse.due_s)

    def _report(self, now_s: float) -> None:
        progress = self._progress
        if self._level is not None:
            progress.elapsed_s = now_s - self._level.zero_s
            progress.in_flight = self._client.in_flight
            if self.on_progress is not None:
                self.on_progress(progress)
        progress.recent = []

    def _stop(self, reason: str, outcome: Outcome) -> None:
        """The level is over; with it the load, unless that goes on and nothing is amiss."""
        level = self._level
        if self.over:
            return
        now_s = self._clock.now()
        lives = self._goes_on and outcome is Outcome.CENSORED and not self._feed.finished
        if level is not None:
            level.stop(now_s, reason)
            level.health = self._pulse.health(now_s - level.zero_s)
        if lives:
            self._cut_off(now_s)
            self._level = None
            if level is not None:
                self._between = Between(level)
        else:
            self.over = True
            self._client.end(outcome)
        if level is not None:
            self._settle(level)
            if level.ended.done():
                return
            if self.failure is None or lives:  # what fails from now on is not this level's
                level.ended.set_result(None)
            else:
                level.ended.set_exception(self.failure)

    def _cut_off(self, now_s: float) -> None:
        """The level's last word on what is in flight and goes on."""
        assert self._level is not None
        for arrival in self._in_flight.values():
            if arrival.planned_s <= now_s:
                self._level.add(cut_off(arrival, now_s))

    def _settle(self, level: Level) -> None:
        """What is known of the client once the level is over."""
        if self._crew is not None:
            parts = self._crew.healths()
            whole = merged([level.health, *parts], self._crew.failure)
            nodes = self._crew.nodes()
            level.health = msgspec.structs.replace(whole, processes=len(parts), nodes=nodes)
        if level.health.nodes:
            return  # the self-test was of this machine
        records, since_s = level.kept.latest()
        busy_s = (level.load_end_s or 0.0) - since_s
        near = selftest.nearness(records, busy_s, level.health.processes)
        level.notes += [] if near is None else [near]

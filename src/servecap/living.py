"""A load that lives on from level to level, beside whoever says what the next level is.

The load runs on an event loop in a thread of its own, so that it goes on while the caller thinks
about the next level.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from servecap import process, rand
from servecap.level import Level, gone_on, header_of
from servecap.load import feed_for
from servecap.measure import Driver, OnProgress, setup_of
from servecap.preflight import Prepared
from servecap.record import Request
from servecap.run import Run
from servecap.scenario import ClosedLoop, OpenLoop, Scenario, Timeouts

if TYPE_CHECKING:
    from servecap.telemetry import Sampler


class Living:
    """One population of users (or one stream of arrivals) at one server, under changing load.

    Each level goes on from the one before: newcomers ramp in, who is too many leaves. After a
    level that was given up the load starts anew, since the server would only work off what
    nobody waits for any more.
    """

    def __init__(
        self,
        prepared: Prepared,
        timeouts: Timeouts,
        requests: Iterator[Request],
        *,
        response_guess_s: float,
        workload_note: str = "",
        count_tokens: Callable[[str], int] | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._prepared = prepared
        self._setup = setup_of(prepared, timeouts, count_tokens)
        self._requests = requests
        self._response_guess_s = response_guess_s
        self._workload_note = workload_note
        self._sampler = sampler
        self._driver: Driver | None = None
        self._load: ClosedLoop | OpenLoop | None = None  # that goes on
        self._starts = 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def rest(self) -> None:
        """The load ends; the next level begins anew."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()
            self._thread = None

    def level(self, scenario: Scenario, out: Path, on_progress: OnProgress | None = None) -> Run:
        """The load as *scenario* asks for it, gone on from the last level; kept in *out*.

        Ctrl-C ends the level, and with it the load; what was measured is kept and the run is
        marked interrupted.

        Raises:
            UsageError: *out* cannot be written, or there are more users than sockets to be had.
            DiskError: the disk filled up; the finished records are kept.
            ServecapError: the load ended between the last level and this one, and why.
        """
        process.room_for_sockets(scenario)
        self._start()
        with _sigterm_as_ctrl_c():
            work = self._through(scenario, out, on_progress)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            try:
                return future.result()
            except KeyboardInterrupt:
                self._loop.call_soon_threadsafe(self._interrupt)
                return future.result()

    def _start(self) -> None:
        if self._thread is None:
            ready: Future[asyncio.AbstractEventLoop] = Future()
            self._thread = threading.Thread(
                target=self._live, args=(ready,), name="load", daemon=True
            )
            self._thread.start()
            self._loop = ready.result()

    def _live(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        async def stay() -> None:
            self._over = asyncio.Event()
            ready.set_result(asyncio.get_running_loop())
            await self._over.wait()
            self._let_go()

        with process.without_gc(), asyncio.Runner(loop_factory=process.new_loop) as runner:
            runner.run(stay())

    async def _through(self, scenario: Scenario, out: Path, on_progress: OnProgress | None) -> Run:
        if self._driver is not None and (failed := self._driver.failure) is not None:
            self._let_go()
            raise failed  # between two levels, when nobody waited for it
        if self._driver is None or self._driver.over:
            self._driver = self._fresh(scenario)
            self._load = None
        asked = gone_on(scenario, self._load)
        header = header_of(asked, self._prepared, self._workload_note)
        ended = asyncio.get_running_loop().create_future()
        level = Level(header, out, ended, self._sampler)
        self._driver.on_progress = on_progress
        try:
            await self._driver.through(level)
        except BaseException:
            level.broken()
            self._let_go()
            raise
        self._load = scenario.load
        if level.given_up():
            self._let_go()
        return level.run()

    def _fresh(self, scenario: Scenario) -> Driver:
        feed = feed_for(
            msgspec.structs.replace(scenario, seed=rand.derive(scenario.seed, self._starts)),
            self._requests,
            response_guess_s=self._response_guess_s,
        )
        self._starts += 1
        return Driver(self._setup, None, feed)

    def _interrupt(self) -> None:
        if self._driver is not None:
            self._driver.interrupt("Ctrl-C")

    def _let_go(self) -> None:
        """The load ends; the next one is a new one."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A polite end by the system keeps what was measured, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""The process beside a run that looks at its surroundings: `python -m servecap.telemetry.sampler`.

It is told on stdin, one JSON line each: first what to watch, then into which file from now on
(`Into`), or to rest. It ends when stdin does, also when the client is killed. Each source has a
thread of its own, so that a server which is too busy to tell holds up nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import msgspec
import psutil

from servecap.sample import Sample, Source
from servecap.telemetry.sources import Client, Exporter, Gpus, Look, NotThere, look

_LATER = 10.0  # an exporter that cannot be reached is asked so much less often


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What to look at."""

    exporters: tuple[Exporter, ...] = ()
    pid: int
    gpus: bool = False  # those of this machine, by NVML


class Into(msgspec.Struct, frozen=True, kw_only=True):
    """Where samples go: appended to `path`, timed from `zero_s` of the monotonic clock."""

    path: str | None  # None: nowhere, until told again
    zero_s: float = 0.0
    every_s: float = 1.0


class _Book:
    """Writes whole lines to the file of the run that goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._into = Into(path=None)
        self._fd = -1
        self.turned = threading.Condition()
        self.run = 0

    @property
    def every_s(self) -> float:
        return self._into.every_s

    def turn(self, into: Into) -> None:
        """From now on *into*."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._into = -1, into
            if into.path is not None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._fd = os.open(into.path, flags, 0o644)
        with self.turned:
            self.run += 1
            self.turned.notify_all()

    def write(
        self, source: Source, took_s: float, told: Look, error: str | None, over: bool
    ) -> None:
        with self._lock:
            if self._fd < 0:
                return
            sample = Sample(
                at_s=round(time.monotonic() - self._into.zero_s, 4),
                source=source,
                took_s=round(took_s, 6),
                values=told[0],
                histograms=told[1],
                error=error,
                over=over,
            )
            os.write(self._fd, msgspec.json.encode(sample) + b"\n")


def _watch(source: Source, ask: Callable[[], Look], book: _Book) -> None:
    """Look again and again, at times that do not drift; what fails is written down, too."""
    due_s = time.monotonic()
    while True:
        began_s, over = time.monotonic(), False
        error: str | None = None
        told: Look = ({}, {})
        try:
            told = ask()
        except NotThere as gone:
            error, over = str(gone), True
        except (OSError, ValueError) as failure:
            error = str(getattr(failure, "reason", failure)) or type(failure).__name__
        book.write(source, time.monotonic() - began_s, told, error, over)
        if over:
            run = book.run
            with book.turned:
                book.turned.wait_for(lambda run=run: book.run != run)  # type: ignore[misc]
            due_s = time.monotonic()
            continue
        wait_s = book.every_s * (_LATER if error is not None else 1.0)
        due_s = max(due_s + wait_s, time.monotonic())
        run = book.run
        with book.turned:
            if book.turned.wait_for(
                lambda run=run: book.run != run,  # type: ignore[misc]
                max(0.0, due_s - time.monotonic()),
            ):
                due_s = time.monotonic()


def _asks(watch: Watch) -> list[tuple[Source, Callable[[], Look]]]:
    found: list[tuple[Source, Callable[[], Look]]] = [
        (exporter.source, partial(look, exporter)) for exporter in watch.exporters
    ]
    client = Client(watch.pid)
    found.append(("client", lambda: (client.look(), {})))
    if watch.gpus:
        try:
            gpus = Gpus()
        except NotThere:
            return found
        found.append(("gpu", lambda: (gpus.look(), {})))
    return found


def main() -> None:
    """Serve whoever holds the other end of stdin."""
    os.nice(5)  # the load has the first right to the cores
    lines = iter(sys.stdin.buffer.readline, b"")
    watch = msgspec.json.decode(next(lines), type=Watch)
    book = _Book()
    try:
        asks = _asks(watch)
    except psutil.Error:
        return  # the client is gone already
    started = False
    for line in lines:
        book.turn(msgspec.json.decode(line, type=Into))
        if not started:
            started = True
            for source, ask in asks:
                threading.Thread(target=_watch, args=(source, ask, book), daemon=True).start()
    os._exit(0)  # threads may hang in a server's answer


if __name__ == "__main__":
    main()

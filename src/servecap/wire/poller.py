"""Tells which sockets are ready, for thousands of them at little cost, and when a time has come."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

GATHER_S = 0.0005
GATHER_FROM_PER_S = 8_000.0

_AT_ONCE = 128  # sockets served before what is due to be sent gets its turn
_SLICE_S = 0.0005  # for what was put off, before it is looked again for sockets to be served
_MOST_PUT_OFF = 20_000  # more must not gather, even if sockets wait
_RATE_S = 0.02  # how often the rate of ready sockets is worked out anew
_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_ABSOLUTE = 1

Call = Callable[[], None]


def _nothing() -> None:
    """What is called where nobody asked to be."""


class Reader(Protocol):
    """Who wants to know when a socket can be read."""

    def readable(self) -> None: ...


class Poller:
    """Calls back when a socket can be read or written; on Linux by an epoll set of its own.

    The event loop watches that set as one file, so that a ready socket costs it no handle, and
    thousands of them are served in one turn. When more than `GATHER_FROM_PER_S` sockets a second
    become ready, each turn first waits `GATHER_S` for more of them: waking up is what costs, and
    the kernel has stamped what arrives meanwhile. `serving` tells that a turn goes on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, at_end: Call = _nothing) -> None:
        """
        Args:
            at_end: called after each turn, when `serving` is over.
        """
        self.loop = loop
        self.serving = False
        self._at_end = at_end
        self._readers: list[Reader | None] = []  # by file number: thousands lie close together
        self._writers: dict[int, Call] = {}
        self._later: deque[Call] = deque()
        self._seen = 0
        self._since_s = time.monotonic()
        self._gathering = False
        self._behind = False
        self._epoll = select.epoll() if sys.platform == "linux" else None
        if self._epoll is not None:
            loop.add_reader(self._epoll.fileno(), self._ready)

    def reads(self, fd: int, reader: Reader) -> None:
        """Tell *reader* whenever *fd* can be read, and nobody any longer when it can be written."""
        if self._epoll is None:
            self.loop.remove_writer(fd)
            self.loop.add_reader(fd, reader.readable)
            return
        known = self._reader(fd) is not None or fd in self._writers
        if fd >= len(self._readers):
            self._readers += [None] * (fd + 1 - len(self._readers))
        self._readers[fd] = reader
        self._writers.pop(fd, None)
        self._set(fd, known, select.EPOLLIN)

    def _reader(self, fd: int) -> Reader | None:
        return self._readers[fd] if fd < len(self._readers) else None

    def writes(self, fd: int, call: Call) -> None:
        """Call *call* whenever *fd* can be written, too."""
        if self._epoll is None:
            self.loop.add_writer(fd, call)
            return
        read = self._reader(fd) is not None
        known = read or fd in self._writers
        self._writers[fd] = call
        self._set(fd, known, select.EPOLLOUT | (select.EPOLLIN if read else 0))

    def _set(self, fd: int, known: bool, mask: int) -> None:
        assert self._epoll is not None
        if known:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)

    def forget(self, fd: int) -> None:
        """Call back no more for *fd*, which is about to be closed."""
        if self._epoll is None:
            self.loop.remove_reader(fd)
            self.loop.remove_writer(fd)
            return
        known = self._reader(fd) is not None
        if known:
            self._readers[fd] = None
        if self._writers.pop(fd, None) is not None or known:
            self._epoll.unregister(fd)

    def put_off(self, call: Call) -> None:
        """Call *call* as soon as the sockets that are ready by now have been served."""
        if self._epoll is None:
            self.loop.call_soon(call)
        else:
            self._later.append(call)

    def _catch_up(self) -> None:
        """Do what was put off, for a little while; the rest when sockets had their turn again."""
        later, until_s = self._later, time.monotonic() + _SLICE_S
        while later and (time.monotonic() < until_s or len(later) > _MOST_PUT_OFF):
            later.popleft()()
        if later and not self._behind:
            self.loop.call_soon(self._ready)

    def _ready(self) -> None:
        assert self._epoll is not None
        if self._epoll.closed:
            return
        if self._gathering and not (self._behind or self._later):
            time.sleep(GATHER_S)
        ready = self._epoll.poll(0, _AT_ONCE)
        self.serving = True
        self._behind = len(ready) == _AT_ONCE
        readers, only_readable = self._readers, select.EPOLLIN
        for fd, mask in ready:
            if mask == only_readable:
                if (reader := readers[fd]) is not None:
                    reader.readable()
            else:
                self._mixed(fd, mask)
        if self._later:
            self._catch_up()
        self.serving = False
        self._at_end()
        self._seen += len(ready)
        now_s = time.monotonic()
        if now_s - self._since_s > _RATE_S:
            self._gathering = self._seen > GATHER_FROM_PER_S * (now_s - self._since_s)
            self._seen, self._since_s = 0, now_s

    def _mixed(self, fd: int, mask: int) -> None:
        """Writable, or failed (which reading or connecting finds out about)."""
        writer = self._writers.get(fd)
        if writer is not None and mask & ~select.EPOLLIN:
            writer()
        reader = self._reader(fd)
        if reader is not None and mask & ~select.EPOLLOUT:
            reader.readable()

    def close(self) -> None:
        """Watch nothing any more; the sockets are left alone."""
        if self._epoll is not None and not self._epoll.closed:
            self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        self._readers[:] = [None] * len(self._readers)  # which may be gone through just now
        self._writers.clear()
        self._later.clear()
        self._at_end = _nothing  # else its owner and it would hold each other


class Alarm:
    """Calls back once at a time on the monotonic clock, to some tens of microseconds on Linux.

    The event loop's own timers count whole milliseconds, which would make every request up to
    that late. Where there is nothing better it may ring a millisecond early: look at the clock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Call) -> None:
        self._loop = loop
        self._call = call
        self._timer: asyncio.TimerHandle | None = None
        self._fd = _timer_fd()
        if self._fd is not None:
            loop.add_reader(self._fd, self._rings)

    def set(self, at_s: float) -> None:
        """Ring at *at_s* (as `time.monotonic` counts) instead of whatever was set before."""
        if self._fd is not None:
            seconds, part = divmod(max(1e-6, at_s), 1.0)
            value = _Setting(0, 0, int(seconds), int(part * 1e9))
            if _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(value), None) == 0:
                return
        if self._timer is not None:
            self._timer.cancel()
        # The loop's timers are rounded to milliseconds: better late than early.
        delay_s = max(0.0, at_s - time.monotonic()) + 0.0005
        self._timer = self._loop.call_later(delay_s, self._call)

    def _rings(self) -> None:
        assert self._fd is not None
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew since
            return
        self._call()

    def close(self) -> None:
        """Never ring again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None


class _Setting(ctypes.Structure):
    """struct itimerspec: interval and first expiry, each seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def _timer_fd() -> int | None:
    """A new timer as a file (Linux); Python has it from 3.13 on only."""
    if not hasattr(_libc, "timerfd_create"):
        return None
    fd = int(_libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC))
    return fd if fd >= 0 else None

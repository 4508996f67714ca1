"""The run's one clock, and how the kernel's receive times are put on it."""

from __future__ import annotations

import struct
import sys
import time

# Linux: asm-generic/socket.h. The other systems have no nanosecond stamp for TCP.
SO_TIMESTAMPNS = 35 if sys.platform == "linux" else None
STAMP_SPACE = 64  # bytes for one control message with a timespec
timespec = struct.Struct("@qq").unpack_from  # seconds and nanoseconds of such a message


class Clock:
    """Seconds since *start_s* of the monotonic clock, which all processes here share.

    Without it the clock starts when it is made.

    The kernel stamps packets with wall-clock time; less `wall_at_start_s` such a stamp is on this
    clock. `align` measures that offset anew, so that a stepped or slewed wall clock does no harm.
    """

    def __init__(self, start_s: float | None = None) -> None:
        self.start_s = time.monotonic() if start_s is None else start_s
        self.wall_at_start_s = 0.0
        self.align()

    def now(self) -> float:
        """Seconds since the run's start."""
        return time.monotonic() - self.start_s

    def align(self) -> None:
        """Measure the offset between wall and monotonic clock: the tightest of three pairs."""
        best = float("inf")
        for _ in range(3):
            before, wall, after = time.monotonic(), time.time(), time.monotonic()
            if after - before < best:
                best = after - before
                self.wall_at_start_s = wall - ((before + after) / 2 - self.start_s)

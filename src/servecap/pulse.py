"""How well a load process keeps up with itself: late timers, CPU time, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence

import msgspec

from servecap.record import Times
from servecap.run import Health

TICK_S = 0.05

_KERNEL_CLOCK = "monotonic; receive times from the kernel"


class Pulse:
    """Beats `TICK_S` apart on the clock of whoever drives it, and notes how late they are."""

    def __init__(self, now_s: float) -> None:
        self.due_s = now_s + TICK_S
        self.beats = 0
        self._delays = Times()
        self._cpu_s = time.thread_time()

    def beat(self, now_s: float) -> None:
        """A beat happens at *now_s*; the next one is due at `due_s`."""
        self._delays.append(max(0.0, now_s - self.due_s))
        self.due_s = max(self.due_s + TICK_S, now_s)
        self.beats += 1

    def health(self, wall_s: float) -> Health:
        """What the calling thread, and its process, came to in *wall_s* seconds."""
        delays = sorted(self._delays) or [0.0]
        cpu_s = time.thread_time() - self._cpu_s
        return Health(
            loop_delay_p99_s=delays[int(0.99 * (len(delays) - 1))],
            loop_delay_max_s=delays[-1],
            cpu_share=cpu_s / wall_s if wall_s > 0 else None,
            rss_bytes=_rss_bytes(),
            clock=_KERNEL_CLOCK if sys.platform == "linux" else "monotonic",
        )


def _rss_bytes() -> int:
    """The most memory that the process ever had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def merged(parts: Sequence[Health], failure: str | None) -> Health:
    """The health of several processes as one: memory is added up, the rest is the worst's."""
    return msgspec.structs.replace(
        parts[0],
        loop_delay_p99_s=max(h.loop_delay_p99_s or 0.0 for h in parts),
        loop_delay_max_s=max(h.loop_delay_max_s or 0.0 for h in parts),
        cpu_share=max(h.cpu_share or 0.0 for h in parts),
        rss_bytes=sum(h.rss_bytes or 0 for h in parts),
        processes=len(parts),
        failure=failure,
    )

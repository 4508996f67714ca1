"""How well a load process keeps up with itself: late timers, CPU time, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence

import msgspec

from servecap.run import Health

TICK_S = 0.05
_STEP_S = 1e-5

_KERNEL_CLOCK = "monotonic; receive times from the kernel"


class Pulse:
    """Beats `TICK_S` apart on the clock of whoever drives it, and notes how late they are."""

    def __init__(self, now_s: float) -> None:
        self.due_s = now_s + TICK_S
        self.beats = 0
        self._delays: Counter[int] = Counter()  # in steps, so that it does not grow with time
        self._delay_max_s = 0.0
        self._cpu_s = time.thread_time()

    def beat(self, now_s: float) -> None:
        """A beat happens at *now_s*; the next one is due at `due_s`."""
        delay_s = max(0.0, now_s - self.due_s)
        self._delays[int(delay_s / _STEP_S)] += 1
        self._delay_max_s = max(self._delay_max_s, delay_s)
        self.due_s = max(self.due_s + TICK_S, now_s)
        self.beats += 1

    def health(self, wall_s: float) -> Health:
        """What the calling thread, and its process, came to in *wall_s* seconds."""
        cpu_s = time.thread_time() - self._cpu_s
        return Health(
            loop_delay_p99_s=self._p99_s(),
            loop_delay_max_s=self._delay_max_s,
            cpu_share=cpu_s / wall_s if wall_s > 0 else None,
            rss_bytes=_rss_bytes(),
            clock=_KERNEL_CLOCK if sys.platform == "linux" else "monotonic",
        )

    def _p99_s(self) -> float:
        """The upper end of the step that holds the 99th percentile."""
        left = int(0.99 * (self.beats - 1)) + 1
        for step in sorted(self._delays):
            left -= self._delays[step]
            if left <= 0:
                return min((step + 1) * _STEP_S, self._delay_max_s)
        return 0.0


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

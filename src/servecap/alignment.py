"""How far another machine's monotonic clock is from ours, and how sure that is."""

from __future__ import annotations

import msgspec

SPAN_S = 10.0  # the clocks are compared anew over the last so many seconds


class Offset(msgspec.Struct, frozen=True):
    """Their clock less ours, in seconds; the truth lies within `error_s` of it."""

    offset_s: float
    error_s: float


class Alignment:
    """Finds the offset of a clock from exchanges of a ping; it reads no clock itself.

    A ping leaves at *sent_s* and is back at *back_s* of our clock, and was seen at *there_s* of
    theirs. So the offset is `there - (sent + back) / 2`, wrong by half the round trip at most
    (when one of the ways took no time). The exchange with the least round trip counts.

    Source:
        Cristian, Probabilistic clock synchronization, 1989.
    """

    def __init__(self) -> None:
        self._recent: list[tuple[float, Offset]] = []
        self._best: Offset | None = None
        self._at_start: Offset | None = None

    def note(self, sent_s: float, there_s: float, back_s: float) -> None:
        """One ping has come back."""
        found = Offset(there_s - (sent_s + back_s) / 2, (back_s - sent_s) / 2)
        if self._best is None or found.error_s < self._best.error_s:
            self._best = found
        self._recent = [(at_s, o) for at_s, o in self._recent if at_s > back_s - SPAN_S]
        self._recent.append((back_s, found))

    def start(self) -> Offset:
        """The offset that the run begins with; what comes later is compared with it.

        Raises:
            ValueError: no ping has come back.
        """
        if self._best is None:
            raise ValueError("no ping has come back")
        self._at_start = self._best
        self._recent = []
        return self._best

    def drift(self) -> Offset | None:
        """By how much the offset has changed since `start`, by the last `SPAN_S` of pings."""
        if self._at_start is None or not self._recent:
            return None
        now = min((offset for _, offset in self._recent), key=lambda o: o.error_s)
        return Offset(now.offset_s - self._at_start.offset_s, now.error_s + self._at_start.error_s)

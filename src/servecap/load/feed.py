"""The seam between load and target: a feed says who sends what, when."""

from __future__ import annotations

from typing import Protocol

from servecap.record import Arrival, Record


class Feed(Protocol):
    """A machine without a clock; the driver tells it the time (seconds since the run's start)."""

    def next_s(self) -> float | None:
        """When the next request is due; None while nothing is scheduled."""

    def take(self, now_s: float) -> list[Arrival]:
        """All requests due at or before *now_s*, in the order in which they are due."""

    def done(self, record: Record) -> None:
        """The request of *record* has ended, well or badly."""

    @property
    def finished(self) -> bool:
        """True once nothing will ever be sent again."""

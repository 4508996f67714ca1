"""Open loop: requests arrive at their own times, whatever the server does."""

from __future__ import annotations

from collections.abc import Iterator

from servecap import rand
from servecap.record import Arrival, Record, Request
from servecap.scenario import OpenLoop


class OpenArrivals:
    """Requests at a constant rate or as a Poisson process; each is a user of its own.

    Arrival k of the constant process is due at exactly k / rate, so that no rounding adds up.
    """

    def __init__(self, load: OpenLoop, requests: Iterator[Request], *, seed: int) -> None:
        self._load = load
        self._requests = requests
        self._gaps = rand.stream(seed, "arrivals")
        self._count = 0
        self._next_s: float | None = 0.0
        if load.arrivals == "poisson":
            self._next_s = self._gaps.expovariate(load.rate_rps)

    def next_s(self) -> float | None:
        return self._next_s

    def take(self, now_s: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        while self._next_s is not None and self._next_s <= now_s:
            request = next(self._requests, None)
            if request is None:
                self._next_s = None
                break
            arrivals.append(Arrival(request, self._count, self._next_s))
            self._count += 1
            self._next_s = self._following_s(self._next_s)
        return arrivals

    def _following_s(self, last_s: float) -> float:
        if self._load.arrivals == "constant":
            return self._count / self._load.rate_rps
        return last_s + self._gaps.expovariate(self._load.rate_rps)

    def done(self, record: Record) -> None:
        """Nothing follows from an answer: that is what makes the loop open."""

    @property
    def finished(self) -> bool:
        return self._next_s is None

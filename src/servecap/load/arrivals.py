"""Open loop: requests arrive at their own times, whatever the server does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from servecap import rand, schedule
from servecap.record import Arrival, Record, Request
from servecap.scenario import OpenLoop


class OpenArrivals:
    """Requests at equal, Poisson or gamma gaps and a rate that may change with time.

    Each request is a user of its own. Arrivals are counted at rate 1 and put into time by the
    schedule; the k-th of a constant rate is due at exactly k / rate, so that no rounding adds up.
    `change` goes on at another rate.
    """

    def __init__(self, load: OpenLoop, requests: Iterator[Request], *, seed: int) -> None:
        self._requests = requests
        self._course = schedule.course(load.rate_rps, load.schedule)
        self._start_s, self._start_place = 0.0, 0.0  # of the course
        self._gap = _gaps(load, seed)
        self._count = 0
        self._place = self._gap() if self._gap is not None else 0.0
        self._next_s = self._time_of(self._place)

    def change(self, load: OpenLoop, now_s: float) -> None:
        """From *now_s* on, the rate of *load*; gaps are drawn as before."""
        self._start_place += self._course.arrivals_by(now_s - self._start_s)
        self._start_s = now_s
        self._course = schedule.course(load.rate_rps, load.schedule)
        if self._next_s is not None:
            self._next_s = self._time_of(self._place)

    def _time_of(self, place: float) -> float | None:
        found_s = self._course.time_of(place - self._start_place)
        return None if found_s is None else self._start_s + found_s

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
            self._place = self._count if self._gap is None else self._place + self._gap()
            self._next_s = self._time_of(self._place)
        return arrivals

    def done(self, record: Record) -> None:
        """Nothing follows from an answer: that is what makes the loop open."""

    @property
    def finished(self) -> bool:
        return self._next_s is None


def _gaps(load: OpenLoop, seed: int) -> Callable[[], float] | None:
    """Draws gaps of mean 1; None where all are equal."""
    random = rand.stream(seed, "arrivals")
    match load.arrivals:
        case "constant":
            return None
        case "gamma" if load.cv == 0:
            return None
        case "gamma":
            shape = load.cv**-2
            return lambda: random.gammavariate(shape, 1 / shape)
        case _:
            return lambda: random.expovariate(1.0)


class TraceArrivals:
    """Requests that say themselves when they are due; each is a user of its own.

    They must come in the order in which they are due.
    """

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests
        self._count = 0
        self._next = next(requests, None)

    def next_s(self) -> float | None:
        return None if self._next is None else self._next.due_s or 0.0

    def take(self, now_s: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        while self._next is not None and (due_s := self._next.due_s or 0.0) <= now_s:
            arrivals.append(Arrival(self._next, self._count, due_s))
            self._count += 1
            self._next = next(self._requests, None)
        return arrivals

    def done(self, record: Record) -> None:
        """Nothing follows from an answer: that is what makes the loop open."""

    @property
    def finished(self) -> bool:
        return self._next is None

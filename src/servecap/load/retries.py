"""Requests that were turned away are sent again after a pause, as the client libraries do."""

from __future__ import annotations

import heapq
import itertools

from servecap import rand
from servecap.load.feed import Feed
from servecap.record import Arrival, Record

FIRST_PAUSE_S, PAUSE_MOST_S = 0.5, 8.0  # where the server does not say; doubled with each try
SPREAD = 0.25  # pauses are shorter by up to this share, so that not all come back at once
ASKED_MOST_S = 60.0  # of a longer Retry-After no more is waited


class Retries:
    """A feed around another one, which hears of a request's end only after its last try.

    So a user is held through all tries of a request, and no load is added but the retries. The
    pause is what the server asked for (Retry-After), else 0.5 s, doubled with each try.

    Source:
        The pauses are those of OpenAI's client library for Python.
    """

    def __init__(self, feed: Feed, most: int, *, seed: int) -> None:
        self.feed = feed
        self._most = most
        self._spread = rand.stream(seed, "retries")
        self._open: dict[int, Arrival] = {}  # by the request's id
        self._due: list[tuple[float, int, Arrival]] = []
        self._order = itertools.count()

    def next_s(self) -> float | None:
        next_s = self.feed.next_s()
        if not self._due:
            return next_s
        return self._due[0][0] if next_s is None else min(next_s, self._due[0][0])

    def take(self, now_s: float) -> list[Arrival]:
        arrivals = self.feed.take(now_s)
        while self._due and self._due[0][0] <= now_s:
            arrivals.append(heapq.heappop(self._due)[2])
        for arrival in arrivals:
            self._open[arrival.request.request_id] = arrival
        return sorted(arrivals, key=lambda a: a.planned_s)

    def done(self, record: Record) -> None:
        arrival = self._open.pop(record.request_id)
        if record.attempt > self._most or not record.may_be_tried_again:
            self.feed.done(record)
            return
        due_s = record.end_s + self._pause_s(record)
        first_s = arrival.planned_s if arrival.attempt == 1 else arrival.first_planned_s
        again = Arrival(arrival.request, arrival.user, due_s, arrival.attempt + 1, first_s)
        heapq.heappush(self._due, (due_s, next(self._order), again))

    def _pause_s(self, record: Record) -> float:
        if record.retry_after_s is not None:
            return min(record.retry_after_s, ASKED_MOST_S)
        pause_s = min(FIRST_PAUSE_S * 2.0 ** (record.attempt - 1), PAUSE_MOST_S)
        return pause_s * (1 - SPREAD * self._spread.random())

    @property
    def finished(self) -> bool:
        return not self._due and self.feed.finished

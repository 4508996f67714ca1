"""Open loop of sessions: users come whatever the server does, and each wants several answers."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterator
from itertools import islice

import msgspec

from servecap import rand
from servecap.load.arrivals import OpenArrivals
from servecap.load.think import think_s
from servecap.record import Arrival, Record, Request
from servecap.scenario import OpenLoop


class _Visit(msgspec.Struct):
    """A user who has come, and the turns that are still to be sent."""

    turns: deque[Request]
    think: random.Random


class OpenSessions:
    """Sessions that start as `OpenArrivals` would send requests; each is a user of its own.

    A session's next turn is due at the end of the answer before it, well or badly, and a think
    time. So a slow server delays the turns of those who have come, but never who comes.
    """

    def __init__(self, load: OpenLoop, requests: Iterator[Request], *, seed: int) -> None:
        self._load = load
        self._seed = seed
        self._rest: dict[int, deque[Request]] = {}  # later turns, by the id of the first
        self._starts = OpenArrivals(load, self._firsts(requests), seed=seed)
        self._visits: dict[int, _Visit] = {}
        self._due: list[tuple[float, int]] = []

    def _firsts(self, requests: Iterator[Request]) -> Iterator[Request]:
        for request in requests:
            if request.turns_left:
                self._rest[request.request_id] = deque(islice(requests, request.turns_left))
            yield request

    def change(self, load: OpenLoop, now_s: float) -> None:
        """From *now_s* on, sessions start at the rate of *load*; those who have come go on."""
        self._load = load
        self._starts.change(load, now_s)

    def next_s(self) -> float | None:
        start_s = self._starts.next_s()
        if not self._due:
            return start_s
        return self._due[0][0] if start_s is None else min(start_s, self._due[0][0])

    def take(self, now_s: float) -> list[Arrival]:
        arrivals = self._starts.take(now_s)
        for arrival in arrivals:
            turns = self._rest.pop(arrival.request.request_id, None)
            if turns:
                think = rand.stream(self._seed, "think", arrival.user)
                self._visits[arrival.user] = _Visit(turns, think)
        while self._due and self._due[0][0] <= now_s:
            due_s, user = heapq.heappop(self._due)
            turns = self._visits[user].turns
            arrivals.append(Arrival(turns.popleft(), user, due_s))
            if not turns:
                del self._visits[user]
        return sorted(arrivals, key=lambda a: a.planned_s)

    def done(self, record: Record) -> None:
        visit = self._visits.get(record.user)
        if visit is not None:
            due_s = record.end_s + think_s(self._load, visit.think)
            heapq.heappush(self._due, (due_s, record.user))

    @property
    def finished(self) -> bool:
        return self._starts.finished and not self._visits

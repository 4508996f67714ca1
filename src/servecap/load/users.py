"""The closed loop: N users who send, read to the end, think, and send again."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import islice

from servecap import rand
from servecap.load.think import think_s
from servecap.record import Arrival, Record, Request
from servecap.scenario import ClosedLoop


class Users:
    """N users who take their requests from one shared queue.

    A user holds one slot through send, stream and think, and never has two requests in flight.
    By default users start evenly spread over one cycle, as a population met in the middle of its
    day would be, and go on for ever. With `queue` or `each` all start at once and stop by count.
    Each user's think times come from a random stream of its own, so that they do not depend on
    the order in which answers arrive.
    """

    def __init__(
        self,
        load: ClosedLoop,
        requests: Iterator[Request],
        *,
        seed: int,
        response_guess_s: float,
    ) -> None:
        self._load = load
        self._requests = requests
        self._think = [rand.stream(seed, "think", user) for user in range(load.users)]
        self._sent = [0] * load.users
        self._turns: list[deque[Request]] = [deque() for _ in range(load.users)]
        self._left_in_queue = load.queue
        self._active = load.users
        ramp_s = self._ramp_s(response_guess_s)
        step_s = ramp_s / load.users
        self._due = [(user * step_s, user) for user in range(load.users)]  # ascending: a heap

    def _ramp_s(self, response_guess_s: float) -> float:
        if self._load.queue is not None or self._load.each is not None:
            return self._load.ramp_s or 0.0
        if self._load.ramp_s is not None:
            return self._load.ramp_s
        return response_guess_s + self._load.think_mean_s

    def next_s(self) -> float | None:
        return self._due[0][0] if self._due else None

    def take(self, now_s: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        while self._due and self._due[0][0] <= now_s:
            due_s, user = heapq.heappop(self._due)
            request = self._next_request(user)
            if request is None:
                self._active -= 1
                continue
            self._sent[user] += 1
            arrivals.append(Arrival(request, user, due_s))
        return arrivals

    def _next_request(self, user: int) -> Request | None:
        """The next turn of the user's session; a new session from the queue when it has ended."""
        if self._left_in_queue is not None:
            if self._left_in_queue == 0:
                return None
            self._left_in_queue -= 1
        if self._turns[user]:
            return self._turns[user].popleft()
        request = next(self._requests, None)
        if request is not None and request.turns_left:
            self._turns[user].extend(islice(self._requests, request.turns_left))
        return request

    def done(self, record: Record) -> None:
        user = record.user
        if self._load.each is not None and self._sent[user] >= self._load.each:
            self._active -= 1
            return
        if self._left_in_queue == 0:
            self._active -= 1  # nothing left to take: no need to wake up for it
            return
        pause_s = think_s(self._load, self._think[user])
        heapq.heappush(self._due, (record.end_s + pause_s, user))

    @property
    def finished(self) -> bool:
        return self._active == 0

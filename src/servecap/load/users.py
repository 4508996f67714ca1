"""The closed loop: N users who send, read to the end, think, and send again."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from itertools import islice
from random import Random

from servecap import rand
from servecap.load.think import think_s
from servecap.record import Arrival, Record, Request
from servecap.scenario import ClosedLoop

_GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it modulo 1 are even, wherever they are cut off


class Users:
    """N users who take their requests from one shared queue.

    A user holds one slot through send, stream and think, and never has two requests in flight.
    By default users start evenly spread over one cycle, as a population met in the middle of its
    day would be, and go on for ever. With `queue` or `each` all start at once and stop by count.
    Each user's think times come from a random stream of its own, so that they do not depend on
    the order in which answers arrive.

    `change` makes the population larger or smaller while it lives. Users are numbered from 0; the
    last to come leave first, and a number that left is taken by the next newcomer.
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
        self._seed = seed
        self._response_guess_s = response_guess_s
        self._think: dict[int, Random] = {}
        self._sent: dict[int, int] = {}
        self._turns: dict[int, deque[Request]] = {}
        self._left_in_queue = load.queue
        self._busy: set[int] = set()  # in flight; who is present and not busy is due
        step_s = self._ramp_s() / load.users
        self._due = [(user * step_s, user) for user in range(load.users)]  # ascending: a heap

    def change(self, load: ClosedLoop, now_s: float) -> None:
        """From *now_s* on, the users of *load*; those who are there already just go on.

        Newcomers start spread over the load's ramp, so that requests come at their new rate at
        once. Who is too many leaves at once when thinking, else after the answer.
        """
        self._load = load
        self._due = [(due_s, user) for due_s, user in self._due if user < load.users]
        for user in [user for user in self._turns if user >= load.users]:
            del self._turns[user]
        present = self._busy.union(user for _, user in self._due)
        ramp_s = self._ramp_s()
        new = [user for user in range(load.users) if user not in present]
        for place, user in enumerate(new):
            self._due.append((now_s + ramp_s * (place * _GOLDEN % 1), user))
        heapq.heapify(self._due)

    def _ramp_s(self) -> float:
        if self._load.queue is not None or self._load.each is not None:
            return self._load.ramp_s or 0.0
        if self._load.ramp_s is not None:
            return self._load.ramp_s
        return self._response_guess_s + self._load.think_mean_s

    def next_s(self) -> float | None:
        return self._due[0][0] if self._due else None

    def take(self, now_s: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        while self._due and self._due[0][0] <= now_s:
            due_s, user = heapq.heappop(self._due)
            request = self._next_request(user)
            if request is None:
                continue
            self._busy.add(user)
            self._sent[user] = self._sent.get(user, 0) + 1
            arrivals.append(Arrival(request, user, due_s))
        return arrivals

    def _next_request(self, user: int) -> Request | None:
        """The next turn of the user's session; a new session from the queue when it has ended."""
        if self._left_in_queue is not None:
            if self._left_in_queue == 0:
                return None
            self._left_in_queue -= 1
        turns = self._turns.get(user)
        if turns:
            return turns.popleft()
        request = next(self._requests, None)
        if request is not None and request.turns_left:
            self._turns[user] = deque(islice(self._requests, request.turns_left))
        return request

    def done(self, record: Record) -> None:
        user, load = record.user, self._load
        self._busy.discard(user)
        if user >= load.users:
            return  # was too many, and has had the answer
        if load.each is not None and self._sent[user] >= load.each:
            return
        if self._left_in_queue == 0:
            return  # nothing left to take: no need to wake up for it
        pause_s = think_s(load, self._mind(user))
        heapq.heappush(self._due, (record.end_s + pause_s, user))

    def _mind(self, user: int) -> Random:
        """Where the user's think times come from."""
        if user not in self._think:
            self._think[user] = rand.stream(self._seed, "think", user)
        return self._think[user]

    @property
    def finished(self) -> bool:
        return not self._due and not self._busy

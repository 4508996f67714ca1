"""Servers in virtual time whose true rate capacity is known by formula: queues of the textbooks.

Each takes arrivals of a feed and gives records, level after level, as a probe does.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import msgspec

from servecap import rand, steady
from servecap.level import gone_on, shifted
from servecap.load import Feed, change, feed_for
from servecap.record import Arrival, Outcome, Record, Request, Times, TokenSource
from servecap.run import Header, Run, Source, Status
from servecap.scenario import OpenLoop, Scenario, Target

TOKEN_S = 0.02  # of decoding: an answer's tokens follow from its service time
TICK_S = 0.2


@dataclass(frozen=True)
class Queue:
    """`slots` requests are served at once, first come first served; each takes `service_s`.

    A request that is served has its first token after `first_share` of its service. `cv`: of the
    service times (0: constant, 1: exponential, else log-normal). `slowing`: each request in flight
    makes a service longer by that share. A rate of `slow_rps` doubles the services; `scatter` is
    the standard deviation of their logarithms at equal numbers of tokens. `cliff`: more requests
    than that in flight make services `thrash` times as long. `ageing`: services grow by that share
    an hour.
    """

    slots: int
    service_s: float
    cv: float = 0.0
    first_share: float = 0.1
    slowing: float = 0.0
    slow_rps: float = math.inf
    scatter: float = 0.0
    cliff: int | None = None
    thrash: float = 3.0
    ageing: float = 0.0

    @property
    def rate_rps(self) -> float:
        """What it answers when it always has work."""
        return self.slots / self.service_s

    def drawn_s(self, random_: random.Random) -> float:
        """One service time, of an idle server."""
        if self.cv == 0:
            return self.service_s
        if self.cv == 1:
            return random_.expovariate(1 / self.service_s)
        sigma = math.sqrt(math.log1p(self.cv**2))
        return random_.lognormvariate(math.log(self.service_s) - sigma**2 / 2, sigma)

    def wait_over(self, rate_rps: float, t_s: float) -> float:
        """The chance to wait longer than that, exponential services (Erlang's C formula)."""
        work = rate_rps * self.service_s
        if work >= self.slots:
            return 1.0
        term, below = 1.0, 1.0
        for k in range(1, self.slots):
            term *= work / k
            below += term
        last = term * work / self.slots / (1 - work / self.slots)
        if self.slots == 1:
            last = work / (1 - work)
            below = 1.0
        return last / (below + last) * math.exp(-(self.rate_rps - rate_rps) * t_s)

    def mean_wait_s(self, rate_rps: float) -> float:
        """Pollaczek and Khinchine for one slot, Erlang's for several with exponential services."""
        spare = self.rate_rps - rate_rps
        if spare <= 0:
            return math.inf
        if self.slots == 1:
            rho = rate_rps * self.service_s
            return rho * self.service_s * (1 + self.cv**2) / 2 / (1 - rho)
        return self.wait_over(rate_rps, 0.0) / spare


class Live:
    """The queue under a load that lives on from level to level, as `simulate.Simulation` does."""

    def __init__(
        self,
        server: Queue,
        seed: int,
        change: Callable[[Record], Record] = lambda record: record,
        source: Source = "simulated",
    ) -> None:
        self._server = server
        self._random = random.Random(rand.derive(seed, "services"))
        self._seed, self._change, self._source = seed, change, source
        self._starts = 0
        self._age_s = 0.0
        self._feed: Feed | None = None
        self._before: OpenLoop | None = None
        self.spent_s = 0.0

    def __call__(self, scenario: Scenario) -> Run:
        assert isinstance(scenario.load, OpenLoop)
        if self._feed is None:
            seed = rand.derive(self._seed, self._starts)
            fresh = msgspec.structs.replace(scenario, seed=seed)
            self._feed = feed_for(fresh, _requests(), response_guess_s=1.0)
            self._starts += 1
            self._now_s, self._before = 0.0, None
            self._waiting: deque[Arrival] = deque()
            self._busy: list[tuple[float, int, float, Arrival, int]] = []
        else:
            change(self._feed, scenario.load, self._now_s)
        asked = gone_on(scenario, self._before)
        run = self._level(asked)
        self._before = scenario.load
        self.spent_s += run.header.load_end_s or 0.0
        if (run.header.stop_reason or "").startswith(steady.GIVEN_UP):
            self._feed = None
        return run

    def _level(self, scenario: Scenario) -> Run:
        feed, zero_s = self._feed, self._now_s
        assert isinstance(scenario.load, OpenLoop)
        self._rate_rps = scenario.load.rate_rps
        assert feed is not None
        enough, found, ticks, number = steady.Enough(scenario), [], 0, count()
        while True:
            ahead = [t for t in (feed.next_s(), self._busy[0][0] if self._busy else None) if t]
            next_s = min(ahead)
            reason = None
            while reason is None and zero_s + (ticks + 1) * TICK_S <= next_s:
                ticks += 1
                reason = enough.reason(ticks * TICK_S)
            if reason is not None:
                break
            self._now_s = next_s
            while self._busy and self._busy[0][0] <= next_s:
                end_s, _, first_s, arrival, tokens = heapq.heappop(self._busy)
                record = _record(arrival, first_s, end_s, tokens)
                record = self._change(shifted(record, zero_s))
                found.append(record)
                enough.note(record)
                self._serve(end_s, number)
            for arrival in feed.take(next_s):
                enough.came(arrival.planned_s - zero_s)
                self._waiting.append(arrival)
                self._serve(next_s, number)
        self._age_s += self._now_s - zero_s
        end_s = ticks * TICK_S
        self._now_s = zero_s + end_s
        waiting = [*self._waiting, *(b[3] for b in self._busy)]
        found += [
            shifted(_record(a, None, self._now_s), zero_s)
            for a in waiting
            if a.planned_s <= self._now_s
        ]
        header = Header(
            scenario=scenario, target=Target(url="x", api="x"), source=self._source,
            servecap_version="0", started_utc="2026-01-01T00:00:00+00:00", status=Status.COMPLETE,
            load_end_s=end_s, stop_reason=reason,
        )  # fmt: skip
        return Run(header=header, records=found)

    def _serve(self, now_s: float, number: Iterator[int]) -> None:
        server = self._server
        while self._waiting and len(self._busy) < server.slots:
            arrival = self._waiting.popleft()
            in_flight = len(self._busy) + 1
            taken_s = server.drawn_s(self._random)
            tokens = 1 + max(1, round(taken_s / TOKEN_S))
            taken_s *= 1 + server.slowing * in_flight + self._rate_rps / server.slow_rps
            if server.scatter:
                sigma = server.scatter
                taken_s *= self._random.lognormvariate(-(sigma**2) / 2, sigma)
            taken_s *= 1 + server.ageing * (self._age_s + now_s) / 3600
            if server.cliff is not None and in_flight > server.cliff:
                taken_s *= server.thrash
            first_s = now_s + server.first_share * server.service_s
            end_s = max(now_s + taken_s, first_s + 1e-6)
            heapq.heappush(self._busy, (end_s, next(number), first_s, arrival, tokens))


def _requests() -> Iterator[Request]:
    return (Request(request_id=i, messages=(), max_output_tokens=64) for i in count())


def _record(
    arrival: Arrival, first_s: float | None, end_s: float, tokens: int | None = None
) -> Record:
    """An answer, or (no first token) a request that still waits."""
    ok = first_s is not None
    chunks = Times([first_s, end_s]) if first_s is not None else Times()
    return Record(
        request_id=arrival.request.request_id, user=arrival.user, planned_s=arrival.planned_s,
        sent_s=arrival.planned_s, end_s=end_s, outcome=Outcome.OK if ok else Outcome.CENSORED,
        first_token_s=first_s, chunk_s=chunks, prompt_tokens=100,
        output_tokens=tokens,
        token_source=TokenSource.SERVER,
    )  # fmt: skip

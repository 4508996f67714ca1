"""Search rules: how others go about it, and servecap's own on servers that are formulas.

The peers' rules are written from their documents: what a level asks for and how it is decided, no
more. A rule is given something that runs levels and adds up their price in user-seconds: `Meter`
for servers that are formulas, `playing.Anew` for engines that are simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from servers import MOST_USERS, Floats, Server

from servecap.search.evidence import at_least, least_requests, of_values
from servecap.search.machine import Search
from servecap.slo import Limit
from servecap.stats import percentile

START = 8


@dataclass(frozen=True)
class Answer:
    """What a rule says, and what it paid."""

    best: float
    low: float
    high: float | None
    user_s: float
    levels: int
    clean: bool = True  # it neither says UNSURE nor INVALID, which the peers never do
    valid: bool = True


class Levels(Protocol):
    """What runs a level of so many users, all new, and adds up the price."""

    limits: tuple[Limit, ...]
    user_s: float
    levels: int

    def level(self, users: int, requests: int, *, cold_cycles: float) -> dict[str, Floats]:
        """Values by metric of *requests*, after that many cycles that are thrown away."""


class Meter:
    """Runs levels on a server that is a formula and adds up their price."""

    def __init__(self, server: Server, rng: np.random.Generator) -> None:
        self.server, self.rng = server, rng
        self.limits = server.limits
        self.user_s = 0.0
        self.levels = 0
        self.users = 0.0  # of the population that lives on; 0: the next one starts anew

    def level(self, users: float, requests: int, *, cold_cycles: float) -> dict[str, Floats]:
        """*requests* in the steady state, after that many cycles that are thrown away."""
        cycle_s = self.server.cycle_s(users)
        seconds = cold_cycles * cycle_s + requests / self.server.requests_per_s(users)
        self.user_s += users * seconds
        self.levels += 1
        return self.server.sample(users, requests, self.rng)

    def living(self, users: float, requests: int, *, given_up: bool) -> dict[str, Floats]:
        """The same in a population that lives on, unless its load was given up.

        Newcomers ramp in over a cycle, who leaves takes a response; then the part of a cycle that
        is the part of the population that is new. A first population ramps in from nobody.
        """
        server, before = self.server, self.users
        cycle_s = server.cycle_s(users)
        if users >= before:
            hand_over = cycle_s * (users + before) / 2
        else:
            hand_over = server.response_s(before) * (users + before) / 2
        hand_over += users * cycle_s * abs(users - before) / max(users, before)
        self.user_s += hand_over + users * requests / server.requests_per_s(users)
        self.levels += 1
        self.users = 0.0 if given_up else users
        return server.sample(users, requests, self.rng)


def _answer(meter: Levels, best: float, low: float, high: float | None) -> Answer:
    return Answer(best, low, high, meter.user_s, meter.levels)


def ours(meter: Meter, *, precision: float = 0.05) -> Answer:
    """servecap: a curve over all levels of one population that lives on."""
    server = meter.server
    search = Search(
        start=START,
        most=MOST_USERS,
        precision=precision,
        least=least_requests(server.limits),
        seed=server.seed,
    )
    while (asked := search.ask()) is not None:
        users = asked.load
        requests = max(asked.requests, math.ceil(CYCLES * users))
        hopeless = server.mean_ttft_s(users) > GIVEN_UP * server.limits[0].at_most_s
        if hopeless:
            requests = GIVEN_UP_AFTER
        values = meter.living(users, requests, given_up=hopeless)
        found = [of_values(limit, values[limit.metric].tolist()) for limit in server.limits]
        margins = [m for m in found if m is not None]
        if hopeless:
            margins = [at_least(m) for m in margins if m.value > 0]
        search.tell(users, margins, requests)
    answer = search.estimate()
    assert answer is not None
    low = answer.low if answer.named is None else answer.named
    return _answer(meter, answer.best, low, answer.high)


CYCLES = 2.0  # the window's least length
GIVEN_UP = 2.0  # times the limit on the TTFT that makes the product give a level up early
GIVEN_UP_AFTER = 80  # requests that came after the ramp, one cycle


def double_and_bisect(
    meter: Levels, *, times: float = 1.0, within: float = 0.0, cold_cycles: float = 0
) -> Answer:
    """Double until a level fails, then halve down to one user; the mean of three runs of 2N.

    Args:
        times: as many requests per run.
        within: share of the answer at which halving ends.
        cold_cycles: of each run, that are thrown away.
    """

    def holds(users: int) -> bool:
        count = max(2, round(times * 2 * users))
        runs = [meter.level(users, count, cold_cycles=cold_cycles) for _ in range(3)]
        return all(
            float(np.mean([_point(limit, run[limit.metric]) for run in runs])) <= limit.at_most_s
            for limit in meter.limits
        )

    low, high = _widen(holds, 1)
    while high is not None and high - low > max(1, within * low):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return _answer(meter, low, low, low if high is not None else None)


def isotonic_root(
    meter: Levels, *, times: float = 1.0, levels: int = 10, cold_cycles: float = 1
) -> Answer:
    """Ten levels up to overload, made monotone, and the root by straight lines between them.

    Args:
        times: as many requests per level.
        cold_cycles: of each level, that are thrown away.
    """
    seen: dict[int, dict[str, Floats]] = {}

    def holds(users: int) -> bool:
        count = max(2, round(times * max(250, 2 * users)))
        seen[users] = meter.level(users, count, cold_cycles=cold_cycles)
        return all(_point(x, seen[users][x.metric]) <= x.at_most_s for x in meter.limits)

    low, high = _widen(holds, START)
    if high is None:
        return _answer(meter, low, low, None)
    for users in np.unique(np.linspace(low, high, levels).round().astype(int))[1:-1]:
        holds(int(users))
    loads = sorted(seen)
    roots = []
    for limit in meter.limits:
        values = [_point(limit, seen[n][limit.metric]) / limit.at_most_s for n in loads]
        roots.append(_root(loads, _isotonic(values)))
    best = math.floor(min(roots))
    return _answer(meter, best, best, best)


def attainment_bisect(
    meter: Levels, *, times: float = 1.0, within: float = 0.05, cold_cycles: float = 1
) -> Answer:
    """Double, then halve down to 5%: a level holds if its share of good requests is enough.

    Args:
        times: as many requests per level.
        within: share of the answer at which halving ends.
        cold_cycles: of each run, that are thrown away.
    """

    def holds(users: int) -> bool:
        count = max(2, round(times * max(250, 2 * users)))
        run = meter.level(users, count, cold_cycles=cold_cycles)
        return all(_point(x, run[x.metric]) <= x.at_most_s for x in meter.limits)

    low, high = _widen(holds, START)
    while high is not None and high - low > max(1, within * low):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    best = low if high is None else (low + high) / 2
    return _answer(meter, best, low, None if high is None else high - 1)


def _point(limit: Limit, values: Floats) -> float:
    """The statistic as it came out, whatever its uncertainty."""
    if limit.quantile is None:
        return float(values.mean())
    return percentile(np.sort(values), limit.quantile)


def _widen(holds: Callable[[int], bool], start: int) -> tuple[int, int | None]:
    low, users = 0, start
    while holds(users):
        if users >= MOST_USERS:
            return users, None
        low, users = users, min(users * 2, MOST_USERS)
    return low, users


def _isotonic(values: Sequence[float]) -> list[float]:
    """Pool adjacent violators (Ayer et al., 1955)."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            last, count = blocks.pop()
            before, n = blocks[-1]
            blocks[-1] = [(before * n + last * count) / (n + count), n + count]
    return [value for value, count in blocks for _ in range(int(count))]


def _root(loads: Sequence[int], used: Sequence[float]) -> float:
    for i in range(1, len(loads)):
        if used[i] > 1:
            low, high = used[i - 1], used[i]
            share = 0.0 if high <= low or low > 1 else (1 - low) / (high - low)
            return loads[i - 1] + share * (loads[i] - loads[i - 1])
    return float(loads[-1])


RULES: dict[str, Callable[[Meter], Answer]] = {
    "servecap, 5%": ours,
    "servecap, 10%": lambda meter: ours(meter, precision=0.10),
    "servecap, 20%": lambda meter: ours(meter, precision=0.20),
    "double + bisect, 3 x 2N": double_and_bisect,
    "isotonic + root": isotonic_root,
    "attainment + bisect": attainment_bisect,
}

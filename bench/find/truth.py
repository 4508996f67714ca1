"""The capacity of an engine in virtual time, by brute force, with a bound on its own error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from playing import Server, played, values
from servers import Floats

LEAST, MOST = 12, 400  # users: capacities outside are not looked for
MEMORY = 4.0  # times the memory: where that carries a tenth more, memory is what binds
WARM_CYCLES = 8
REQUESTS = 20_000  # of one simulation, at least
CYCLES = 30  # and at least so many of each user
REPLICAS = 16
REPLICAS_MOST = 256
SURE = 4.0  # standard errors
STEP_SHARE = 0.0025  # of the capacity: finer than this it is not told


@dataclass(frozen=True)
class Truth:
    """The largest number of users that keeps all limits lies surely within low and high."""

    best: int
    low: int
    high: int
    memory_binds: bool


def excess(server: Server, users: int, seed: int, *, memory: float = 1.0) -> Floats:
    """How far each limit is broken in the steady state (> 0), as one long simulation has it.

    Of a mean, as a share of the limit; of a percentile, the requests above the limit, as a share of
    those that may be. The users start spread over a cycle, the warm-up is thrown away, and the
    window ends before any of them finds nothing left to ask.
    """
    rng = np.random.default_rng([server.number, users, seed, 1])
    cycles = max(CYCLES, math.ceil(REQUESTS / users))
    cycle_s = sum(server.think_s) / 2 + 0.05 * server.asked.lengths.output_tokens
    start_s = np.linspace(0.0, cycle_s, users, endpoint=False)
    count = users * (WARM_CYCLES + cycles)
    found, tokens = played(server, start_s, count, rng, memory=memory)
    from_s = np.sort(found.end_s)[users * WARM_CYCLES]
    inside = (found.end_s > from_s) & (found.end_s <= found.planned_s.max())
    seen = values(found, tokens, np.flatnonzero(inside))
    return np.array(
        [
            seen[x.metric].mean() / x.at_most_s - 1
            if x.quantile is None
            else (seen[x.metric] > x.at_most_s).mean() / (1 - x.quantile) - 1
            for x in server.limits
        ]
    )


def rough(server: Server, *, memory: float = 1.0, most: int = 2 * MOST) -> int:
    """The capacity as single simulations have it."""

    def holds(users: int) -> bool:
        return bool((excess(server, users, 0, memory=memory) <= 0).all())

    low, high = 0, 1
    while holds(high):
        low, high = high, 2 * high
        if low > most:
            return low
    while high - low > max(1, STEP_SHARE * low):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class _Levels:
    """Simulations of the levels near the edge, each only as long as it takes to be sure."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._seen: dict[int, list[Floats]] = {}

    def side(self, users: int) -> int:
        """-1: surely all limits are kept; 1: surely one is broken; 0: it cannot be told."""
        seen = self._seen.setdefault(users, [])
        while True:
            while len(seen) < REPLICAS or (len(seen) & (len(seen) - 1)):
                seen.append(excess(self._server, users, 1 + len(seen)))
            told = np.array(seen)
            error = told.std(axis=0, ddof=1) / math.sqrt(len(seen))
            mean = told.mean(axis=0)
            if (mean > SURE * error).any():
                return 1
            if (mean < -SURE * error).all():
                return -1
            if len(seen) >= REPLICAS_MOST:
                return 0
            seen.append(excess(self._server, users, 1 + len(seen)))

    def worst(self, users: int) -> float:
        return float(np.mean(self._seen[users], axis=0).max())


def truth(server: Server) -> Truth | None:
    """The capacity; None where it lies outside `LEAST` to `MOST`."""
    start = rough(server)
    if not LEAST <= start <= MOST:
        return None
    levels = _Levels(server)
    binds = rough(server, memory=MEMORY) > 1.1 * start
    step = max(1, round(STEP_SHARE * start))
    low, high = start, start + step
    while low > 0 and levels.side(low) >= 0:
        low -= step
    while levels.side(high) <= 0:
        high += step
    while high - low > 1:
        middle = (low + high) // 2
        side = levels.side(middle)
        if side == 0:
            break
        low, high = (middle, high) if side < 0 else (low, middle)
    if high - low == 1:
        return Truth(low, low, low, binds)
    # Where it crosses between the two, by a straight line.
    kept, broken = levels.worst(low), levels.worst(high)
    best = low + int((high - low) * kept / (kept - broken))
    return Truth(best, low, high - 1, binds)

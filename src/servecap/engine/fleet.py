"""Many equal instances behind one router, in virtual time and compiled: a whole fleet at once.

The instances are simulated step by step, each with all of its requests; the router sees every
request and every answer. What is kept are counts, sums and histograms, so that memory grows with
the number of users and not with time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from servecap.engine import kernel_fleet as kernel
from servecap.engine.cost import StepCoefficients
from servecap.engine.fast import Floats, Ints, fresh, settings_of
from servecap.engine.scheduler import Policy

Routing = Literal["least-load", "random", "sticky"]
METRICS = ("ttft", "tpot", "e2e")


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """A closed loop of users in front of the router, seen between two moments.

    User u is first due at `start_s[u]`. The n-th request that is sent takes the n-th prompt,
    answer and think time, from the start again where the series is over; `route` (in [0, 1)) is
    for random routing. "sticky" gives user u to instance u modulo their number.
    """

    start_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    think_s: Floats
    route: Floats
    begin_s: float
    stop_s: float
    routing: Routing = "least-load"


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What ended between `begin_s` and `stop_s`; `sent` counts from the start."""

    answered: int
    later: int  # answers of more than one token: those with a TPOT
    failed: int
    sent: int
    peak: int  # most requests that one instance had at once
    window_s: float
    sums_s: dict[str, float]
    most_s: dict[str, float]
    bins: dict[str, Ints]
    log: Floats  # first requests: instance, user, due, first token, end; NaN: not yet

    def count(self, metric: str) -> int:
        """Requests that have that figure."""
        return self.later if metric == "tpot" else self.answered

    def mean(self, metric: str) -> float | None:
        """The mean over all answers; None: nobody has that figure."""
        count = self.count(metric) if metric in METRICS else 0
        return self.sums_s[metric] / count if count else None

    def quantile(self, metric: str, q: float) -> float | None:
        """By nearest rank, at most 0.5% above the exact one; failures count as infinite."""
        if metric not in METRICS or not self.count(metric):
            return None
        rank = max(1, math.ceil(q * (self.count(metric) + self.failed) - 1e-9))
        if rank > self.count(metric):
            return math.inf
        at = int(np.searchsorted(np.cumsum(self.bins[metric]), rank))
        edge = kernel.BIN_LEAST_S * math.exp(at / kernel.BINS_PER_E)
        return min(edge, self.most_s[metric])


def serve_fleet(
    cost: StepCoefficients,
    policy: Policy,
    crowd: Crowd,
    *,
    instances: int,
    kv_tokens: int,
    max_context_tokens: int,
    log: int = 0,
) -> Ended:
    """What the crowd sees of that many fresh instances; a refused request takes a millisecond.

    Args:
        log: first requests whose own times are kept.
    """
    users = len(crowd.start_s)
    counts, sums = np.zeros(5, np.int64), np.zeros((2, len(METRICS)))
    bins = np.zeros((len(METRICS), kernel.BINS), np.int64)
    kept = np.full((5, log), np.nan)
    settings = settings_of(policy, kv_tokens, max_context_tokens)
    kernel.serve_fleet(
        fresh(cost, settings, instances=instances, requests=users),
        crowd.start_s,
        (crowd.prompt_tokens, crowd.output_tokens, crowd.think_s, crowd.route),
        kernel.ROUTING[crowd.routing],
        np.array([crowd.begin_s, crowd.stop_s]),
        (counts, sums, bins, kept),
        np.zeros(users, np.int64),
        np.zeros(users + 1),
        np.zeros(users + 1, np.int64),
    )
    return Ended(
        answered=int(counts[kernel.ANSWERED]),
        later=int(counts[kernel.LATER]),
        failed=int(counts[kernel.FAILED]),
        sent=int(counts[kernel.SENT]),
        peak=int(counts[kernel.PEAK]),
        window_s=crowd.stop_s - crowd.begin_s,
        sums_s=dict(zip(METRICS, sums[0].tolist(), strict=True)),
        most_s=dict(zip(METRICS, sums[1].tolist(), strict=True)),
        bins=dict(zip(METRICS, bins, strict=True)),
        log=kept,
    )


def joined(parts: Sequence[Ended]) -> Ended:
    """What ended at all the routers together, seen over equally long windows."""

    def total(field: str) -> int:
        return sum(int(getattr(part, field)) for part in parts)

    return Ended(
        answered=total("answered"),
        later=total("later"),
        failed=total("failed"),
        sent=total("sent"),
        peak=max(part.peak for part in parts),
        window_s=parts[0].window_s,
        sums_s={m: math.fsum(part.sums_s[m] for part in parts) for m in METRICS},
        most_s={m: max(part.most_s[m] for part in parts) for m in METRICS},
        bins={m: np.sum([part.bins[m] for part in parts], axis=0) for m in METRICS},
        log=parts[0].log,
    )

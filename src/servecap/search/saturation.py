"""What levels tell of the rate at which a server answers when it always has work.

A level whose queue grows measures it. One whose queue does not grow shows that it is no less than
what was answered; and near that rate a queue moves so slowly that a short look at it shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from servecap import stats
from servecap.metrics import Flow

HOLDS = 6.0  # correlation times that a window must hold to show that a rate is carried
_SCATTER = 0.005  # of a server's own rate from one level to another, at least
_DISPERSION = (0.05, 8.0)  # of the answers: a short look may see too little or too much
_SURE = 1.645  # standard errors below the likeliest rate: the queue may be as long as that
_GRID = 1201
_APART = 9.0  # chi-square per degree of freedom beyond which levels contradict each other


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """The rate of answers of a server that always has work, and how surely it is known.

    `rate_rps` None: the queue never grew, so that it is only known to be above `least_rps`.
    """

    rate_rps: float | None
    error: float  # its standard error, as a share
    least_rps: float
    dispersion: float  # of arrivals and answers together, per request: variance over mean
    levels: int = 0  # whose queue grew
    contradicted: bool = False

    def correlation_s(self, rate_rps: float) -> float:
        """How long the queue at that rate remembers: the time scale of its random walk.

        Infinite at the rate of answers (where that is at the low end of what it may be) and above;
        0 where the queue never grew, so that nothing bounds the rate of answers.

        Source:
            Whitt, Planning queueing simulations, Management Science 35 (1989): run lengths grow
            with the variability of arrivals and services, and with 1 / (1 - rho)^2.
        """
        if self.rate_rps is None:
            return 0.0
        least = self.rate_rps * math.exp(-_SURE * self.error)
        spare = 1 - rate_rps / least
        return math.inf if spare <= 0 else self.dispersion / least / spare**2

    def reach_rps(self, window_s: float, holds: float = HOLDS) -> float:
        """The largest rate at which a window of that length holds so many correlation times."""
        if self.rate_rps is None:
            return math.inf
        least = self.rate_rps * math.exp(-_SURE * self.error)
        return least * max(0.0, 1 - math.sqrt(holds * self.dispersion / (least * window_s)))


def service_of(flows: Sequence[Flow], arrivals_cv2: float) -> Service | None:
    """What the levels' flows tell together; None without any.

    Each level that grew gives a normal estimate of the logarithm of the rate, weighed by its
    error; where they are further apart than that (and than levels below it that answered more),
    all errors are widened by as much (Birge's ratio).
    """
    if not flows:
        return None
    grown = [f for f in flows if f.tells_rate]
    least_rps = max(f.answered_rps for f in flows)
    if not grown:
        return Service(
            rate_rps=None, error=math.inf, least_rps=least_rps, dispersion=arrivals_cv2 + 1
        )
    x = np.log([f.answered_rps for f in grown])
    errors = np.hypot([f.answered_error for f in grown], _SCATTER)
    grid, weight = _posterior(flows, x, errors)
    mean = float((grid * weight).sum())
    error = math.sqrt(float((weight * (grid - mean) ** 2).sum()))
    apart = _apart(flows, x, errors, mean)
    answers = np.array([f.answers for f in grown], dtype=np.float64)
    seen = float(np.average([f.answers * f.answered_error**2 for f in grown], weights=answers))
    return Service(
        rate_rps=math.exp(mean),
        error=error * math.sqrt(max(1.0, apart)),
        least_rps=least_rps,
        dispersion=arrivals_cv2 + min(max(seen, _DISPERSION[0]), _DISPERSION[1]),
        levels=len(grown),
        contradicted=apart > _APART,
    )


def _posterior(
    flows: Sequence[Flow], x: stats.Floats, errors: stats.Floats
) -> tuple[stats.Floats, stats.Floats]:
    """The rate's logarithm on a grid, and how likely each is."""
    wide = 8 * float(errors.max())
    grid = np.linspace(float(x.min()) - wide, float(x.max()) + wide, _GRID)
    log_weight = np.zeros(_GRID)
    for at, error in zip(x, errors, strict=True):
        log_weight -= ((grid - at) / error) ** 2 / 2
    for at, error in _carried(flows):
        log_weight -= (np.minimum(grid - at, 0.0) / error) ** 2 / 2
    weight = np.exp(log_weight - log_weight.max())
    found: stats.Floats = weight / weight.sum()
    return grid, found


def _carried(flows: Sequence[Flow]) -> list[tuple[float, float]]:
    """Logarithm and error of the rates that were answered without a queue that grew."""
    return [
        (math.log(f.answered_rps), math.hypot(f.answered_error, _SCATTER))
        for f in flows
        if f.state == "settled" and f.answered_rps > 0
    ]


def _apart(flows: Sequence[Flow], x: stats.Floats, errors: stats.Floats, mean: float) -> float:
    """Chi-square per degree of freedom of the levels around the mean."""
    off = [float(o) for o in (x - mean) / errors]
    off += [o for at, error in _carried(flows) if (o := (at - mean) / error) > 0]
    return sum(o * o for o in off) / max(1, len(off) - 1)

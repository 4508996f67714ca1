"""Statistics of capacity: summaries, and intervals that a limit can be held against.

Percentiles are nearest-rank (the smallest value with at least that share at or below it), so
that they are values which were really seen and stay defined when failures count as infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_RHO_MOST = 0.8  # of batch means: more cannot be told from so few


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Count, mean and nearest-rank percentiles of a sample."""

    n: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    min: float

    def statistic(self, name: str) -> float:
        """The value of "mean", "p50", ... by name."""
        value: float = getattr(self, name)
        return value


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate and the range that holds the truth with `confidence`."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


def percentile(ordered: Floats, share: float) -> float:
    """The nearest-rank percentile of an ascending, non-empty array.

    >>> percentile(np.array([1.0, 2.0, 3.0, 4.0]), 0.5)
    2.0
    """
    return float(ordered[_place(len(ordered), share)])


def _place(count: int, share: float) -> int:
    """The index of the nearest-rank percentile among *count* ascending values."""
    return max(1, math.ceil(share * count - 1e-9)) - 1


_SHARES = (0.50, 0.90, 0.95, 0.99)


def describe(values: Sequence[float] | Floats, *, reorder: bool = False) -> Distribution | None:
    """The sample's distribution, or None if it is empty.

    Args:
        reorder: an array may be put in another order, which saves a copy of it.
    """
    placed = np.asarray(values, dtype=np.float64)
    if not len(placed):
        return None
    if placed is values and not reorder:
        placed = placed.copy()
    # Gaps come in tens of millions: only the ranks that are told are put in their places.
    placed.partition(sorted({_place(len(placed), share) for share in _SHARES}))
    return Distribution(
        n=len(placed),
        mean=float(placed.mean()),
        p50=percentile(placed, 0.50),
        p90=percentile(placed, 0.90),
        p95=percentile(placed, 0.95),
        p99=percentile(placed, 0.99),
        max=float(placed.max()),
        min=float(placed.min()),
    )


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) <= k), summed in logarithms so that large n do not underflow."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    logp, logq = math.log(p), math.log1p(-p)
    lead = math.lgamma(n + 1)
    total = 0.0
    for i in range(k + 1):
        log_term = lead - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * logp + (n - i) * logq
        total += math.exp(log_term)
    return min(1.0, total)


def requests_needed(over: int, *, quantile: float, confidence: float) -> int:
    """Smallest run length that proves a quantile limit despite *over* misses.

    Args:
        over: requests that broke the limit; >= 0.
        quantile: share that must keep it; in (0, 1).
        confidence: chance that the claim is right; in (0, 1).
    Returns:
        Smallest n with P(Binomial(n, 1 - quantile) <= over) <= 1 - confidence.
    Raises:
        ValueError: an argument is outside its range.
    Source:
        Exact binomial test (Clopper & Pearson, 1934).

    >>> requests_needed(0, quantile=0.99, confidence=0.95)
    299
    """
    if over < 0 or not 0 < quantile < 1 or not 0 < confidence < 1:
        raise ValueError(f"over={over}, quantile={quantile}, confidence={confidence}: out of range")

    def proven(n: int) -> bool:
        return binomial_cdf(over, n, 1 - quantile) <= 1 - confidence

    high = over + 1
    while not proven(high):
        high *= 2
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if proven(middle) else (middle, high)
    return high


def quantile_ranks(n: int, *, quantile: float, confidence: float) -> tuple[int | None, int | None]:
    """1-based ranks whose order statistics enclose the quantile with that two-sided confidence.

    A side is None where n is too small to bound it.

    Source:
        Order-statistic interval from the exact binomial distribution (Conover, Practical
        Nonparametric Statistics, 3rd ed., section 3.2).

    >>> quantile_ranks(10, quantile=0.5, confidence=0.95)
    (2, 9)
    >>> quantile_ranks(100, quantile=0.99, confidence=0.95)
    (97, None)
    """
    tail = (1 - confidence) / 2
    low: int | None = None
    high: int | None = None
    # P(X_(r) <= q) = P(Binomial(n, quantile) >= r); a bound is safe while its tail stays below.
    ranks = np.arange(n + 1)
    cdf = _binomial_cdf_all(n, quantile)
    below = ranks[cdf <= tail]
    if len(below):
        low = int(below[-1]) + 1
    above = ranks[:n][cdf[:n] >= 1 - tail]
    if len(above):
        high = int(above[0]) + 1
    return low, high


def _binomial_cdf_all(n: int, p: float) -> Floats:
    i = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_term = (
        log_factorial[n] - log_factorial[i] - log_factorial[n - i]
        + i * math.log(p) + (n - i) * math.log1p(-p)
    )  # fmt: skip
    cdf: Floats = np.minimum(1.0, np.cumsum(np.exp(log_term)))
    return cdf


def t_quantile(p: float, degrees: int) -> float:
    """Student's t quantile.

    Source:
        Hill, Algorithm 396: Student's t-quantiles, CACM 13(10), 1970: error below 1e-4 for the
        probabilities and degrees of freedom used here.

    >>> [round(t_quantile(0.975, degrees), 2) for degrees in (1, 2, 9)]
    [12.71, 4.3, 2.26]
    """
    if not 0 < p < 1 or degrees < 1:
        raise ValueError(f"p={p} must lie in (0, 1) and degrees={degrees} be at least 1")
    if p < 0.5:
        return -t_quantile(1 - p, degrees)
    two_sided = 2 * (1 - p)
    if degrees == 1:
        return 1 / math.tan(two_sided * math.pi / 2)
    if degrees == 2:
        return math.sqrt(2 / (two_sided * (2 - two_sided)) - 2)
    return _hill(two_sided, degrees)


def _hill(two_sided: float, n: int) -> float:
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * two_sided) ** (2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(two_sided / 2)
        y = x * x
        if n < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = (
            (1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1
        ) * (n + 1) / (n + 2) + 1 / y
    return math.sqrt(n * y)


def batch_means(values: Sequence[float] | Floats, *, confidence: float = 0.95) -> Interval | None:
    """The mean with an interval that allows for correlation between neighbours.

    *values* are in time order and cut into up to 20 batches of at least 8; the batches' means
    are nearly independent, so Student's t applies to them. None with fewer than 4 batches' worth.

    Source:
        Schmeiser, Batch size effects in the analysis of simulation output, Oper. Res. 30 (1982):
        more than 10 to 30 batches gain nothing.
    """
    data = np.asarray(values, dtype=np.float64)
    batches = min(20, len(data) // 8)
    if batches < 4 or not np.isfinite(data).all():
        return None
    size = len(data) // batches
    used = data[len(data) - batches * size :]  # the oldest few are dropped, not the newest
    means = used.reshape(batches, size).mean(axis=1)
    spread = float(means.std(ddof=1)) / math.sqrt(batches)
    half = t_quantile((1 + confidence) / 2, batches - 1) * spread
    value = float(data.mean())
    return Interval(value=value, low=value - half, high=value + half, confidence=confidence)


def quantile_interval(
    values: Sequence[float] | Floats, share: float, *, confidence: float = 0.95
) -> Interval | None:
    """A percentile with its exact binomial interval; an open side is minus or plus infinity.

    Infinite values (failures) are allowed. None for an empty sample.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        return None
    if share >= 1:
        top = float(ordered[-1])
        return Interval(value=top, low=top, high=math.inf, confidence=confidence)
    low, high = quantile_ranks(len(ordered), quantile=share, confidence=confidence)
    return Interval(
        value=percentile(ordered, share),
        low=-math.inf if low is None else float(ordered[low - 1]),
        high=math.inf if high is None else float(ordered[high - 1]),
        confidence=confidence,
    )


def mser5(values: Sequence[float] | Floats) -> int:
    """How many leading values to drop so that the rest is least disturbed by the start-up.

    The truncation point minimises the standard error of the remaining mean over batches of 5,
    and is sought in the first half only: a minimum beyond it means "not stationary yet".

    Source:
        White, Cobb & Spratt, A comparison of five steady-state truncation heuristics for
        simulation, WSC 2000 (MSER-5).
    """
    data = np.asarray(values, dtype=np.float64)
    batches = data[: len(data) // 5 * 5].reshape(-1, 5).mean(axis=1)
    count = len(batches)
    if count < 4:
        return 0
    # Sums over each tail batches[d:], for all d at once.
    tail = np.arange(count, 0, -1)
    total = np.cumsum(batches[::-1])[::-1]
    squares = np.cumsum((batches**2)[::-1])[::-1]
    error = (squares - total**2 / tail) / tail**2
    return int(np.argmin(error[: count // 2])) * 5


def batch_error(values: Sequence[float] | Floats) -> float | None:
    """Standard error of the mean of correlated *values* in time order; None with too few.

    From up to 20 batches of at least 8, as in `batch_means`; where the batches' means are still
    correlated with their neighbours it is widened as for a first-order autoregressive process,
    and for the few batches by the spread of Student's t. Few means tell their correlation and
    their spread too small, since they are held against their own mean: both are put right.
    Meant for weighing one level against another rather than for an interval of its own;
    bench/find/errors.py holds it against the truth.

    Source:
        Law & Kelton, Simulation modeling and analysis, section 9.5 (batch means and the
        autoregressive method); Marriott & Pope, Bias in the estimation of autocorrelations,
        Biometrika 41 (1954).
    """
    data = np.asarray(values, dtype=np.float64)
    batches = min(20, len(data) // 8)
    if batches < 4 or not np.isfinite(data).all():
        return None
    size = len(data) // batches
    means = data[len(data) - batches * size :].reshape(batches, size).mean(axis=1)
    centred = means - means.mean()
    squares = float((centred**2).sum())
    if squares == 0:
        return 0.0
    rho = float((centred[1:] * centred[:-1]).sum()) / squares
    rho = min(_RHO_MOST, max(0.0, (batches * rho + 1) / max(1, batches - 4)))
    alike = (1 + rho) / (1 - rho)  # so many means tell as much as one independent one
    variance = squares / (batches - alike) if alike < batches / 2 else 2 * squares / batches
    few = (batches - 1) / (batches - 3)
    return math.sqrt(variance / batches * alike * few)

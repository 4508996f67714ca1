"""What one level tells of each limit: how far from it, and how surely.

A limit's *margin* is 0 at the limit and grows with the load: log(mean / limit) for a mean and
log(percentile / limit) for a percentile; for shares (the error rate) the normal score of the share
of bad requests less that of the share allowed. All are close to straight lines over log(load) near
the edge, whatever the limit is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec
import numpy as np

from servecap import stats, steady, verdict
from servecap.record import Record, once_each
from servecap.run import Run
from servecap.scenario import Scenario
from servecap.slo import Limit

ERROR_RATE = "error_rate"
_NORMAL = NormalDist()
_GRID = np.linspace(-6.0, 6.0, 1201)
_LEAST, _LEAST_ERROR = 1.0, 0.25  # margin of a level that was given up; error as a share of it
_TELLING = 0.1  # of the requests: the tail that tells of values beyond the largest
_SURE = 0.3  # standard error of a margin that is known by its sign only


class Margin(msgspec.Struct, frozen=True, kw_only=True):
    """One limit at one level: its margin (> 0: broken), the standard error, and what it is of."""

    limit: str
    value: float
    error: float
    requests: int
    broken: int | None = None  # requests over the limit; None for means
    allowed: float | None = None  # share of requests that may be over it; None for means
    worth: float | None = None  # independent requests that tell as much; None for means
    # Of values: standard deviation over mean; of a percentile: its error, had it been one request.
    spread: float | None = None  # None for a share of requests
    warm_up: float = 0.0  # how far it would be off with what was left out as that; in the error

    @property
    def kept(self) -> bool:
        """Whether the figure itself keeps the limit, however surely."""
        if self.broken is None:
            return self.value <= 0
        return self.broken <= (self.allowed or 0.0) * self.requests + 1e-9


def at_least(margin: Margin) -> Margin:
    """What a level tells that was given up while it still got worse: the margin or more."""
    value = max(margin.value, _LEAST)
    return msgspec.structs.replace(
        margin, value=value, error=max(margin.error, _LEAST_ERROR * value)
    )


def worth_at_most(margin: Margin, most: float, *, spread: float) -> Margin:
    """The margin where its requests tell no more than *most* independent ones.

    Of a mean they scatter by *spread* of it at least.
    """
    if margin.allowed is not None and margin.worth is not None:
        if margin.worth <= most:
            return margin
        if margin.spread is None:
            return scored(margin, worth=most)
        error = margin.error * math.sqrt(margin.worth / most)
        return msgspec.structs.replace(margin, error=error, worth=most)
    error = max(spread, margin.spread or 0.0) / math.sqrt(most)
    return msgspec.structs.replace(margin, error=max(margin.error, error))


def proven(margins: Sequence[Margin], *, broken: bool, risk: float) -> bool:
    """Whether these margins of one limit together prove that it is broken, or that it is kept.

    Shares are added up and held against the exact binomial distribution, means are averaged by
    their precision.
    """
    first = margins[0]
    if first.allowed is None or first.worth is None:
        weights = [1 / m.error**2 for m in margins]
        score = sum(w * m.value for w, m in zip(weights, margins, strict=True))
        score /= math.sqrt(sum(weights))
        return (score if broken else -score) > -_NORMAL.inv_cdf(risk)
    worth = sum(m.worth or 0.0 for m in margins)
    over = sum((m.broken or 0) / m.requests * (m.worth or 0.0) for m in margins)
    if broken:
        kept = stats.binomial_cdf(math.ceil(over) - 1, math.ceil(worth), first.allowed)
        return 1 - kept <= risk
    return stats.binomial_cdf(math.ceil(over), math.floor(worth), first.allowed) <= risk


def margins(run: Run) -> tuple[Margin, ...]:
    """The margin of every limit of the run's SLO that its window tells anything of.

    Whether what was left out as warm-up was one, or a server that changed, is not known: by how
    much the margins would differ with it is part of their error.
    """
    end_s = run.header.load_end_s
    records = sorted(run.records, key=lambda r: r.end_s)
    if end_s is None:
        end_s = records[-1].end_s if records else 0.0
    window = steady.window_of(records, run.scenario, end_s)
    inside = steady.counted(records, window)
    found = of_records(run.scenario, inside)
    before = steady.warm_up(records, run.scenario, window)
    if not before:
        return found
    whole = {m.limit: m.value for m in of_records(run.scenario, [*before, *inside])}
    return tuple(_widened(m, whole.get(m.limit, m.value) - m.value) for m in found)


def _widened(margin: Margin, by: float) -> Margin:
    return msgspec.structs.replace(margin, error=math.hypot(margin.error, by), warm_up=abs(by))


def least_requests(limits: Sequence[Limit]) -> int:
    """Requests without which a level cannot tell on which side of the limits it lies.

    For a percentile, as many as prove it when none of them is over the limit.
    """
    tails = [
        stats.requests_needed(0, quantile=x.quantile, confidence=verdict.CONFIDENCE)
        for x in limits
        if x.quantile is not None and x.quantile < 1
    ]
    return max([60, *tails])


def of_records(scenario: Scenario, inside: Sequence[Record]) -> tuple[Margin, ...]:
    """The margins of the records of a window, in the order in which they ended."""
    found = []
    for limit in scenario.slo.limits:
        value = verdict.value_of(limit.metric, server=scenario.timings == "server")
        told = inside if limit.quantile is None else once_each(inside)
        seen = [(v if r.ok else math.inf) for r in told if (v := value(r)) is not None or not r.ok]
        margin = of_values(limit, [math.inf if v is None else v for v in seen])
        if margin is not None:
            found.append(margin)
    allowed = scenario.slo.error_share_max
    failed = [not r.ok for r in once_each(inside)]
    if inside and allowed < 1:
        found.append(of_share(ERROR_RATE, failed, allowed))
    return tuple(found)


def of_values(limit: Limit, values: Sequence[float]) -> Margin | None:
    """The margin of *limit* from values in time order (failures infinite); None if too few."""
    if limit.quantile is not None:
        return _of_percentile(limit, limit.quantile, values) if values else None
    good = [v for v in values if math.isfinite(v)]
    spread = stats.batch_error(good)
    if spread is None or not sum(good) > 0:
        return None
    mean = math.fsum(good) / len(good)
    return Margin(
        limit=str(limit),
        value=math.log(mean / limit.at_most_s),
        error=max(1e-4, spread / mean),
        requests=len(good),
        spread=float(np.std(good)) / mean,
    )


def _of_percentile(limit: Limit, quantile: float, values: Sequence[float]) -> Margin:
    """The margin of a percentile: where in the sample it lies, as the exact binomial would say.

    The share of requests above the true percentile is known, so its place among the ordered values
    is Beta distributed; a standard deviation to both sides of that gives its error. That says how
    far off the limit is where no request is over it, too. With too many failures for that, only
    the share over the limit is told.
    """
    over = [v > limit.at_most_s for v in values]
    share = of_share(str(limit), over, 1 - quantile)
    ordered = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    if share.worth is None or not ordered[-1] > 0:
        return share
    telling = ordered[_place(quantile, len(ordered))]
    worth = len(ordered) / _design_effect([v > telling for v in values])
    mean, error = _normal_score(worth * (1 - quantile), worth * quantile)
    low, middle, high = (_log_at(ordered, _NORMAL.cdf(mean + k * error)) for k in (1, 0, -1))
    if not math.isfinite(high):
        return share
    spread = max(1e-4, (high - low) / 2)
    return msgspec.structs.replace(
        share,
        value=middle - math.log(limit.at_most_s),
        error=spread,
        worth=worth,
        spread=spread * math.sqrt(worth),
    )


def _place(quantile: float, count: int) -> int:
    """Of the value, counted from the largest, by which correlation is judged."""
    return min(count - 1, math.ceil(max(1 - quantile, _TELLING) * count))


def _log_at(descending: stats.Floats, share: float) -> float:
    """Logarithm of the value that this share of requests is above; beyond the largest by Hill.

    Source:
        Hill, A simple general approach to inference about the tail of a distribution, Annals of
        Statistics 3 (1975); Weissman, J. Am. Stat. Assoc. 73 (1978).
    """
    count = len(descending)
    at = share * count - 0.5
    if at >= 0:
        return float(np.log(np.interp(at, np.arange(count), descending)))
    if not math.isfinite(descending[0]):
        return math.inf
    tail = np.log(descending[: max(2, math.ceil(_TELLING * count))])
    return float(tail[0] + (tail.mean() - tail[-1]) * math.log(0.5 / (at + 0.5)))


def of_share(name: str, over: Sequence[bool], allowed: float) -> Margin:
    """The margin of a share of bad requests (in time order) against the share allowed.

    The share's distribution is Beta with Jeffreys' prior, whose intervals agree with the exact
    binomial ones to a fraction of a request, on the number of *independent* requests that these
    correlated ones are worth. Where nothing may be over at all, only the sign is told.

    Source:
        Brown, Cai & DasGupta, Interval estimation for a binomial proportion, Statistical
        Science 16 (2001).
    """
    bad, count = sum(over), len(over)
    if allowed <= 0:
        sign = 1.0 if bad else -1.0
        return Margin(limit=name, value=sign, error=_SURE, requests=count, broken=bad)
    bare = Margin(limit=name, value=0.0, error=_SURE, requests=count, broken=bad, allowed=allowed)
    return scored(bare, worth=count / _design_effect(over))


def scored(margin: Margin, *, worth: float) -> Margin:
    """The margin of a share of bad requests, where they tell as much as *worth* independent ones.

    Raises:
        ValueError: it is a mean's.
    """
    if margin.broken is None or margin.allowed is None:
        raise ValueError(f"{margin.limit}: no share of requests")
    bad = margin.broken / margin.requests * worth
    mean, error = _normal_score(bad, worth - bad)
    value = mean - _NORMAL.inv_cdf(margin.allowed)
    return msgspec.structs.replace(margin, value=value, error=error, worth=worth)


def _design_effect(over: Sequence[bool]) -> float:
    """How many of these requests tell as much as one independent one; at least 1."""
    data = np.asarray(over, dtype=np.float64)
    share = float(data.mean())
    spread = stats.batch_error(data)
    if spread is None or share in (0.0, 1.0):
        return 1.0
    return max(1.0, spread**2 / (share * (1 - share) / len(data)))


def _normal_score(bad: float, good: float) -> tuple[float, float]:
    """Mean and standard deviation of the normal score of a share, given so many of both kinds.

    With Jeffreys' prior, a Beta distribution; but where all are of one kind every score beyond
    what that excludes is as likely: that nobody waited too long says nothing of how far off it is.
    """
    below, above = _log_tails()
    log_density = bad * below + good * above
    if bad > 0 and good > 0:
        log_density = log_density - (below + above + _GRID**2) / 2
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    mean = float((weight * _GRID).sum())
    return mean, math.sqrt(float((weight * (_GRID - mean) ** 2).sum()))


@functools.cache
def _log_tails() -> tuple[stats.Floats, stats.Floats]:
    """Logarithms of the standard normal's shares below and above each point of the grid."""
    share = np.array([_NORMAL.cdf(x) for x in _GRID])
    log: stats.Floats = np.log(np.maximum(share, 1e-300))
    return log, log[::-1]

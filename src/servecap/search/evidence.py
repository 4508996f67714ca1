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
from servecap.columns import Columns, present
from servecap.run import Run
from servecap.scenario import Scenario
from servecap.slo import Limit

ERROR_RATE = "error_rate"
_NORMAL = NormalDist()
_GRID = np.linspace(-6.0, 6.0, 1201)
_LEAST, _LEAST_ERROR = 1.0, 0.25  # margin of a level that was given up; error as a share of it
_FAR = 1.0  # a margin beyond this tells on which side it is, and its error matters little
_BATCHES = 20.0
_TELLING = 0.1  # of the requests: the tail that tells of values beyond the largest
_SURE = 0.3  # standard error of a margin that is known by its sign only


class Mean(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="mean"):
    """A mean's margin at one level (> 0: broken)."""

    limit: str
    value: float
    error: float  # standard error of the value
    requests: int
    spread: float = 0.0  # of the values: standard deviation over mean
    warm_up: float = 0.0  # how far it would be off with what was left out as that; in the error

    @property
    def kept(self) -> bool:
        """Whether the figure itself keeps the limit, however surely."""
        return self.value <= 0

    def scatter(self) -> tuple[float, float]:
        """The variance of one request, and its weight: none far off, in another regime."""
        return noise(self), min(_BATCHES, self.requests / 8) if near(self) else 0.0

    def scattering(self, scatter: float) -> Mean:
        """The logarithm of a mean comes out half its variance too low; that is put right here."""
        value = self.value + scatter / self.requests / 2
        return msgspec.structs.replace(self, value=value, error=_error(self, scatter))

    def worth_at_most(self, most: float) -> Mean:
        """With the error of no more than so many independent requests."""
        error = max(self.error, self.spread / math.sqrt(most))
        return msgspec.structs.replace(self, error=error)


class Share(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="share"):
    """The margin of a share of bad requests at one level; only its sign where none may be bad."""

    limit: str
    value: float = 0.0
    error: float = _SURE
    requests: int
    over: int  # requests that are bad: over the limit
    allowed: float  # share of requests that may be
    worth: float  # independent requests that tell as much
    warm_up: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether no more are bad than are allowed."""
        return self.over <= self.allowed * self.requests + 1e-9

    def scatter(self) -> tuple[float, float]:
        """How many requests tell as much as one, and its weight: those of the rarer kind."""
        return self.requests / self.worth, min(_BATCHES, self.over, self.requests - self.over)

    def scattering(self, scatter: float) -> Share:
        """Where so many of its requests tell as much as one."""
        return self.scored(self.requests / max(1.0, scatter))

    def worth_at_most(self, most: float) -> Share:
        """As no more than so many independent requests would tell it."""
        return self if self.worth <= most else self.scored(most)

    def scored(self, worth: float) -> Share:
        """The margin where its requests tell as much as *worth* independent ones."""
        if self.allowed <= 0:
            return msgspec.structs.replace(self, value=1.0 if self.over else -1.0, worth=worth)
        bad = self.over / self.requests * worth
        mean, error = _normal_score(bad, worth - bad)
        value = mean - _NORMAL.inv_cdf(self.allowed)
        return msgspec.structs.replace(self, value=value, error=error, worth=worth)


class Percentile(Share, frozen=True, kw_only=True, tag_field="kind", tag="percentile"):
    """The margin of a share by the value that it is above: of a percentile against its limit."""

    def scatter(self) -> tuple[float, float]:
        """The variance of the value, were it of one request, and its weight: the tail's."""
        tail = min(self.allowed, 1 - self.allowed) * self.requests
        return noise(self), min(_BATCHES, tail) if near(self) else 0.0

    def scattering(self, scatter: float) -> Percentile:
        """Where one request's value has that variance."""
        return msgspec.structs.replace(self, error=_error(self, scatter))

    def scored(self, worth: float) -> Percentile:
        """The same value, with the error that so many independent requests leave."""
        error = self.error * math.sqrt(self.worth / worth)
        return msgspec.structs.replace(self, error=error, worth=worth)


Margin = Mean | Share | Percentile


def silent(margin: Margin) -> bool:
    """Whether all it tells is that no request was bad, and not how far from that they were."""
    return type(margin) is Share and margin.over == 0


def near(margin: Margin) -> bool:
    """Whether it is near enough to its limit to be of one regime with others that are."""
    return abs(margin.value) < _FAR


def noise(margin: Margin) -> float:
    """The variance of one request, were there no doubt about the warm-up."""
    return (margin.error**2 - margin.warm_up**2) * margin.requests


def _error(margin: Margin, scatter: float) -> float:
    return math.hypot(math.sqrt(scatter / margin.requests), margin.warm_up)


def at_least(margin: Margin) -> Margin:
    """What a level tells that was given up while it still got worse: the margin or more."""
    value = max(margin.value, _LEAST)
    return msgspec.structs.replace(
        margin, value=value, error=max(margin.error, _LEAST_ERROR * value)
    )


def proven(margins: Sequence[Margin], *, broken: bool, risk: float) -> bool:
    """Whether these margins of one limit together prove that it is broken, or that it is kept.

    Shares are added up and held against the exact binomial distribution, means are averaged by
    their precision, and so are signs.
    """
    counted = [m for m in margins if isinstance(m, Share) and m.allowed > 0]
    if not counted:
        weights = [1 / m.error**2 for m in margins]
        score = sum(w * m.value for w, m in zip(weights, margins, strict=True))
        score /= math.sqrt(sum(weights))
        return (score if broken else -score) > -_NORMAL.inv_cdf(risk)
    worth, allowed = sum(m.worth for m in counted), counted[0].allowed
    over = sum(m.over / m.requests * m.worth for m in counted)
    if broken:
        kept = stats.binomial_cdf(math.ceil(over) - 1, math.ceil(worth), allowed)
        return 1 - kept <= risk
    return stats.binomial_cdf(math.ceil(over), math.floor(worth), allowed) <= risk


def margins(run: Run) -> tuple[Margin, ...]:
    """The margin of every limit of the run's SLO that its window tells anything of.

    Whether what was left out as warm-up was one, or a server that changed, is not known: by how
    much the margins would differ with it is part of their error.
    """
    end_s = run.header.load_end_s
    told = run.columns
    if end_s is None:
        end_s = told.records[-1].end_s if len(told) else 0.0
    window = steady.window_of(told, run.scenario, end_s)
    inside = steady.counted(told, window)
    found = of_records(run.scenario, inside)
    before = steady.warm_up(told, run.scenario, window)
    if not len(before):
        return found
    both = Columns([*before.records, *inside.records])
    whole = {m.limit: m.value for m in of_records(run.scenario, both)}
    return tuple(_widened(m, whole.get(m.limit, m.value) - m.value) for m in found)


def _widened(margin: Margin, by: float) -> Margin:
    return msgspec.structs.replace(margin, error=math.hypot(margin.error, by), warm_up=abs(by))


def least_requests(limits: Sequence[Limit]) -> int:
    """Requests without which a level cannot tell on which side of the limits it lies."""
    return max([60, *proving(limits)])


def proving(limits: Sequence[Limit]) -> list[int]:
    """The requests that prove each percentile limit when none of them is over it."""
    return [
        stats.requests_needed(0, quantile=x.quantile, confidence=verdict.CONFIDENCE)
        for x in limits
        if x.quantile is not None and x.quantile < 1
    ]


def of_records(scenario: Scenario, inside: Columns) -> tuple[Margin, ...]:
    """The margins of the records of a window, in the order in which they ended."""
    found = []
    for limit in scenario.slo.limits:
        told = inside if limit.quantile is None else inside.once_each()
        found_s = verdict.figures(limit.metric, told, server=scenario.timings == "server")
        margin = of_values(limit, present(np.where(told.ok, found_s, math.inf)).tolist())
        if margin is not None:
            found.append(margin)
    allowed = scenario.slo.error_share_max
    failed = (~inside.once_each().ok).tolist()
    if len(inside) and allowed < 1:
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
    return Mean(
        limit=str(limit),
        value=math.log(mean / limit.at_most_s),
        error=max(1e-4, spread / mean),
        requests=len(good),
        spread=float(np.std(good)) / mean,
    )


def _of_percentile(limit: Limit, quantile: float, values: Sequence[float]) -> Margin:
    """The margin of a percentile: where in the sample it lies, as the exact binomial would say.

    The share of requests above the true percentile is known, so its place among the ordered values
    is Beta distributed; a standard deviation to both sides of that gives its error. The value is
    the sample's own: Jeffreys' prior, on the few requests that correlated ones are worth, would
    move it down. That says how far off the limit is where no request is over it, too. With too
    many failures for that, only the share over the limit is told.
    """
    over = [v > limit.at_most_s for v in values]
    share = of_share(str(limit), over, 1 - quantile)
    ordered = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    if quantile >= 1 or not ordered[-1] > 0:
        return share
    telling = ordered[_place(quantile, len(ordered))]
    worth = len(ordered) / _design_effect([v > telling for v in values])
    mean, error = _normal_score(worth * (1 - quantile), worth * quantile)
    low, high = (_log_at(ordered, _NORMAL.cdf(mean + k * error)) for k in (1, -1))
    if not math.isfinite(high):
        return share
    return Percentile(
        limit=str(limit),
        value=_log_at(ordered, 1 - quantile) - math.log(limit.at_most_s),
        error=max(1e-4, (high - low) / 2),
        requests=len(values),
        over=sum(over),
        allowed=1 - quantile,
        worth=worth,
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


def of_share(name: str, over: Sequence[bool], allowed: float) -> Share:
    """The margin of a share of bad requests (in time order) against the share allowed.

    The share's distribution is Beta with Jeffreys' prior, whose intervals agree with the exact
    binomial ones to a fraction of a request, on the number of *independent* requests that these
    correlated ones are worth. Where nothing may be over at all, only the sign is told.

    Source:
        Brown, Cai & DasGupta, Interval estimation for a binomial proportion, Statistical
        Science 16 (2001).
    """
    worth = len(over) / _design_effect(over)
    bare = Share(limit=name, requests=len(over), over=sum(over), allowed=allowed, worth=worth)
    return bare.scored(worth)


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

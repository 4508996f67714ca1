"""Two runs, or two capacities, against each other: what changed by more than noise.

Every change comes with an interval. All rows of a comparison together err with a chance of
1 - confidence (Bonferroni), so that a long table does not cry wolf. The intervals know the noise
within each run; what differs from one day to the next they cannot know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np

from servecap import slo, stats, steady, verdict
from servecap.cell import Capacity, RateCapacity
from servecap.columns import Columns, present
from servecap.differing import differences
from servecap.errors import UsageError
from servecap.metrics import Summary, Window
from servecap.run import Run

CONFIDENCE = 0.95
RATES = ("qps", "output_tps", "goodput_rps")
ERRORS = "error_rate"
USERS = "users"
RATE = "rate_rps"  # the capacity in requests/s
METRICS = (
    *(f"{metric}.{stat}" for metric in ("ttft", "tpot") for stat in ("mean", "p50", "p95", "p99")),
    "e2e.mean",
    "e2e.p95",
    *RATES,
    ERRORS,
)
_LATENCIES = tuple(name for name in slo.METRICS if name != ERRORS)
_BINS = 160  # slices of the window that a rate is counted in: 20 batches of 8, see `batch_error`
_FEWEST = 32  # values that `batch_error` wants

Outcome = Literal["better", "worse", "no difference shown", "unknown"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure before and after. Seconds, per second, users, or a share in [0, 1].

    `change` is relative (0.05: 5% more), but the difference of two shares for `error_rate`.
    [low, high] holds the true change; an end that nothing is known of is infinite.
    """

    metric: str
    outcome: Outcome
    before: float | None = None
    after: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All changes from one run (or search) to another."""

    before: str  # what they are called: paths
    after: str
    confidence: float  # of all rows together
    changes: tuple[Change, ...]
    differences: tuple[str, ...] = ()  # in what was asked or tested: a cause besides the server
    invalid: tuple[str, ...] = ()  # why one of the two cannot be believed


def lower_is_better(metric: str) -> bool:
    """True of latencies and the error rate; false of rates and users."""
    return metric not in (*RATES, USERS, RATE)


def parse_metrics(text: str) -> tuple[str, ...]:
    """The figures to compare, from names joined by commas.

    Raises:
        UsageError: a name is unknown.

    >>> parse_metrics("ttft.p95, qps")
    ('ttft.p95', 'qps')
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        known(name)
    return names or METRICS


def known(name: str) -> str:
    """*name*, if it is a figure that can be compared.

    Raises:
        UsageError: it is none.
    """
    metric, _, stat = name.partition(".")
    if name in (*RATES, ERRORS, USERS) or (metric in _LATENCIES and stat in slo.STATISTICS[:-1]):
        return name
    raise UsageError(
        f"{name!r} cannot be compared: it is none of {', '.join((*RATES, ERRORS, USERS))} and no "
        f"{'|'.join(_LATENCIES)} with .{'|.'.join(slo.STATISTICS[:-1])}"
    )


# Two runs


def compare_runs(
    before: tuple[Run, Summary],
    after: tuple[Run, Summary],
    *,
    metrics: Sequence[str] = METRICS,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """What changed between two runs, over the measured window of each.

    Percentiles count a failed request as infinitely slow, as the limits of an SLO do; means and
    rates are over successes. Rows of which neither run knows anything are left out.
    """
    by_server = all(run.scenario.timings == "server" for run, _ in (before, after))
    alone = 1 - (1 - confidence) / max(1, len(metrics))
    first, second = _sample(*before, by_server), _sample(*after, by_server)
    rows = [_change(metric, first, second, alone) for metric in metrics if metric != USERS]
    return Comparison(
        before=_name(before[0], "before"),
        after=_name(after[0], "after"),
        confidence=confidence,
        changes=tuple(row for row in rows if not (row.before is None and row.after is None)),
        differences=differences(before[0], after[0]),
        invalid=tuple(
            f"{_name(run, which)} is INVALID: {reason}"
            for which, (run, summary) in (("before", before), ("after", after))
            for reason in summary.invalid_reasons
        ),
    )


def _name(run: Run, otherwise: str) -> str:
    return run.path or otherwise


class _Sample(msgspec.Struct, frozen=True):
    """The requests of a run that count, in the order in which they ended."""

    run: Run
    told: Columns
    window: Window
    by_server: bool


def _sample(run: Run, summary: Summary, by_server: bool) -> _Sample:
    return _Sample(run, steady.counted(run.columns, summary.window), summary.window, by_server)


def _change(metric: str, before: _Sample, after: _Sample, confidence: float) -> Change:
    estimate = _estimate_share if metric == ERRORS else _estimate
    first, second = estimate(metric, before, confidence), estimate(metric, after, confidence)
    a = first.value if first else None
    b = second.value if second else None
    if first is None or second is None:
        return Change(metric=metric, outcome="unknown", before=a, after=b, note="not in both")
    found = _mover(first, second) if metric == ERRORS else _ratio(first, second)
    if found is None:
        note = "too many requests failed"
        return Change(metric=metric, outcome="unknown", before=a, after=b, note=note)
    few = math.isinf(found.low) or math.isinf(found.high)
    return Change(
        metric=metric,
        outcome=_outcome(metric, found.low, found.high),
        before=a,
        after=b,
        change=found.value,
        low=found.low,
        high=found.high,
        note="too few requests to bound it" if few else "",
    )


def _outcome(metric: str, low: float, high: float) -> Outcome:
    if low <= 0 <= high:
        return "no difference shown"
    return "worse" if (low > 0) == lower_is_better(metric) else "better"


def _estimate(metric: str, sample: _Sample, confidence: float) -> stats.Interval | None:
    """The figure with its interval; an end is infinite (or 0) where there are too few requests."""
    if metric in RATES:
        return _rate(metric, sample, confidence)
    name, _, stat = metric.partition(".")
    told = sample.told if stat == "mean" else sample.told.once_each()
    found = verdict.figures(name, told, server=sample.by_server)
    values = present(np.where(told.ok, found, math.inf))
    if not np.isfinite(values).any():
        return None
    if stat == "mean":
        return _mean(values[np.isfinite(values)], confidence)
    return _quantile(values, int(stat[1:]) / 100, confidence)


def _mean(values: stats.Floats, confidence: float) -> stats.Interval:
    """The mean with an interval that is symmetric in its logarithm (delta method)."""
    value, error = float(values.mean()), stats.batch_error(values)
    if error is None:
        return stats.Interval(value=value, low=0.0, high=math.inf, confidence=confidence)
    batches = min(20, len(values) // 8)
    half = stats.t_quantile((1 + confidence) / 2, batches - 1) * error / value if value > 0 else 0.0
    return stats.Interval(
        value=value,
        low=value * math.exp(-half),
        high=value * math.exp(half),
        confidence=confidence,
    )


def _quantile(values: stats.Floats, share: float, confidence: float) -> stats.Interval:
    """The percentile with the exact binomial interval of so many independent values as there are.

    Neighbours in time resemble each other. How much is read off the batches of the indicator
    "at or below the percentile": n_effective = p (1 - p) / error^2, never more than n.
    """
    ordered = np.sort(values)
    value = stats.percentile(ordered, share)
    error = stats.batch_error((values <= value).astype(np.float64))
    count = len(values)
    if error:
        count = max(1, min(count, int(share * (1 - share) / error**2)))
    low, high = stats.quantile_ranks(count, quantile=share, confidence=confidence)
    return stats.Interval(
        value=value,
        low=0.0 if low is None else stats.percentile(ordered, low / count),
        high=math.inf if high is None else stats.percentile(ordered, high / count),
        confidence=confidence,
    )


def _rate(metric: str, sample: _Sample, confidence: float) -> stats.Interval | None:
    """A rate with an interval from what happened in equal slices of the window."""
    span_s = sample.window.end_s - sample.window.start_s
    good = sample.told.at(sample.told.ok)
    if metric == "goodput_rps":
        slo = sample.run.scenario.slo
        good = good.at(verdict.kept(slo, good, server=sample.by_server))
    if span_s <= 0:
        return None
    tokens = np.nan_to_num(good.output_tokens)
    weights = tokens if metric == "output_tps" else np.ones(len(good))
    total = float(weights.sum())  # of whole numbers: exact
    if len(good) < _FEWEST:
        value = total / span_s
        return stats.Interval(value=value, low=0.0, high=math.inf, confidence=confidence)
    edges = (sample.window.start_s, sample.window.end_s)
    counts, _ = np.histogram(good.end_s, bins=_BINS, range=edges, weights=weights)
    return _mean(counts * (_BINS / span_s), confidence)


def _estimate_share(_: str, sample: _Sample, confidence: float) -> stats.Interval | None:
    """The share of failures with Wilson's score interval, for failures that come in bursts too."""
    failed = (~sample.told.once_each().ok).astype(np.float64)
    if not len(failed):
        return None
    p, count = float(failed.mean()), float(len(failed))
    error = stats.batch_error(failed)
    if error:
        count = max(1.0, min(count, p * (1 - p) / error**2))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    return stats.Interval(
        value=p,
        low=max(0.0, middle - half),
        high=min(1.0, middle + half),
        confidence=confidence,
    )


def _ratio(before: stats.Interval, after: stats.Interval) -> stats.Interval | None:
    """after / before - 1; None where one of them is 0 or infinite."""
    if not all(0 < x.value < math.inf for x in (before, after)):
        return None
    found = _mover(_logarithm(before), _logarithm(after))
    return stats.Interval(
        value=math.expm1(found.value),
        low=math.expm1(found.low),
        high=math.expm1(found.high),
        confidence=found.confidence,
    )


def _logarithm(x: stats.Interval) -> stats.Interval:
    return stats.Interval(
        value=math.log(x.value),
        low=math.log(x.low) if x.low > 0 else -math.inf,
        high=math.log(x.high),
        confidence=x.confidence,
    )


def _mover(before: stats.Interval, after: stats.Interval) -> stats.Interval:
    """after - before, with an interval recovered from the two intervals.

    Source:
        Newcombe, Interval estimation for the difference between independent proportions,
        Stat. Med. 17 (1998), method 10; Zou & Donner, Construction of confidence limits about
        effect measures, Stat. Med. 27 (2008), for other figures.
    """
    gap = after.value - before.value
    return stats.Interval(
        value=gap,
        low=gap - math.hypot(after.value - after.low, before.high - before.value),
        high=gap + math.hypot(after.high - after.value, before.value - before.low),
        confidence=before.confidence,
    )


# Two capacities


def compare_capacities(
    before: Capacity | RateCapacity,
    after: Capacity | RateCapacity,
    *,
    names: tuple[str, str] = ("before", "after"),
    differing: tuple[str, ...] = (),
) -> Comparison:
    """What changed between two capacities; shown only where their intervals do not overlap.

    Raises:
        UsageError: one is of users and the other of requests/s.
    """
    if type(before) is not type(after):
        raise UsageError("users and requests/s cannot be compared: give two searches of one kind")
    low, high = _more(after.named, before.high), _more(after.high, before.named)
    change = _more(after.named, before.named)
    metric = USERS if isinstance(before, Capacity) else RATE
    row = Change(
        metric=metric,
        outcome=_outcome(metric, low, high),
        before=before.named,
        after=after.named,
        change=None if math.isinf(change) else change,
        low=low,
        high=high,
    )
    told = [c.confidence for c in (before, after) if c.confidence is not None]
    return Comparison(
        before=names[0],
        after=names[1],
        confidence=min(told, default=CONFIDENCE),
        changes=(row,),
        differences=differing,
    )


def _more(after: float | None, before: float | None) -> float:
    """after / before - 1, where None is a number without an upper end."""
    if before is None:
        return -1.0
    if after is None:
        return math.inf
    if before == 0:
        return math.inf if after else 0.0
    return after / before - 1

"""Limits held against intervals: PASS, FAIL, or UNSURE with what certainty would cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from servecap import stats
from servecap.columns import Bools, Columns
from servecap.metrics import LimitCheck, Verdict
from servecap.record import Record
from servecap.scenario import Scenario
from servecap.slo import Limit, Slo

CONFIDENCE = 0.95
_MOST_NEEDED = 100_000  # a larger wish is no advice

Value = Callable[[Record], float | None]


def value_of(metric: str, *, server: bool) -> Value:
    """How to read a metric off a record, by the client's clock or the server's own timings."""
    if server:
        return _SERVER[metric]
    return _CLIENT[metric]


def _server_ttft(r: Record) -> float | None:
    return r.server.ttft_s if r.server else None


def _longest_gap(r: Record) -> float | None:
    """A limit on gaps is about the worst pause a reader of that answer sat through."""
    gaps = r.gaps_s()
    return max(gaps) if gaps else None


_CLIENT: dict[str, Value] = {
    "ttft": lambda r: r.ttft_s,
    "tpot": lambda r: r.tpot_s,
    "e2e": lambda r: r.e2e_s,
    "gap": _longest_gap,
    "queue": lambda r: r.server.queue_s if r.server else None,
}
_SERVER: dict[str, Value] = {
    "ttft": _server_ttft,
    "tpot": lambda r: r.server.tpot_s if r.server else None,
    "e2e": lambda r: r.server.inference_s if r.server else None,
    "gap": lambda _: None,
    "queue": lambda r: r.server.queue_s if r.server else None,
}


# Those of `_CLIENT` that are columns, too.
_COLUMNS = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s", "gap": "gap_max_s"}


def figures(metric: str, told: Columns, *, server: bool) -> stats.Floats:
    """The metric of every record, as `value_of` reads it; NaN where it has none."""
    if not server and metric in _COLUMNS:
        column: stats.Floats = getattr(told, _COLUMNS[metric])
        return column
    return np.array(list(map(value_of(metric, server=server), told.records)), dtype=np.float64)


def kept(slo: Slo, told: Columns, *, server: bool) -> Bools:
    """Whether each record kept every limit's value, as far as it is known."""
    found = np.ones(len(told), dtype=np.bool_)
    for limit in slo.limits:
        found &= ~(figures(limit.metric, told, server=server) > limit.at_most_s)
    return found


def check_all(scenario: Scenario, told: Columns) -> tuple[LimitCheck, ...]:
    """Every limit of the scenario's SLO held against the records, by the clock it asks for."""
    by_server = scenario.timings == "server"
    return tuple(check(limit, told, server=by_server) for limit in scenario.slo.limits)


def check(
    limit: Limit,
    told: Columns,
    *,
    server: bool = False,
    confidence: float = CONFIDENCE,
) -> LimitCheck:
    """The limit held against the records (in the order in which they ended).

    Means are over successful requests and get a batch-means interval; percentiles count a
    failure as infinitely slow and get the exact binomial interval. A success after a retry is in
    the mean, as late as its user had it; where failures count, its request has failed already.
    """
    values = figures(limit.metric, told, server=server)
    has_it = told.ok & ~np.isnan(values)
    good, once = values[has_it], values[has_it & ~told.made_good]
    failed = len(told) - int(told.ok.sum())
    if not len(good):
        why = "no successful request has this figure"
        if limit.metric in ("ttft", "tpot", "gap") and told.ok.any():
            why += " (a stream, or the server's own timings, is needed)"
        return LimitCheck(limit=limit, verdict=Verdict.UNSURE, reason=why)
    share = int((once <= limit.at_most_s).sum()) / max(1, len(once) + failed)
    if limit.quantile is None:
        return _check_mean(limit, good, share, confidence)
    with_failures = np.concatenate([once, np.full(failed, math.inf)])
    return _check_quantile(limit, with_failures, share, confidence)


def _check_mean(limit: Limit, values: stats.Floats, share: float, confidence: float) -> LimitCheck:
    interval = stats.batch_means(values, confidence=confidence)
    if interval is None:
        return LimitCheck(
            limit=limit,
            verdict=Verdict.UNSURE,
            value_s=float(np.mean(values)),
            attainment_share=share,
            requests_needed=max(0, 32 - len(values)),
            reason="too few requests for an interval",
        )
    verdict = _against(limit.at_most_s, interval.low, interval.high)
    needed = None
    if verdict is Verdict.UNSURE:
        # The half width shrinks with the root of the count.
        half, gap = interval.high - interval.value, abs(limit.at_most_s - interval.value)
        wanted = len(values) * (half / gap) ** 2 if gap > 0 else math.inf
        needed = _more(wanted, len(values))
    return LimitCheck(
        limit=limit,
        verdict=verdict,
        value_s=interval.value,
        low_s=interval.low,
        high_s=interval.high,
        attainment_share=share,
        requests_needed=needed,
    )


def _check_quantile(
    limit: Limit, values: stats.Floats, share: float, confidence: float
) -> LimitCheck:
    quantile = limit.quantile or 1.0
    interval = stats.quantile_interval(values, quantile, confidence=confidence)
    if interval is None:
        raise ValueError("no values")  # check() never passes an empty list
    over = int((values > limit.at_most_s).sum())
    if quantile >= 1.0:
        verdict = Verdict.FAIL if over else Verdict.PASS
        return LimitCheck(
            limit=limit,
            verdict=verdict,
            value_s=interval.value,
            attainment_share=share,
            reason="the largest value seen; nothing is claimed of later requests",
        )
    verdict = _against(limit.at_most_s, interval.low, interval.high)
    needed = None
    if verdict is Verdict.UNSURE and over < (1 - quantile) * len(values) - 1e-9:
        wanted = stats.requests_needed(over, quantile=quantile, confidence=(1 + confidence) / 2)
        needed = _more(wanted, len(values))
    return LimitCheck(
        limit=limit,
        verdict=verdict,
        value_s=interval.value,
        low_s=max(0.0, interval.low),
        high_s=interval.high,
        attainment_share=share,
        requests_needed=needed,
    )


def _against(at_most: float, low: float, high: float) -> Verdict:
    if high <= at_most:
        return Verdict.PASS
    return Verdict.FAIL if low > at_most else Verdict.UNSURE


def _more(wanted: float, have: int) -> int | None:
    more = wanted - have
    return max(1, math.ceil(more)) if more < _MOST_NEEDED else None


def check_errors(slo: Slo, requests: int, failed: int) -> tuple[Verdict, int | None, str]:
    """Whether the error limit holds: verdict, requests still needed, and the reason in words."""
    allowed = slo.error_share_max
    if requests == 0:
        return Verdict.UNSURE, None, "no request ended in the window"
    said = f"{failed} of {requests} requests failed, {allowed:.1%} allowed"
    if allowed == 0:
        return (Verdict.FAIL if failed else Verdict.PASS), None, said
    if allowed == 1:
        return Verdict.PASS, None, said
    if stats.binomial_cdf(failed, requests, allowed) <= 1 - CONFIDENCE:
        return Verdict.PASS, None, said
    if 1 - stats.binomial_cdf(failed - 1, requests, allowed) <= 1 - CONFIDENCE:
        return Verdict.FAIL, None, said
    needed = None
    if failed / requests < allowed:
        wanted = stats.requests_needed(failed, quantile=1 - allowed, confidence=CONFIDENCE)
        needed = _more(wanted, requests)
    return Verdict.UNSURE, needed, said


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """FAIL if any limit fails, PASS if all hold, else UNSURE."""
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.UNSURE if Verdict.UNSURE in verdicts else Verdict.PASS

"""How a run's figures moved over its time: drift with its confidence, stalls, bursts of errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from servecap import stats
from servecap.columns import Columns
from servecap.kept import Slicer
from servecap.metrics import Burst, Drift, Stability, Window
from servecap.run import Run, Slice
from servecap.sample import Sample

MOST_SLICES = 24  # of a run that is no soak
SLICE_REQUESTS = 10  # a slice holds so many on average at least, or its mean is chance
LEAST_SLICES = 8  # fewer tell no trend from noise
BURST_CHANCE = 1e-4  # that chance alone makes so many failures in one slice
BURST_LEAST = 3  # failures
_CONFIDENCE = 0.95


def stability(run: Run, window: Window, inside: Columns) -> Stability | None:
    """What can be said of the run's course; None where it had too few requests for it.

    *inside* are the records that count in the window, in the order in which they ended.

    A run that is no soak is cut into up to `MOST_SLICES` equal slices of its measured window; of
    a soak all slices but the first count, which the ramp-in belongs to.
    """
    slices = run.slices[1:] if run.slices else _slices(inside, window)
    if len(slices) < LEAST_SLICES:
        return None
    return Stability(
        start_s=slices[0].start_s,
        end_s=slices[-1].end_s,
        requests=sum(s.requests for s in slices),
        failed=sum(s.failed for s in slices),
        drifts={
            name: found
            for name, read in _COURSES.items()
            if (found := drift_of([(_middle_s(s), read(s)) for s in slices])) is not None
        }
        | _memory(run.telemetry, slices[0].start_s, slices[-1].end_s),
        stalled=sum(s.stalled for s in slices),
        gap_max_s=max((s.gap_max_s for s in slices if s.gap_max_s is not None), default=None),
        bursts=bursts(slices),
        slices=tuple(slices),
    )


def _memory(samples: Sequence[Sample], start_s: float, end_s: float) -> dict[str, Drift]:
    """The growth of the server's memory, where its metrics tell it."""
    course = [
        (s.at_s, s.values["rss_bytes"])
        for s in samples
        if s.source == "server" and "rss_bytes" in s.values and start_s <= s.at_s <= end_s
    ]
    if len(course) < LEAST_SLICES:
        return {}
    bins = np.array_split(np.array(course), min(MOST_SLICES, len(course)))
    found = drift_of([(float(b[:, 0].mean()), float(b[:, 1].mean())) for b in bins])
    return {} if found is None else {"server_rss": found}


def _slices(inside: Columns, window: Window) -> tuple[Slice, ...]:
    number = min(MOST_SLICES, len(inside) // SLICE_REQUESTS)
    span_s = window.end_s - window.start_s
    if number < LEAST_SLICES or span_s <= 0:
        return ()
    slicer = Slicer(span_s / number, window.start_s)
    slicer.take(inside)
    return slicer.slices(window.end_s)[:number]


def _middle_s(one: Slice) -> float:
    return (one.start_s + one.end_s) / 2


_COURSES: dict[str, Callable[[Slice], float | None]] = {
    "ttft": lambda s: s.ttft_mean_s,
    "tpot": lambda s: s.tpot_mean_s,
    "tps": lambda s: s.output_tokens / (s.end_s - s.start_s),
}


def drift_of(course: Sequence[tuple[float, float | None]]) -> Drift | None:
    """The change of a figure from the first to the last slice, by a straight line; or None.

    Args:
        course: seconds and value of each slice; None where it has no value.

    The interval is Student's for the slope of a least-squares line. Slices that follow each other
    are alike, which makes it too narrow: it is widened by the lag-1 correlation r of the
    residuals, as if there were (1 - r) / (1 + r) times as many slices.

    Source:
        Effective sample size of an AR(1) series: von Storch & Zwiers, Statistical Analysis in
        Climate Research (1999), section 6.6.
    """
    known = [(at_s, value) for at_s, value in course if value is not None]
    if len(known) < LEAST_SLICES:
        return None
    x, y = np.array(known, dtype=np.float64).T
    level = float(y.mean())
    if level <= 0:
        return None
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    rest = y - level - slope * away
    error = math.sqrt(float(rest @ rest) / (len(y) - 2) / float(away @ away))
    free = max(2.0, len(y) * _independent(rest) - 2)
    error *= math.sqrt((len(y) - 2) / free)
    reach = stats.t_quantile((1 + _CONFIDENCE) / 2, max(2, round(free))) * error
    whole = float(x[-1] - x[0]) / level
    return Drift(
        change_share=slope * whole,
        low_share=(slope - reach) * whole,
        high_share=(slope + reach) * whole,
    )


def _independent(rest: stats.Floats) -> float:
    """The share of slices that count as independent ones; in (0, 1]."""
    spread = float(rest @ rest)
    if spread <= 0:
        return 1.0
    lag = min(0.95, max(0.0, float(rest[:-1] @ rest[1:]) / spread))
    return (1 - lag) / (1 + lag)


def bursts(slices: Sequence[Slice]) -> tuple[Burst, ...]:
    """Times in which more requests failed than chance makes of the errors of all the others.

    A slice belongs to a burst when at least `BURST_LEAST` failed and so many have a chance below
    `BURST_CHANCE` at the error rate of the slices that are no part of it. Neighbours are joined.
    """
    bad: set[int] = set()
    for _ in range(len(slices)):  # the worst slices hide lesser ones: look again without them
        others = [s for i, s in enumerate(slices) if i not in bad]
        failed, requests = sum(s.failed for s in others), sum(s.requests for s in others)
        found = {i for i, s in enumerate(slices) if i not in bad and _burst(s, failed, requests)}
        if not found:
            break
        bad |= found
    joined: list[Burst] = []
    for i in sorted(bad):
        s = slices[i]
        new = Burst(start_s=s.start_s, end_s=s.end_s, failed=s.failed, requests=s.requests)
        if joined and joined[-1].end_s >= s.start_s:
            before = joined.pop()
            new = Burst(
                start_s=before.start_s,
                end_s=s.end_s,
                failed=before.failed + s.failed,
                requests=before.requests + s.requests,
            )
        joined.append(new)
    return tuple(joined)


def _burst(one: Slice, failed: int, requests: int) -> bool:
    if one.failed < BURST_LEAST or requests <= one.requests:
        return False
    rate = (failed - one.failed + 1) / (requests - one.requests + 1)
    return 1 - stats.binomial_cdf(one.failed - 1, one.requests, min(1.0, rate)) < BURST_CHANCE

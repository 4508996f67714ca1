"""Whether the queue of an open loop grows without bound: what came against what was answered.

Slowness and over-saturation look alike for a while: both make latencies rise. They differ in the
requests in flight, which settle under the first and grow for ever under the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from servecap import stats
from servecap.metrics import Flow, FlowState
from servecap.record import Outcome, Record
from servecap.scenario import OpenLoop, Scenario

GROWS = 4.0  # standard errors of the growth of the queue that are no chance, over all the time
GROWS_STILL = 2.0  # and in each half of it: what settles grows in the first half only
RISES = 1.5  # standard errors by which answers/s may rise while the queue does
SLOWS = 0.35  # of the exponent with which time per token may surely follow the requests in flight
AT_REST = 2.5  # standard errors within which the queue neither grew nor shrank
ANSWERS_LEAST = 48  # without which nothing is said
_FILLING = 2.0  # mean responses until the first requests in flight have been replaced
_PARTS_MOST = 160
_SURE = 1.645  # standard errors, one-sided at 95%
_SERVICE_LEAST = 0.5  # of an answers' dispersion, for a short look may see none
_ENDED = (Outcome.CENSORED, Outcome.CANCELLED)


def watched(scenario: Scenario) -> bool:
    """Whether requests come at one rate, so that their queue can settle or grow."""
    load = scenario.load
    return isinstance(load, OpenLoop) and load.stationary and not load.of_sessions


def arrivals_cv2(load: OpenLoop) -> float:
    """The squared coefficient of variation of the gaps between arrivals."""
    match load.arrivals:
        case "constant":
            return 0.0
        case "gamma":
            return load.cv**2
        case _:
            return 1.0


def of_records(records: Sequence[Record], scenario: Scenario, end_s: float) -> Flow | None:
    """The flow of a whole run until *end_s*, when sending stopped; None where none is told."""
    if not watched(scenario):
        return None
    sent = [r for r in records if not r.turned_away and r.attempt == 1]
    came_s = [r.planned_s for r in sent if r.planned_s <= end_s]
    ended = sorted((r for r in sent if r.outcome not in _ENDED), key=lambda r: r.end_s)
    return flow(came_s, [r for r in ended if r.end_s <= end_s], scenario, end_s)


def flow(
    came_s: Sequence[float], ended: Sequence[Record], scenario: Scenario, end_s: float
) -> Flow | None:
    """What came and what was answered from two mean responses after the start until *end_s*.

    *came_s* are the planned times of all arrivals, answered or not; *ended* the records that ended
    by themselves, in that order. None with too few of them.

    The queue grows without bound when more came than was answered by more than chance makes of two
    streams that have the same rate, in both halves of the time and surely in all of it, while
    answers/s no longer rise: a queue that only settles grows ever slower, and is answered faster.
    Nor may the time per token follow the requests in flight: where they wait, they slow nobody
    down, but a batch that still fills answers more and more, too slowly to be seen in a rate.

    Source:
        A queue near its service rate is a random walk whose steps are those of its arrivals less
        those of its services: Kingman, On queues in heavy traffic, J. R. Stat. Soc. B 24 (1962).
    """
    load = scenario.load
    ended = [r for r in ended if r.attempt == 1]  # a retry is not what came by itself
    if not isinstance(load, OpenLoop) or len(ended) < ANSWERS_LEAST:
        return None
    start_s = _FILLING * _response_s(ended)
    if end_s < 2 * start_s:
        return None
    middle_s = (start_s + end_s) / 2
    gone = np.array([r.end_s for r in ended])
    good = np.array([r.end_s for r in ended if r.ok and r.end_s >= start_s])
    came = np.asarray(came_s)
    halves = [
        (_count(came, a, b), _count(gone, a, b))
        for a, b in ((start_s, middle_s), (middle_s, end_s))
    ]
    if len(good) < ANSWERS_LEAST:
        return None
    error = _rate_error(good, start_s, end_s)
    service = max(_SERVICE_LEAST, len(good) * error**2)
    per_arrival = arrivals_cv2(load) + service
    state = _state(halves, per_arrival, service)
    if state == "growing" and not _batch_full(came, ended, middle_s, end_s):
        state = "unclear"
    failed = 1 - len(good) / max(1, halves[0][1] + halves[1][1])
    return Flow(
        state=state,
        start_s=start_s,
        end_s=end_s,
        arrived_rps=(halves[0][0] + halves[1][0]) / (end_s - start_s),
        answered_rps=len(good) / (end_s - start_s),
        answered_error=error,
        answers=len(good),
        grew_by=sum(a - b for a, b in halves),
        failed_share=max(0.0, failed),
    )


def _response_s(ended: Sequence[Record]) -> float:
    """How long an answer takes, without the wait in a queue that has grown since the start."""
    waits = [r.ttft_s or 0.0 for r in ended[: max(1, len(ended) // 10)]]
    rest = [r.e2e_s - (r.ttft_s or 0.0) for r in ended[: max(1, len(ended) // 2)]]
    return float(np.mean(waits) + np.mean(rest))


def _batch_full(came: stats.Floats, ended: Sequence[Record], start_s: float, end_s: float) -> bool:
    """Whether the time per token surely does not rise with the requests in flight; or is unknown.

    As a power of them it is 0 where they wait for a place, and near 1 where all are served at once.
    """
    middle_s = (start_s + end_s) / 2
    gone = np.array([r.end_s for r in ended])
    said: list[list[float]] = [[], []]
    late = ended[int((gone < start_s).sum()) :]
    for r in late:
        if r.ok and (tpot_s := r.tpot_s) is not None:
            said[r.end_s >= middle_s].append(tpot_s)
    if min(map(len, said)) < ANSWERS_LEAST // 4:
        return sum(map(len, said)) < len(late) // 10
    flying = [
        float(np.mean([(came < t).sum() - (gone < t).sum() for t in np.linspace(a, b, 9)]))
        for a, b in ((start_s, middle_s), (middle_s, end_s))
    ]
    if min(flying) <= 0 or flying[1] <= flying[0]:
        return False
    means = [float(np.mean(x)) for x in said]
    error = math.hypot(*(float(np.std(x)) / math.sqrt(len(x)) / float(np.mean(x)) for x in said))
    grew = math.log(flying[1] / flying[0])
    return (math.log(means[1] / means[0]) + _SURE * error) / grew < SLOWS


def _state(halves: Sequence[tuple[int, int]], per_arrival: float, service: float) -> FlowState:
    scores = [_score(came, gone, per_arrival) for came, gone in halves]
    whole = _score(sum(c for c, _ in halves), sum(g for _, g in halves), per_arrival)
    before, after = (gone for _, gone in halves)
    rises = (after - before) / math.sqrt(service * max(1, before + after))
    if whole > GROWS and min(scores) > GROWS_STILL and rises < RISES:
        return "growing"
    return "settled" if abs(whole) < AT_REST and abs(scores[1]) < AT_REST else "unclear"


def _score(came: int, gone: int, per_arrival: float) -> float:
    return (came - gone) / math.sqrt(per_arrival * max(1, came))


def _count(times_s: stats.Floats, start_s: float, end_s: float) -> int:
    return int(((times_s >= start_s) & (times_s < end_s)).sum())


def _rate_error(times_s: stats.Floats, start_s: float, end_s: float) -> float:
    """The standard error of a rate of events, as a share of it."""
    parts = int(min(_PARTS_MOST, max(32, len(times_s) // 2)))
    counts, _ = np.histogram(times_s, parts, (start_s, end_s))
    spread = stats.batch_error(counts.astype(np.float64))
    # An event more or less at the two ends is never known.
    return max((spread or 0.0) / float(counts.mean()), 1 / len(times_s))

"""In which order cells teach most, and about how long each takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from servecap.matrix.job import CellJob, Command, Emulate, Predict, Url
from servecap.scenario import ClosedLoop

_TOKENS = 200.0  # of an answer
_LATENCY_S = {"ttft": 3.0, "tpot": 0.1}  # where the SLO has no limit on the mean
_USERS = 128  # a capacity, for the number of levels
_START_S = 120.0  # of a server that loads a model
_PREDICTED_S = 1.0  # of one core, where the engine model is compiled


def teaching_order(jobs: Sequence[CellJob]) -> list[CellJob]:
    """The cells in an order in which an early stop leaves the most useful table.

    Predictions come first, for they cost no GPU; then servers that run already; then those that
    must be started. Among them every model and GPU gets one cell before any gets a second, and
    its first is the middle one of its degrees: it tells most about the others.
    """
    degrees: dict[tuple[str, str, str], list[int]] = {}
    for job in jobs:
        degrees.setdefault(_row(job), []).append(job.tp)

    def key(item: tuple[int, CellJob]) -> tuple[int, int, int]:
        index, job = item
        return _price(job), _turn(job.tp, sorted(degrees[_row(job)])), index

    return [job for _, job in sorted(enumerate(jobs), key=key)]


def _row(job: CellJob) -> tuple[str, str, str]:
    return job.model.casefold(), job.gpu.casefold(), job.scenario_name


def _price(job: CellJob) -> int:
    match job.source:
        case Predict():
            return 0
        case Url() | Emulate():
            return 1
        case Command():
            return 2


def _turn(tp: int, degrees: Sequence[int]) -> int:
    """The middle degree is 0, its neighbours are 1 and 2, and so on outwards."""
    offset = degrees.index(tp) - (len(degrees) - 1) // 2
    return 2 * offset - 1 if offset > 0 else -2 * offset


def estimate_s(job: CellJob) -> float:
    """Roughly how long the cell takes, in seconds.

    Taken for granted: latencies at the SLO's limits, answers of 200 tokens, a capacity of 128
    users, and a search that doubles its level from the start and then halves the bracket.
    """
    if isinstance(job.source, Predict):
        return _PREDICTED_S
    load = job.scenario.load
    think_s = fmean(load.think_s) if isinstance(load, ClosedLoop) else 0.0
    cycle_s = _limit_s(job, "ttft") + _TOKENS * _limit_s(job, "tpot") + think_s
    top = min(_USERS, job.search.max_users)
    levels = [job.search.plain_start]
    while levels[-1] * 2 <= top:
        levels.append(levels[-1] * 2)
    levels += [top] * max(1, math.ceil(math.log2(1 / job.search.precision)))
    started = _START_S if isinstance(job.source, Command) else 0.0
    return started + sum(_level_s(job, users, cycle_s) for users in levels)


def _level_s(job: CellJob, users: int, cycle_s: float) -> float:
    """A level ramps in over one cycle, and measures its requests in two cycles at least."""
    stop = job.scenario.stop
    if stop.duration_s is not None:
        return stop.duration_s
    return min(stop.max_duration_s, cycle_s + max(2 * cycle_s, stop.requests * cycle_s / users))


def _limit_s(job: CellJob, metric: str) -> float:
    limit = job.scenario.slo.limit(metric)
    return _LATENCY_S[metric] if limit is None else limit.at_most_s

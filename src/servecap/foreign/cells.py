"""From load tests of another tool to a cell of the matrix: which level held the SLO."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from servecap.cell import Capacity, Cell
from servecap.errors import UsageError
from servecap.foreign.rows import Found, Told
from servecap.metrics import Summary, Verdict
from servecap.run import Run
from servecap.scenario import ClosedLoop
from servecap.slo import Slo
from servecap.stats import Distribution
from servecap.verdict import overall


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One load test as a level of users; a mean that is unknown is None."""

    users: int
    verdict: Verdict
    by: str  # whose figures, and how the users were come by
    valid: bool = True
    broken: str | None = None  # the limit that broke
    ttft_s: float | None = None
    tpot_s: float | None = None
    error_rate: float | None = None
    qps: float | None = None
    output_tps: float | None = None
    total_tps: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None


def level_of_run(run: Run, summary: Summary, *, think_mean_s: float) -> Level:
    """The level that an imported run was."""
    client = summary.client
    prompt, output = _mean(client.get("prompt_tokens")), _mean(client.get("output_tokens"))
    load = run.scenario.load
    in_flight = load.users if isinstance(load, ClosedLoop) else None
    failed = [str(c.limit) for c in summary.checks if c.verdict is Verdict.FAIL]
    users, by = _users(in_flight, summary.qps, _mean(client.get("e2e")), think_mean_s)
    return Level(
        users=users,
        by=by,
        verdict=summary.verdict,
        valid=summary.valid,
        broken=_broken(summary.verdict, failed),
        ttft_s=_mean(client.get("ttft")),
        tpot_s=_mean(client.get("tpot")),
        error_rate=summary.error_rate,
        qps=summary.qps,
        output_tps=summary.output_tps,
        total_tps=summary.total_tps,
        prompt_tokens=prompt,
        output_tokens=output,
    )


def level_of_told(found: Found, slo: Slo, *, name: str, think_mean_s: float) -> Level:
    """The level that the tool's own figures tell of; limits are held against points.

    Raises:
        UsageError: neither the load nor what it could follow from is told.
    """
    told, load = found.told, found.load
    if load.at_once or (load.in_flight is None and load.rate_rps is None):
        raise UsageError(
            f"{name}: the file does not tell the load: give --users N (requests kept in flight) or "
            "--rate R (requests per second)"
        )
    verdict, failed = _judged(told, slo)
    in_flight = None if load.rate_rps is not None else load.in_flight
    users, by = _users(in_flight, told.qps, told.e2e.get("mean"), think_mean_s)
    return Level(
        users=users,
        by=f"{by}; the tool's own figures, without an interval",
        verdict=verdict,
        broken=_broken(verdict, failed),
        ttft_s=told.ttft.get("mean"),
        tpot_s=told.tpot.get("mean"),
        error_rate=_errors(told),
        qps=told.qps,
        output_tps=told.output_tps,
        total_tps=told.total_tps,
        prompt_tokens=told.prompt_tokens,
        output_tokens=told.output_tokens,
    )


def _users(
    in_flight: int | None, qps: float | None, e2e_s: float | None, think_mean_s: float
) -> tuple[int, str]:
    """Users who think and keep as many requests in flight, by Little's law, and that in words.

    Raises:
        UsageError: the rate, or the response time of an open loop, is not told.

    Source:
        Little, A proof for the queuing formula L = lambda W, Oper. Res. 9 (1961):
        users = in flight + requests/s x think time.
    """
    if in_flight is None and (qps is None or e2e_s is None):
        raise UsageError("the file tells neither requests in flight nor rate and response time")
    busy = float(in_flight) if in_flight is not None else (qps or 0.0) * (e2e_s or 0.0)
    if think_mean_s == 0:
        return int(busy), f"{busy:.4g} requests in flight, taken for users who do not think"
    if qps is None:
        raise UsageError("the file tells no requests/s: give --think-mean 0")
    users = int(busy + qps * think_mean_s)
    said = f"{busy:.4g} requests in flight are {users} users who think {think_mean_s:g} s"
    return users, f"{said}, by Little's law"


def _judged(told: Told, slo: Slo) -> tuple[Verdict, list[str]]:
    """The SLO held against the tool's points, and the limits that are broken."""
    verdicts, failed = [], []
    for limit in slo.limits:
        known = {"ttft": told.ttft, "tpot": told.tpot, "e2e": told.e2e}.get(limit.metric, {})
        value = known.get(limit.statistic)
        if value is None:
            verdicts.append(Verdict.UNSURE)
        elif value <= limit.at_most_s:
            verdicts.append(Verdict.PASS)
        else:
            verdicts.append(Verdict.FAIL)
            failed.append(str(limit))
    errors = _errors(told)
    if errors is not None and errors > slo.error_share_max:
        verdicts.append(Verdict.FAIL)
    return overall(verdicts), failed


def _errors(told: Told) -> float | None:
    if told.requests_failed is None or told.requests_ok is None:
        return None
    total = told.requests_ok + told.requests_failed
    return told.requests_failed / total if total else None


def _broken(verdict: Verdict, failed: list[str]) -> str | None:
    if verdict is not Verdict.FAIL:
        return None
    return failed[0] if failed else "error_rate"


def _mean(distribution: Distribution | None) -> float | None:
    if distribution is None or not math.isfinite(distribution.mean):
        return None
    return distribution.mean


def cell_of(levels: Sequence[Level], place: Cell, slo: Slo) -> Cell:
    """*place* with the capacity that the levels show, and the figures of the best one that held.

    Only levels below the first that broke the SLO count, and only those that can be believed.
    """
    believed = sorted((x for x in levels if x.valid), key=lambda x: x.users)
    fails = [x for x in believed if x.verdict is Verdict.FAIL]
    first = fails[0].users if fails else None
    held = [x for x in believed if x.verdict is Verdict.PASS and (first is None or x.users < first)]
    if not held and first is None:
        tried = ", ".join(str(level.users) for level in levels)
        why = f"no level was decided (users tried: {tried})"
        return msgspec.structs.replace(place, slo=str(slo), invalid_reason=why)
    best = held[-1] if held else None
    capacity = Capacity(
        users=0 if best is None else best.users,
        users_high=None if first is None else max(0, first - 1),
        limited_by=fails[0].broken if fails else None,
    )
    if best is None:
        notes = ("no level kept the SLO: there are no figures",)
        return msgspec.structs.replace(
            place, slo=str(slo), capacity=capacity, notes=(*place.notes, *notes)
        )
    open_end = () if fails else ("no upper end: no level broke the SLO",)
    prompt, output = best.prompt_tokens, best.output_tokens
    return msgspec.structs.replace(
        place,
        slo=str(slo),
        capacity=capacity,
        avg_context_tokens=None if prompt is None or output is None else prompt + output,
        avg_output_tokens=output,
        error_rate=best.error_rate,
        ttft_s=best.ttft_s,
        tpot_s=best.tpot_s,
        requests_per_s=best.qps,
        output_tokens_per_s=best.output_tps,
        total_tokens_per_s=best.total_tps,
        notes=(*place.notes, best.by, *open_end),
    )

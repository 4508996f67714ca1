"""From a run to its summary: every figure, the verdict, and whether any of it can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from servecap import audit, flow, pauses, schedule, stability, stats, steady, surroundings, verdict
from servecap.metrics import LimitCheck, PartFigures, Stability, Summary, Verdict, Window
from servecap.record import Outcome, Record, error_kind, once_each
from servecap.run import Run
from servecap.scenario import OpenLoop, Scenario
from servecap.slo import Slo
from servecap.workload import mix

_UNBORN = (Outcome.CENSORED, Outcome.CANCELLED)


def summarize(run: Run) -> Summary:
    """Every figure of the run; see `metrics.Summary` for their meaning."""
    records = sorted(run.records, key=lambda r: r.end_s)
    end_s = run.header.load_end_s
    if end_s is None:
        end_s = records[-1].end_s if records else 0.0
    scenario = run.scenario
    window = steady.window_of(records, scenario, end_s)
    inside = steady.counted(records, window)
    good = [r for r in inside if r.ok]
    span_s = window.end_s - window.start_s
    by_server = scenario.timings == "server"
    checks = verdict.check_all(scenario, inside)
    course = stability.stability(run, window)
    in_flight_mean, in_flight_max = in_flight(records, window)
    again = [r for r in inside if r.attempt > 1]
    once = once_each(inside)
    failed = len(inside) - len(good)
    prompt, output = _tokens(r.prompt_tokens for r in good), _tokens(r.output_tokens for r in good)
    of_sessions = isinstance(scenario.load, OpenLoop) and scenario.load.of_sessions
    came = [r for r in records if r.attempt == 1 and not (of_sessions and r.turn)]
    through = None if run.dropped else flow.of_records(records, scenario, end_s)
    growing = through is not None and through.state == "growing"
    partial = Summary(
        window=window,
        users=scenario.users,
        rate_rps=_asked_rps(scenario, window),
        in_flight_mean=in_flight_mean,
        in_flight_max=in_flight_max,
        benchmark_time_s=_benchmark_time_s(records, window),
        requests=len(inside),
        requests_ok=len(good),
        requests_censored=sum(r.outcome in _UNBORN for r in records),
        errors=dict(Counter(error_kind(r) for r in inside if not r.ok)),
        error_rate=failed / len(once) if once else 0.0,
        retries=len(again),
        retries_ok=sum(r.ok for r in again),
        qps=_per_s(len(good), span_s),
        output_tps=_per_s(output or 0, span_s),
        total_tps=None if prompt is None or output is None else _per_s(prompt + output, span_s),
        goodput_rps=_per_s(sum(_kept(r, scenario.slo, by_server) for r in good), span_s),
        client=_client(good, lag_known=_lag_known(run)),
        server=_server(good),
        token_sources=dict(Counter(str(r.token_source) for r in good)),
        checks=checks,
        verdict=Verdict.FAIL
        if growing  # there is no steady state in which anything could hold
        else _verdict(checks, scenario.slo, *_held_against(run, course, len(once), failed)),
        stability=course,
        flow=through,
        telemetry=surroundings.telemetry(run.telemetry, window),
        scheduled_rps=_rate_rps((r.planned_s for r in came), scenario, window),
        achieved_rps=_rate_rps((r.sent_s for r in came if not r.turned_away), scenario, window),
        rate_of="sessions" if of_sessions else "requests",
        parts=_parts(inside, scenario, span_s),
        not_sent=sum(r.turned_away for r in records),
    )
    reasons, warnings = audit.audit(run, partial, inside)
    more_reasons, more_warnings = surroundings.judged(run, partial)
    return _with_audit(partial, [*reasons, *more_reasons], [*warnings, *more_warnings])


def _parts(inside: Sequence[Record], scenario: Scenario, span_s: float) -> tuple[PartFigures, ...]:
    """The figures of each workload of a mix; nothing for a single one."""
    source = scenario.workload.source
    if not source.startswith(mix.PREFIX):
        return ()
    found: list[PartFigures] = []
    for place, (share, name) in enumerate(mix.parse(source)):
        own = [r for r in inside if r.part == place]
        good, once = [r for r in own if r.ok], once_each(own)
        told = _client(good, lag_known=False)  # the lag is of the client, not of a part
        found.append(
            PartFigures(
                name=name,
                share=share,
                requests=len(own),
                requests_ok=len(good),
                error_rate=sum(not r.ok for r in once) / len(once) if once else None,
                qps=_per_s(len(good), span_s),
                client={key: d for key, d in told.items() if key != "gap"},
            )
        )
    return tuple(found)


def _with_audit(summary: Summary, reasons: list[str], warnings: list[str]) -> Summary:
    fields = {name: getattr(summary, name) for name in summary.__struct_fields__}
    fields |= {"invalid_reasons": tuple(reasons), "warnings": tuple(warnings)}
    return Summary(**fields)


def _asked_rps(scenario: Scenario, window: Window) -> float | None:
    """The rate that the load asked for inside the window; None for users."""
    load = scenario.load
    if not isinstance(load, OpenLoop):
        return None
    span_s = window.end_s - window.start_s
    if load.schedule is None or span_s <= 0:
        return load.rate_rps
    course = schedule.course(load.rate_rps, load.schedule)
    return (course.arrivals_by(window.end_s) - course.arrivals_by(window.start_s)) / span_s


def _rate_rps(times_s: Iterable[float], scenario: Scenario, window: Window) -> float | None:
    """How many of these times lie in the window, by its length; None for users.

    A trace sends nothing after its last row, while answers may take long to end: what is after it
    is no time of sending.
    """
    load = scenario.load
    if not isinstance(load, OpenLoop):
        return None
    inside = [t for t in times_s if window.start_s <= t < window.end_s]
    end_s = window.end_s
    if load.arrivals == "trace":
        end_s = max(inside, default=end_s)
    span_s = end_s - window.start_s
    return len(inside) / span_s if span_s > 0 else None


def _held_against(
    run: Run, course: Stability | None, requests: int, failed: int
) -> tuple[int, int]:
    """Requests and failures that the error limit is held against: of a soak, those of all time."""
    if not run.dropped or course is None:
        return requests, failed
    return course.requests, course.failed


def _verdict(checks: tuple[LimitCheck, ...], slo: Slo, requests: int, failed: int) -> Verdict:
    errors, _, _ = verdict.check_errors(slo, requests, failed)
    return verdict.overall([*(c.verdict for c in checks), errors])


def in_flight(records: Iterable[Record], window: Window) -> tuple[float, int]:
    """Mean and largest number of requests in flight inside the window."""
    span_s = window.end_s - window.start_s
    told = np.array([(r.sent_s, r.end_s) for r in records], dtype=np.float64).reshape(-1, 2)
    starts = np.maximum(told[:, 0], window.start_s)
    ends = np.minimum(told[:, 1], window.end_s)
    inside = ends > starts
    starts, ends = starts[inside], ends[inside]
    busy_s = sum((ends - starts).tolist())
    # Just after each start: all that have started, less those that have ended by then.
    ordered = np.sort(starts)
    level = np.arange(1, len(starts) + 1) - np.searchsorted(np.sort(ends), ordered, side="right")
    return (busy_s / span_s if span_s > 0 else 0.0), int(level.max(initial=0))


def _benchmark_time_s(records: Sequence[Record], window: Window) -> float:
    sent = [r.sent_s for r in records]
    return window.end_s - min(sent) if sent else 0.0


def _tokens(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    if not known or any(c is None for c in known):
        return None
    return sum(c for c in known if c is not None)


def _per_s(count: float, span_s: float) -> float:
    return count / span_s if span_s > 0 else 0.0


def _kept(record: Record, slo: Slo, by_server: bool) -> bool:
    for limit in slo.limits:
        value = verdict.value_of(limit.metric, server=by_server)(record)
        if value is not None and value > limit.at_most_s:
            return False
    return True


def _described(
    columns: Mapping[str, Sequence[float] | stats.Floats],
) -> dict[str, stats.Distribution]:
    found = {name: stats.describe(values, reorder=True) for name, values in columns.items()}
    return {name: d for name, d in found.items() if d is not None}


def _lag_known(run: Run) -> bool:
    """False where another tool told no planned times: that it was never late would be made up."""
    return run.header.source != "imported" or any(r.lag_s > 0 for r in run.records)


def _client(good: Sequence[Record], *, lag_known: bool) -> dict[str, stats.Distribution]:
    return _described(
        {
            "ttft": [v for r in good if (v := r.ttft_s) is not None],
            "ttft_sent": [v for r in good if (v := r.ttft_sent_s) is not None],
            "tpot": [v for r in good if (v := r.tpot_s) is not None],
            "e2e": [r.e2e_s for r in good],
            "gap": pauses.gaps_s(good),
            "lag": [r.lag_s for r in good] if lag_known else [],
            "prompt_tokens": [float(v) for r in good if (v := r.prompt_tokens) is not None],
            "output_tokens": [float(v) for r in good if (v := r.output_tokens) is not None],
        }
    )


def _server(good: Sequence[Record]) -> dict[str, stats.Distribution]:
    told = [r.server for r in good if r.server is not None]
    return _described(
        {
            "ttft": [v for s in told if (v := s.ttft_s) is not None],
            "tpot": [v for s in told if (v := s.tpot_s) is not None],
            "e2e": [v for s in told if (v := s.inference_s) is not None],
            "queue": [v for s in told if (v := s.queue_s) is not None],
            "prefill": [v for s in told if (v := s.prefill_s) is not None],
        }
    )

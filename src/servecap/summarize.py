"""From a run to its summary: every figure, the verdict, and whether any of it can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from servecap import audit, flow, pauses, schedule, stability, stats, steady, surroundings, verdict
from servecap.columns import Columns, present
from servecap.metrics import Flow, LimitCheck, PartFigures, Stability, Summary, Verdict, Window
from servecap.record import Record, error_kind
from servecap.run import Run
from servecap.scenario import OpenLoop, Scenario
from servecap.workload import mix


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A run in the order in which its requests ended, and what its figures are made of."""

    run: Run
    told: Columns
    window: Window
    inside: Columns  # what counts in the window
    good: Columns  # of these the successes
    flow: Flow | None

    @property
    def scenario(self) -> Scenario:
        return self.run.scenario

    @property
    def span_s(self) -> float:
        return self.window.end_s - self.window.start_s


def summarize(run: Run) -> Summary:
    """Every figure of the run; see `metrics.Summary` for their meaning."""
    seen = _seen(run)
    figures = _figures(seen)
    reasons, warnings = audit.audit(run, figures, seen.told)
    more_reasons, more_warnings = surroundings.judged(run, figures)
    return msgspec.structs.replace(
        figures,
        invalid_reasons=(*reasons, *more_reasons),
        warnings=(*warnings, *more_warnings),
    )


def _seen(run: Run) -> _Seen:
    told = run.columns
    end_s = run.header.load_end_s
    if end_s is None:
        end_s = told.records[-1].end_s if len(told) else 0.0
    window = steady.window_of(told, run.scenario, end_s)
    inside = steady.counted(told, window)
    return _Seen(
        run=run,
        told=told,
        window=window,
        inside=inside,
        good=inside.at(inside.ok),
        flow=None if run.dropped else flow.of_records(told.records, run.scenario, end_s),
    )


def _figures(seen: _Seen) -> Summary:
    """All but whether they can be believed."""
    told, inside, good = seen.told, seen.inside, seen.good
    window, scenario, span_s = seen.window, seen.scenario, seen.span_s
    by_server = scenario.timings == "server"
    checks = verdict.check_all(scenario, inside)
    course = stability.stability(seen.run, window, inside)
    in_flight_mean, in_flight_max = in_flight(told, window)
    once, failed = len(inside.once_each()), len(inside) - len(good)
    again = inside.attempt > 1
    prompt, output = _tokens(good.prompt_tokens), _tokens(good.output_tokens)
    scheduled_rps, achieved_rps = _rates_rps(seen)
    return Summary(
        window=window,
        users=scenario.users,
        rate_rps=_asked_rps(scenario, window),
        in_flight_mean=in_flight_mean,
        in_flight_max=in_flight_max,
        benchmark_time_s=window.end_s - float(told.sent_s.min()) if len(told) else 0.0,
        requests=len(inside),
        requests_ok=len(good),
        requests_censored=int((~told.ended).sum()),
        errors=dict(Counter(map(error_kind, inside.at(~inside.ok).records))),
        error_rate=failed / once if once else 0.0,
        retries=int(again.sum()),
        retries_ok=int((again & inside.ok).sum()),
        qps=_per_s(len(good), span_s),
        output_tps=_per_s(output or 0, span_s),
        total_tps=None if prompt is None or output is None else _per_s(prompt + output, span_s),
        goodput_rps=_per_s(int(verdict.kept(scenario.slo, good, server=by_server).sum()), span_s),
        client=_client(good, lag_known=_lag_known(seen)),
        server=_server(good.records),
        token_sources=dict(Counter(str(r.token_source) for r in good.records)),
        checks=checks,
        verdict=_verdict(seen, checks, *_held_against(seen.run, course, once, failed)),
        stability=course,
        flow=seen.flow,
        telemetry=surroundings.telemetry(seen.run.telemetry, window),
        scheduled_rps=scheduled_rps,
        achieved_rps=achieved_rps,
        rate_of="sessions" if _of_sessions(scenario) else "requests",
        parts=_parts(inside, scenario, span_s),
        not_sent=int(told.turned_away.sum()),
    )


def _parts(inside: Columns, scenario: Scenario, span_s: float) -> tuple[PartFigures, ...]:
    """The figures of each workload of a mix; nothing for a single one."""
    source = scenario.workload.source
    if not source.startswith(mix.PREFIX):
        return ()
    found: list[PartFigures] = []
    for place, (share, name) in enumerate(mix.parse(source)):
        own = inside.at(inside.part == place)
        good, once = own.at(own.ok), own.once_each()
        told = _client(good, lag_known=False)  # the lag is of the client, not of a part
        found.append(
            PartFigures(
                name=name,
                share=share,
                requests=len(own),
                requests_ok=len(good),
                error_rate=int((~once.ok).sum()) / len(once) if len(once) else None,
                qps=_per_s(len(good), span_s),
                client={key: d for key, d in told.items() if key != "gap"},
            )
        )
    return tuple(found)


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


def _of_sessions(scenario: Scenario) -> bool:
    return isinstance(scenario.load, OpenLoop) and scenario.load.of_sessions


def _rates_rps(seen: _Seen) -> tuple[float | None, float | None]:
    """Arrivals that were planned in the window and those that were sent in it, by its length.

    None for users. Of sessions only the first turns arrive by themselves.
    """
    load, told = seen.scenario.load, seen.told
    if not isinstance(load, OpenLoop):
        return None, None
    came = told.attempt == 1
    if load.of_sessions:
        came &= told.turn == 0
    of_trace = load.arrivals == "trace"
    return (
        _rate_rps(told.planned_s[came], seen.window, of_trace=of_trace),
        _rate_rps(told.sent_s[came & ~told.turned_away], seen.window, of_trace=of_trace),
    )


def _rate_rps(times_s: stats.Floats, window: Window, *, of_trace: bool) -> float | None:
    """How many of these times lie in the window, by its length.

    A trace sends nothing after its last row, while answers may take long to end: what is after it
    is no time of sending.
    """
    inside = times_s[(window.start_s <= times_s) & (times_s < window.end_s)]
    end_s = float(inside.max()) if of_trace and len(inside) else window.end_s
    span_s = end_s - window.start_s
    return len(inside) / span_s if span_s > 0 else None


def _held_against(
    run: Run, course: Stability | None, requests: int, failed: int
) -> tuple[int, int]:
    """Requests and failures that the error limit is held against: of a soak, those of all time."""
    if not run.dropped or course is None:
        return requests, failed
    return course.requests, course.failed


def _verdict(seen: _Seen, checks: tuple[LimitCheck, ...], requests: int, failed: int) -> Verdict:
    if seen.flow is not None and seen.flow.state == "growing":
        return Verdict.FAIL  # there is no steady state in which anything could hold
    errors, _, _ = verdict.check_errors(seen.scenario.slo, requests, failed)
    return verdict.overall([*(c.verdict for c in checks), errors])


def in_flight(told: Columns, window: Window) -> tuple[float, int]:
    """Mean and largest number of requests in flight inside the window."""
    span_s = window.end_s - window.start_s
    starts = np.maximum(told.sent_s, window.start_s)
    ends = np.minimum(told.end_s, window.end_s)
    inside = ends > starts
    starts, ends = starts[inside], ends[inside]
    busy_s = sum((ends - starts).tolist())
    # Just after each start: all that have started, less those that have ended by then.
    ordered = np.sort(starts)
    level = np.arange(1, len(starts) + 1) - np.searchsorted(np.sort(ends), ordered, side="right")
    return (busy_s / span_s if span_s > 0 else 0.0), int(level.max(initial=0))


def _tokens(counts: stats.Floats) -> int | None:
    """Their sum; None where one is unknown, or there is none."""
    return int(counts.sum()) if len(counts) and not np.isnan(counts).any() else None


def _per_s(count: float, span_s: float) -> float:
    return count / span_s if span_s > 0 else 0.0


def _described(
    columns: Mapping[str, Sequence[float] | stats.Floats],
) -> dict[str, stats.Distribution]:
    found = {name: stats.describe(values, reorder=True) for name, values in columns.items()}
    return {name: d for name, d in found.items() if d is not None}


def _lag_known(seen: _Seen) -> bool:
    """False where another tool told no planned times: that it was never late would be made up."""
    return seen.run.header.source != "imported" or bool((seen.told.lag_s > 0).any())


def _client(good: Columns, *, lag_known: bool) -> dict[str, stats.Distribution]:
    return _described(
        {
            "ttft": present(good.ttft_s),
            "ttft_sent": present(good.ttft_sent_s),
            "tpot": present(good.tpot_s),
            "e2e": present(good.e2e_s),
            "gap": pauses.gaps_s(good.records),
            "lag": present(good.lag_s) if lag_known else [],
            "prompt_tokens": present(good.prompt_tokens),
            "output_tokens": present(good.output_tokens),
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

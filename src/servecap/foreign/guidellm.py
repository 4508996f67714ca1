"""guidellm's `benchmarks.json`: a report of one or more load tests.

Source:
    guidellm, src/guidellm/schemas/base/request_stats.py and info.py (0.4 to 0.6) and
    benchmark/benchmark.py (0.2, 0.3): Unix times in seconds, names that end in `_ms` in
    milliseconds, `request_latency` in seconds. Only the first and the last token are timed. Its
    `time_per_output_token_ms` counts the first token's wait; `inter_token_latency_ms` is TPOT.
    Requests may be a sample of all (--sample-requests).
"""

from __future__ import annotations

from typing import Any

import msgspec

from servecap.foreign.rows import Found, Load, Row, Told, failure, last_line
from servecap.record import Outcome, TokenSource

TOOL = "guidellm"


class _Timings(msgspec.Struct, frozen=True):
    targeted_start: float | None = None
    request_start: float | None = None
    request_end: float | None = None
    first_token_iteration: float | None = None
    last_token_iteration: float | None = None
    first_iteration: float | None = None  # 0.4
    last_iteration: float | None = None
    token_iterations: int | None = None


class _Info(msgspec.Struct, frozen=True):
    timings: _Timings = _Timings()
    request_timings: _Timings = _Timings()  # 0.4
    error: str | None = None


class _Request(msgspec.Struct, frozen=True):
    """A request of any version; each has some of these."""

    info: _Info = _Info()
    scheduler_info: _Info | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    request_start_time: float | None = None
    request_end_time: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    error: str | None = None


class _Requests(msgspec.Struct, frozen=True):
    successful: list[_Request] | None = None
    incomplete: list[_Request] | None = None
    errored: list[_Request] | None = None


class _Benchmark(msgspec.Struct, frozen=True):
    requests: _Requests = _Requests()
    config: dict[str, Any] | None = None
    args: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    duration: float | None = None


class _Report(msgspec.Struct, frozen=True):
    benchmarks: list[_Benchmark]
    args: dict[str, Any] | None = None


def is_report(document: dict[str, Any]) -> bool:
    """Whether guidellm wrote it."""
    tests = document.get("benchmarks")
    return isinstance(tests, list) and all(isinstance(t, dict) and "metrics" in t for t in tests)


def read(document: dict[str, Any]) -> list[Found]:
    """The load tests of a report.

    Raises:
        msgspec.ValidationError: a field is not of the kind that the tool writes.
    """
    report = msgspec.convert(document, _Report)
    return [_found(test, report.args or {}) for test in report.benchmarks]


def _found(test: _Benchmark, args: dict[str, Any]) -> Found:
    requests = test.requests
    good = [_row(r, Outcome.OK) for r in requests.successful or []]
    cut = [_row(r, Outcome.CENSORED) for r in requests.incomplete or []]
    bad = [_row(r, Outcome.HTTP_ERROR) for r in requests.errored or []]
    rows = tuple(row for row in (*good, *cut, *bad) if row.sent_s is not None)
    told = _told(test)
    notes = ["only the first and the last token of each answer are timed: there are no gaps"]
    if told.requests_ok is not None and len(good) < told.requests_ok:
        notes.append(
            f"the file holds {len(good)} of {told.requests_ok} successful requests (a sample)"
        )
        rows = ()
    why = "" if rows else "the file does not hold all requests: rates would be too low"
    strategy = _strategy(test)
    return Found(
        tool=TOOL,
        load=_load(strategy, fixed=not cut),
        told=told,
        rows=rows,
        why_no_rows=why,
        model=_first(args, ("model",), ("backend_kwargs", "model")),
        url=_first(args, ("target",)),
        api=_first(args, ("backend_type",), ("backend",)),
        streamed=any(row.ttft_s is not None for row in rows),
        notes=tuple(notes),
    )


def _first(args: dict[str, Any], *paths: tuple[str, ...]) -> str | None:
    for path in paths:
        value: Any = args
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            return value
    return None


def _strategy(test: _Benchmark) -> dict[str, Any]:
    found = (test.config or test.args or {}).get("strategy")
    return found if isinstance(found, dict) else {}


def _load(strategy: dict[str, Any], *, fixed: bool) -> Load:
    kind = strategy.get("type_")
    rate = strategy.get("rate")
    match kind:
        case "synchronous":
            return Load(in_flight=1, fixed=fixed)
        case "concurrent":
            streams = strategy.get("streams", strategy.get("max_concurrency"))
            return Load(in_flight=int(streams) if streams else None, fixed=fixed)
        case "constant" | "poisson" if isinstance(rate, int | float):
            spread = None if kind == "constant" else 1.0
            return Load(rate_rps=float(rate), burstiness=spread, fixed=fixed)
        case "throughput":
            limit = strategy.get("max_concurrency")
            return Load(in_flight=int(limit) if limit else None, at_once=not limit, fixed=fixed)
    return Load(fixed=fixed)


def _row(request: _Request, outcome: Outcome) -> Row:
    info = request.scheduler_info or request.info
    own = info.timings if info.timings != _Timings() else info.request_timings
    start_s = _known(own.request_start, request.request_start_time, request.start_time)
    end_s = _known(own.request_end, request.request_end_time, request.end_time)
    first_s = _known(own.first_token_iteration, own.first_iteration, request.first_token_time)
    last_s = _known(own.last_token_iteration, own.last_iteration, request.last_token_time)
    error = request.error or info.error or ""
    streamed = start_s is not None and first_s is not None and first_s > 0
    return Row(
        sent_s=start_s,
        planned_s=own.targeted_start,
        latency_s=_since(start_s, end_s),
        ttft_s=_since(start_s, first_s) if streamed else None,
        last_token_s=_since(start_s, last_s) if streamed else None,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        cached_tokens=request.cached_tokens,
        token_source=TokenSource.SERVER if request.output_tokens else TokenSource.ESTIMATE,
        outcome=failure(error) if error and outcome is Outcome.HTTP_ERROR else outcome,
        error=last_line(error) or None,
    )


def _known(*values: float | None) -> float | None:
    return next((v for v in values if v is not None), None)


def _since(start_s: float | None, at_s: float | None) -> float | None:
    return None if start_s is None or at_s is None else max(0.0, at_s - start_s)


def _told(test: _Benchmark) -> Told:
    totals = _summary(test, "request_totals")
    ttft, tpot = (
        _times(test, f"{x}_ms", 1e-3) for x in ("time_to_first_token", "inter_token_latency")
    )
    e2e = _times(test, "request_latency", 1.0)
    count, bad = totals.get("successful"), totals.get("errored")
    return Told(
        requests_ok=count if isinstance(count, int) else None,
        requests_failed=bad if isinstance(bad, int) else None,
        duration_s=test.duration,
        qps=_mean(test, "requests_per_second"),
        output_tps=_mean(test, "output_tokens_per_second"),
        total_tps=_mean(test, "tokens_per_second"),
        prompt_tokens=_mean(test, "prompt_token_count"),
        output_tokens=_mean(test, "output_token_count"),
        ttft=ttft,
        tpot=tpot,
        e2e=e2e,
    )


def _summary(test: _Benchmark, name: str) -> dict[str, Any]:
    found = (test.metrics or {}).get(name)
    return found if isinstance(found, dict) else {}


def _good(test: _Benchmark, name: str) -> dict[str, Any]:
    found = _summary(test, name).get("successful")
    return found if isinstance(found, dict) else {}


def _mean(test: _Benchmark, name: str) -> float | None:
    value = _good(test, name).get("mean")
    return float(value) if isinstance(value, int | float) else None


def _times(test: _Benchmark, name: str, scale: float) -> dict[str, float]:
    found = _good(test, name)
    shares = found.get("percentiles")
    values = {"mean": found.get("mean"), **(shares if isinstance(shares, dict) else {})}
    return {
        key: float(value) * scale
        for key, value in values.items()
        if key in ("mean", "p50", "p90", "p95", "p99") and isinstance(value, int | float) and value
    }

"""Every figure of a run as tables that text and HTML both print."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from servecap import verdict
from servecap.metrics import LimitCheck, Summary
from servecap.report import units, words
from servecap.report.parts import part_tables
from servecap.report.stability_text import stability_table
from servecap.report.table import Column, Table, text_column
from servecap.report.telemetry_text import telemetry_tables
from servecap.run import LoadNode, Run
from servecap.stats import Distribution

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
CLIENT_ROWS = ("ttft", "ttft_sent", "tpot", "e2e", "gap", "prompt_tokens", "output_tokens")
SERVER_ROWS = ("ttft", "tpot", "e2e", "queue", "prefill")
TOKEN_SOURCES = {
    "server": "the server's usage figures",
    "tokenizer": "the tokenizer given",
    "estimate": "ESTIMATES (the server sent no usage figures)",
}


def tables(run: Run, summary: Summary) -> list[Table]:
    """All tables of one run, in the order in which they are read."""
    course = stability_table(summary)
    return [
        slo_table(run, summary),
        latency_table(run, summary),
        *part_tables(summary),
        system_table(run, summary),
        window_table(run, summary),
        *([] if course is None else [course]),
        client_table(run, summary),
        *telemetry_tables(summary),
        test_table(run),
    ]


def slo_table(run: Run, summary: Summary) -> Table:
    """The limits: each with its verdict, value, interval, and how many requests kept it."""
    rows = [_limit_row(check) for check in summary.checks]
    rows.append(_error_row(run, summary))
    notes = [f"{units.limit(c.limit)}: {units.clean(c.reason)}" for c in summary.checks if c.reason]
    notes += [
        f"{units.limit(c.limit)}: the value is n/a, so many requests failed that it lies among"
        " them (a failed request counts as infinitely slow)"
        for c in summary.checks
        if c.value_s is not None and math.isinf(c.value_s)
    ]
    return Table(
        title="Service level objective",
        columns=(
            text_column("limit"),
            text_column("verdict"),  # here, for a phone shows the first columns only
            Column("value"),
            Column(f"{verdict.CONFIDENCE:.0%} interval"),
            Column("requests that kept it"),
        ),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _limit_row(check: LimitCheck) -> tuple[str, ...]:
    known = (x for x in (check.value_s, check.low_s, check.high_s) if x and math.isfinite(x))
    unit = units.time_unit(next(known, check.limit.at_most_s))
    return (
        units.limit(check.limit),
        check.verdict.value.upper(),
        unit.text(check.value_s),
        words.interval(check, unit),
        units.share(check.attainment_share),
    )


def _error_row(run: Run, summary: Summary) -> tuple[str, ...]:
    said, _, _ = words.errors(run, summary)
    return (
        f"error rate < {units.share(run.scenario.slo.error_share_max)}",
        said.value.upper(),
        units.share(summary.error_rate) if summary.requests else units.UNKNOWN,
        "",
        "",
    )


def latency_table(run: Run, summary: Summary) -> Table:
    """Per-request figures by the client's clock and by the server's, each row in one unit."""
    rows = [_row(m, "client", summary.client) for m in CLIENT_ROWS if m in summary.client]
    rows += [_row(m, "server", summary.server) for m in SERVER_ROWS if m in summary.server]
    notes = _latency_notes(run, summary)
    return Table(
        title=f"Per request ({units.number_word(summary.requests_ok, 'successful request')})",
        columns=(
            text_column("metric"),
            text_column("clock"),
            text_column("unit"),
            *(Column(name) for name in STATISTICS),
        ),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _row(metric: str, by: str, told: dict[str, Distribution]) -> tuple[str, ...]:
    distribution = told[metric]
    values = [distribution.statistic(name) for name in STATISTICS]
    if metric.endswith("_tokens"):
        return (
            units.TERMS[metric],
            by,
            "tokens",
            units.count(values[0], 1),
            *(units.count(v, 0) for v in values[1:]),
        )
    unit = units.time_unit(distribution.mean)
    return (units.TERMS[metric], by, unit.name, *(unit.number(v) for v in values))


def _latency_notes(run: Run, summary: Summary) -> list[str]:
    notes = []
    missing = [units.SHORT[m] for m in ("ttft", "tpot", "e2e", "gap") if m not in summary.client]
    if missing:
        why = (
            "no request succeeded"
            if not summary.requests_ok
            else "answers were not streamed, or had too few tokens or chunks"
        )
        notes.append(f"{units.listed(missing)} by the client's clock: n/a ({why}).")
    timings = run.scenario.timings
    if not summary.server:
        if timings != "client":
            notes.append("Server's clock: n/a (the server told no timings of its own).")
        notes.append("The limits are judged by the client's clock.")
    else:
        judge = "server's" if timings == "server" else "client's"
        notes.append(f"The limits are judged by the {judge} clock (--timings {timings}).")
        origins = sorted({r.server.origin for r in run.records if r.server is not None})
        read = ", ".join(units.clean(o, 80) for o in origins[:4])
        notes.append(f"Server's figures read from: {read}." if read else "")
    notes.append(
        "client: from the moment a request was meant to be sent. A chunk is not a token:"
        " TPOT counts tokens, ITL the time between chunks."
    )
    return [note for note in notes if note]


def system_table(run: Run, summary: Summary) -> Table:
    """Load carried and work done, in the measured window."""
    users = (
        f"{summary.users:,}"
        if summary.users is not None
        else f"open loop, {units.count(summary.rate_rps)} {summary.rate_of}/s asked"
    )
    total = (
        f"total {units.count(summary.total_tps)} (prompt + output)"
        if summary.total_tps is not None
        else "total n/a (prompt tokens unknown)"
    )
    # Without a length there are no rates: a zero would be a made-up number.
    has_length = summary.window.end_s > summary.window.start_s
    none = "n/a (the measured window has no length)"
    rows = [
        ("users (concurrency_users)", users),
        (
            "requests in flight",
            f"mean {units.count(summary.in_flight_mean)}, max {units.count(summary.in_flight_max)}"
            " (users who think have none)"
            if has_length
            else none,
        ),
        ("benchmark_time", units.clock(summary.benchmark_time_s)),
        (
            "QPS (throughput_request_rate)",
            f"{units.count(summary.qps)} requests/s" if has_length else none,
        ),
        (
            "TPS (throughput_token_rate)",
            f"output {units.count(summary.output_tps)} tokens/s, {total}" if has_length else none,
        ),
        (
            "goodput",
            f"{units.count(summary.goodput_rps)} requests/s kept every limit"
            if has_length
            else none,
        ),
        *_rates(summary),
        ("error_rate", _errors(summary)),
        *_retries(run, summary),
        (
            "requests",
            f"{summary.requests:,} ended in the window, {summary.requests_ok:,} of them"
            f" successfully; {summary.requests_censored:,} still running at the end (in no figure)",
        ),
        ("token counts", _token_sources(run, summary)),
    ]
    return _facts("System", rows)


def _rates(summary: Summary) -> list[tuple[str, str]]:
    """Open loop: whether the rate that was asked for was also delivered."""
    if summary.scheduled_rps is None or summary.achieved_rps is None:
        return []
    text = (
        f"asked {units.count(summary.rate_rps)}, scheduled {units.count(summary.scheduled_rps)},"
        f" achieved {units.count(summary.achieved_rps)} {summary.rate_of}/s"
    )
    if summary.not_sent:
        text += f"; {summary.not_sent:,} not sent (too many in flight) count as failures"
    told = [] if summary.flow is None else [("flow", words.flow(summary.flow))]
    return [("rate", text), *told]


def _errors(summary: Summary) -> str:
    if not summary.requests:
        return "n/a (no request ended in the window)"
    failed = summary.requests - summary.requests_ok
    text = f"{units.share(summary.error_rate)}"
    text += f" ({failed:,} of {summary.requests - summary.retries_ok:,})"
    kinds = sorted(summary.errors.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{units.clean(kind, 60)} {n:,}" for kind, n in kinds)
    return f"{text}: {told}" if told else text


def _retries(run: Run, summary: Summary) -> list[tuple[str, str]]:
    """What was tried again; a success there leaves its request a failure in the error rate."""
    if not run.scenario.retries and not summary.retries:
        return []
    if not summary.retries:
        return [("retries", "none was needed")]
    tries = "retry" if summary.retries == 1 else "retries"
    text = f"{summary.retries:,} {tries}, of which {summary.retries_ok:,} succeeded"
    return [("retries", f"{text}; every request that had failed counts in error_rate")]


def _token_sources(run: Run, summary: Summary) -> str:
    if run.header.source == "imported" and summary.requests_ok:
        return "as the other tool says"
    told = [
        f"{n:,} from {TOKEN_SOURCES.get(source, units.clean(source))}"
        for source, n in sorted(summary.token_sources.items(), key=lambda item: -item[1])
        if n
    ]
    return "; ".join(told) or "n/a (no request succeeded)"


def window_table(run: Run, summary: Summary) -> Table:
    """Which part of the run was measured, and why."""
    window = summary.window
    header = run.header
    rows = [
        (
            "measured window",
            f"{window.start_s:,.1f} to {window.end_s:,.1f} s"
            f" ({units.clock(window.end_s - window.start_s)}); {units.clean(window.rule)}",
        ),
        ("load stopped at", units.clock(header.load_end_s)),
        (
            "run",
            header.status.value
            + (f", {units.clean(header.stop_reason)}" if header.stop_reason else ""),
        ),
    ]
    return _facts("Measured window", rows)


def client_table(run: Run, summary: Summary) -> Table:
    """Whether the client itself kept up."""
    health = run.header.health
    lag = summary.client.get("lag")
    unknown = {
        "simulated": "n/a (simulated: there is no client)",
        "imported": "n/a (imported: the other tool did not tell)",
    }.get(run.header.source, "n/a (not recorded)")
    rows = [
        (
            "send lag",
            unknown
            if lag is None or run.header.source == "simulated"
            else f"p99 {units.seconds(lag.p99)}, max {units.seconds(lag.max)}"
            " (sent later than planned)",
        ),
        (
            "loop delay",
            unknown
            if health.loop_delay_p99_s is None
            else f"p99 {units.seconds(health.loop_delay_p99_s)},"
            f" max {units.seconds(health.loop_delay_max_s)}",
        ),
        (
            "CPU",
            unknown if health.cpu_share is None else f"{units.share(health.cpu_share)} of one core",
        ),
    ]
    if health.rss_bytes is not None:
        rows.append(("memory", f"{health.rss_bytes / 2**20:,.0f} MiB"))
    rows += [(f"node {node.name}", _clock(node)) for node in health.nodes]
    return _facts("Client health", rows)


def _clock(node: LoadNode) -> str:
    """How well the clock of a load process on another machine agrees with the parent's."""
    lost = "LOST in mid-run; " if node.lost else ""
    if node.drift_s is None or node.drift_error_s is None:
        drift = "drift unknown (the run was too short)"
    elif abs(node.drift_s) <= node.drift_error_s:
        drift = f"no drift seen that is over {units.seconds(node.drift_error_s)}"
    else:
        drift = (
            f"drifted by {units.seconds(abs(node.drift_s))}"
            f" (±{units.seconds(node.drift_error_s)}) until its end"
        )
    return f"{lost}clock aligned to ±{units.seconds(node.error_s)} at the start; {drift}"


def test_table(run: Run) -> Table:
    """What was tested, with what."""
    header = run.header
    target, scenario = header.target, header.scenario
    rows = [
        (
            "target",
            units.clean(f"{target.url} ({target.api}{'' if target.stream else ', not streamed'})"),
        ),
        ("model", units.clean(target.model) if target.model else "n/a (not told)"),
        ("server", units.clean(target.server) if target.server else "n/a (not told)"),
        ("source", _source(run)),
        ("load", words.load_phrase(scenario.load)),
        (
            "workload",
            units.clean(
                f"{scenario.workload.source}, answer length: {scenario.workload.output}"
                + (f" ({header.workload_note})" if header.workload_note else "")
            ),
        ),
        ("SLO", words.slo_text(scenario.slo)),
        ("seed", str(scenario.seed)),
        ("started", units.clean(header.started_utc)),
        ("servecap", units.clean(header.servecap_version)),
    ]
    if run.path:
        rows.append(("stored in", units.clean(run.path)))
    return _facts("Test", rows)


def _source(run: Run) -> str:
    match run.header.source:
        case "simulated":
            return words.SIMULATED
        case "imported":
            return f"imported from {units.clean(run.header.imported_from or units.UNKNOWN)}"
        case "measured":
            return "measured"


def repeat_json(run: Run) -> str:
    """Scenario, target and environment as JSON: all that is needed to repeat the run."""
    header = run.header
    told = {
        "scenario": header.scenario,
        "target": header.target,
        "source": header.source,
        "servecap_version": header.servecap_version,
        "started_utc": header.started_utc,
        "environment": header.environment,
    }
    shown = _cleaned(msgspec.to_builtins(told))
    return msgspec.json.format(msgspec.json.encode(shown), indent=2).decode()


def _cleaned(value: Any) -> Any:
    """The same JSON value with every string safe to print, and to write as UTF-8."""
    match value:
        case str():
            return units.clean(value, 10_000)
        case dict():
            return {_cleaned(key): _cleaned(item) for key, item in value.items()}
        case list() | tuple():
            return [_cleaned(item) for item in value]
        case _:
            return value


def warnings(run: Run, summary: Summary) -> list[str]:
    """What a reader must know beside the figures."""
    out = [units.clean(text) for text in (*summary.warnings, *run.header.notes)]
    return list(dict.fromkeys(out))


def _facts(title: str, rows: list[tuple[str, str]]) -> Table:
    return Table(title=title, columns=(text_column(""), text_column("")), rows=tuple(rows))

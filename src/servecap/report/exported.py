"""Records as a table with one row for each request, and a summary as OpenMetrics text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from servecap.metrics import Summary
from servecap.record import Outcome, Record
from servecap.report import facts, sheets
from servecap.report.parquet import library
from servecap.report.units import clean
from servecap.run import Run

_NOT_COUNTED = (Outcome.CENSORED, Outcome.CANCELLED)
_RISKY = ("=", "+", "-", "@")  # a spreadsheet takes a text that begins so for a formula
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


class Field(msgspec.Struct, frozen=True):
    """One column: its name, its type in Parquet, what it means, and how it is read."""

    name: str
    kind: str  # int64, double, string, bool, list<double>, list<int64>
    meaning: str
    read: Callable[[Record], Any]


def _server(name: str) -> Callable[[Record], Any]:
    return lambda r: getattr(r.server, name) if r.server is not None else None


def _longest_gap(record: Record) -> float | None:
    return max(record.gaps_s(), default=None)


FIELDS: tuple[Field, ...] = (
    Field("request_id", "int64", "number of the request in the workload", lambda r: r.request_id),
    Field("user", "int64", "user that sent it", lambda r: r.user),
    Field("session", "int64", "conversation it belongs to", lambda r: r.session),
    Field("turn", "int64", "turn in the conversation, from 0", lambda r: r.turn),
    Field("part", "int64", "part of a mix of workloads, from 0", lambda r: r.part),
    Field("attempt", "int64", "1, or which later try of the request", lambda r: r.attempt),
    Field("planned_s", "double", "when it was due, since the run's start", lambda r: r.planned_s),
    Field("first_planned_s", "double", "when its first try was due", lambda r: r.first_planned_s),
    Field("sent_s", "double", "when it was sent", lambda r: r.sent_s),
    Field("first_token_s", "double", "when the first output arrived", lambda r: r.first_token_s),
    Field("end_s", "double", "when the answer had ended", lambda r: r.end_s),
    Field("outcome", "string", "ok, timeout, refused, ...", lambda r: str(r.outcome)),
    Field("status", "int64", "HTTP status", lambda r: r.status),
    Field("error", "string", "what went wrong", lambda r: r.error and clean(r.error)),
    Field("resent", "bool", "over a fresh connection, too", lambda r: r.resent),
    Field("retry_after_s", "double", "the server's Retry-After", lambda r: r.retry_after_s),
    Field("finish_reason", "string", "as the server gave it", lambda r: _text(r.finish_reason)),
    Field("prompt_tokens", "int64", "tokens of the prompt", lambda r: r.prompt_tokens),
    Field("output_tokens", "int64", "tokens of the answer", lambda r: r.output_tokens),
    Field("cached_tokens", "int64", "prompt tokens found in a cache", lambda r: r.cached_tokens),
    Field("token_source", "string", "who counted the tokens", lambda r: str(r.token_source)),
    Field(
        "ttft_s",
        "double",
        "first-token latency, from the first try's planned_s",
        lambda r: r.ttft_s,
    ),
    Field("ttft_sent_s", "double", "the same from sent_s", lambda r: r.ttft_sent_s),
    Field("tpot_s", "double", "time per token after the first chunk", lambda r: r.tpot_s),
    Field("e2e_s", "double", "response time, from the first try's planned_s", lambda r: r.e2e_s),
    Field("lag_s", "double", "sent_s - planned_s", lambda r: r.lag_s),
    Field("gap_max_s", "double", "longest gap between chunks", _longest_gap),
    Field("server_queue_s", "double", "queue time by the server", _server("queue_s")),
    Field("server_prefill_s", "double", "prefill time by the server", _server("prefill_s")),
    Field("server_inference_s", "double", "prefill and decode", _server("inference_s")),
    Field("server_tpot_s", "double", "time per token by the server", _server("tpot_s")),
)
WINDOW = Field("in_window", "bool", "whether it counts in the figures", lambda _: None)
CHUNKS: tuple[Field, ...] = (
    Field("chunk_s", "list<double>", "when each chunk arrived", lambda r: list(r.chunk_s)),
    Field("chunk_tokens", "list<int64>", "tokens in each", lambda r: list(r.chunk_tokens)),
)


def _text(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _in_window(record: Record, summary: Summary) -> bool:
    window = summary.window
    return record.outcome not in _NOT_COUNTED and window.start_s <= record.end_s <= window.end_s


def to_csv(run: Run, summary: Summary) -> str:
    """One row for each request under a line of names; an unknown value is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in (*FIELDS, WINDOW)])
    for record in run.records:
        cells = [_cell(field.read(record)) for field in FIELDS]
        writer.writerow([*cells, str(_in_window(record, summary)).lower()])
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6f}"
    text = str(value)
    return "'" + text if isinstance(value, str) and text.startswith(_RISKY) else text


def write_parquet(path: Path, run: Run, summary: Summary) -> None:
    """Write one row for each request, with its chunks as lists.

    Raises:
        UsageError: pyarrow is not installed.
        OSError: *path* cannot be written.
    """
    pa, file_format = library("export --to csv")
    types = {
        "int64": pa.int64(),
        "double": pa.float64(),
        "string": pa.string(),
        "bool": pa.bool_(),
        "list<double>": pa.list_(pa.float64()),
        "list<int64>": pa.list_(pa.int64()),
    }
    columns, fields = [], (*FIELDS, WINDOW, *CHUNKS)
    for field in fields:
        if field is WINDOW:
            values: list[Any] = [_in_window(record, summary) for record in run.records]
        else:
            values = [field.read(record) for record in run.records]
        columns.append(pa.array(values, types[field.kind]))
    header = msgspec.json.encode(run.header)
    table = pa.table(columns, names=[field.name for field in fields])
    file_format.write_table(table.replace_schema_metadata({"servecap.run": header}), path)


def write_xlsx(path: Path, run: Run, summary: Summary) -> None:
    """Write a workbook: the figures as the report prints them, and one row for each request.

    Raises:
        UsageError: XlsxWriter is not installed, or there are too many requests for a sheet.
        OSError: *path* cannot be written.
    """
    told = [sheets.of_table(table) for table in facts.tables(run, summary)]
    rows = [
        [*(field.read(record) for field in FIELDS), _in_window(record, summary)]
        for record in run.records
    ]
    names = [field.name for field in (*FIELDS, WINDOW)]
    sheets.write_xlsx(path, [*told, sheets.Sheet("Requests", names, rows)])


def to_openmetrics(run: Run, summary: Summary) -> str:
    """The run's figures as OpenMetrics text, for a push gateway or a textfile collector.

    Source:
        OpenMetrics 1.0 (text format): names, escapes of label values, `# EOF`.
    """
    own = labels(run, summary)
    out: list[str] = []
    for name, found in summary.client.items():
        unit = "" if name.endswith("_tokens") else "_seconds"
        metric = f"servecap_{name}{unit}"
        out.append(f"# TYPE {metric} summary")
        if unit:
            out.append(f"# UNIT {metric} seconds")
        for stat, quantile in _QUANTILES.items():
            more = {"quantile": str(quantile)}
            out.append(_sample(metric, own | more, found.statistic(stat)))
        out.append(_sample(f"{metric}_sum", own, found.mean * found.n))
        out.append(_sample(f"{metric}_count", own, found.n))
    for name, value in gauges(summary):
        if value is not None and math.isfinite(value):
            out += [f"# TYPE servecap_{name} gauge", _sample(f"servecap_{name}", own, value)]
    return "\n".join([*out, "# EOF"]) + "\n"


def labels(run: Run, summary: Summary) -> dict[str, str]:
    """What tells this run's metrics from those of others."""
    return {
        "model": run.header.target.model or "",
        "source": run.header.source,
        "load": f"users={summary.users}" if summary.users is not None else "open",
    }


def gauges(summary: Summary) -> Iterable[tuple[str, float | None]]:
    """The figures of the whole run by name, in the units that the names end in."""
    verdicts: Sequence[str] = ("fail", "unsure", "pass")
    return (
        ("requests", summary.requests),
        ("requests_ok", summary.requests_ok),
        ("error_ratio", summary.error_rate),
        ("requests_per_second", summary.qps),
        ("goodput_requests_per_second", summary.goodput_rps),
        ("output_tokens_per_second", summary.output_tps),
        ("tokens_per_second", summary.total_tps),
        ("in_flight_mean", summary.in_flight_mean),
        ("in_flight_max", summary.in_flight_max),
        ("valid", int(summary.valid)),
        ("slo_verdict", verdicts.index(summary.verdict) - 1),  # -1 fail, 0 unsure, 1 pass
    )


def _sample(name: str, own: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in own.items())
    return f"{name}{{{inside}}} {value:.9g}"


def _escaped(text: str) -> str:
    return clean(text).replace("\\", "\\\\").replace('"', '\\"')

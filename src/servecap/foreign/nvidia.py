"""AIPerf's and genai-perf's files: requests as JSON lines or with raw answers, and aggregates.

Source:
    AIPerf, docs/tutorials/working-with-profile-exports.md and docs/reference/json-export-schema.md
    (0.1 to 0.13): one line per request, Unix times in nanoseconds, each metric with its own unit
    (ms for latencies); warm-up requests carry `benchmark_phase: warmup`; lengths are counted by the
    client's tokenizer. genai-perf (2024/25), genai_perf/profile_data_parser: `experiments` with
    send and answer times in nanoseconds and the raw answers, whose tokens it counts only later.
    Both write aggregates as `{"unit", "avg", "p50", ...}` per metric.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from servecap.foreign.rows import Found, Load, Row, Told, chunks, failure, last_line
from servecap.record import Outcome, TokenSource

AIPERF = "AIPerf"
GENAI_PERF = "genai-perf"
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}
_STATISTICS = {"avg": "mean", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}


class _Metadata(msgspec.Struct, frozen=True):
    request_start_ns: int
    request_end_ns: int | None = None
    benchmark_phase: str = "profiling"
    was_cancelled: bool = False
    turn_index: int | None = None
    x_correlation_id: str | None = None
    credit_issued_ns: int | None = None


class _Metric(msgspec.Struct, frozen=True):
    value: float | list[float] | None = None
    unit: str = ""


class _Error(msgspec.Struct, frozen=True):
    code: int | None = None
    type: str | None = None
    message: str | None = None


class _Line(msgspec.Struct, frozen=True):
    metadata: _Metadata
    metrics: dict[str, Any] | None = None
    error: _Error | None = None


def is_line(document: dict[str, Any]) -> bool:
    """Whether it is a request of AIPerf's."""
    metadata = document.get("metadata")
    return isinstance(metadata, dict) and "request_start_ns" in metadata


def is_raw(document: dict[str, Any]) -> bool:
    """Whether it is what perf_analyzer hands to genai-perf."""
    return isinstance(document.get("experiments"), list)


def is_aggregate(document: dict[str, Any]) -> bool:
    """Whether it holds the aggregates of either tool."""
    found = document.get("request_throughput")
    return isinstance(found, dict) and "avg" in found


def read_lines(documents: Sequence[dict[str, Any]], beside: dict[str, Any] | None) -> Found:
    """AIPerf's requests; *beside* is the aggregates' file in the same folder, which has the load.

    Raises:
        msgspec.ValidationError: a field is not of the kind that the tool writes.
    """
    lines = [msgspec.convert(document, _Line) for document in documents]
    measured = [line for line in lines if line.metadata.benchmark_phase != "warmup"]
    names = [line.metadata.x_correlation_id for line in measured]
    sessions = {name: i for i, name in enumerate(dict.fromkeys(names))}
    several = len(sessions) < len(measured)
    rows = tuple(
        _row(line, sessions[line.metadata.x_correlation_id] if several else None)
        for line in measured
    )
    notes = ["token counts are by the tool's own tokenizer"]
    if len(measured) < len(lines):
        notes.append(f"{len(lines) - len(measured)} warm-up requests are left out")
    whole = read_aggregate(beside) if beside is not None else None
    cut = any(row.outcome is Outcome.CANCELLED for row in rows)
    load = Load() if whole is None else whole.load
    return Found(
        tool=AIPERF,
        load=msgspec.structs.replace(load, fixed=load.fixed and not cut),
        told=Told() if whole is None else whole.told,
        rows=rows,
        model=None if whole is None else whole.model,
        url=None if whole is None else whole.url,
        api=None if whole is None else whole.api,
        started=None if whole is None else whole.started,
        streamed=any(row.ttft_s is not None for row in rows),
        notes=tuple(notes),
    )


def _row(line: _Line, session: int | None) -> Row:
    data, error = line.metadata, line.error
    metrics = msgspec.convert(_metrics(line.metrics or {}), dict[str, _Metric])
    latency_s = _seconds(metrics.get("request_latency"))
    if latency_s is None and data.request_end_ns is not None:
        latency_s = (data.request_end_ns - data.request_start_ns) * 1e-9
    ttft_s = _seconds(metrics.get("time_to_first_token"))
    gaps_s = _gaps_s(metrics.get("inter_chunk_latency"))
    outcome = Outcome.OK
    text = ""
    if data.was_cancelled:
        outcome = Outcome.CANCELLED
    elif error is not None:
        text = f"{error.type or 'error'}: {error.message or ''}"
        outcome = failure(text)
    at_s = chunks(ttft_s, gaps_s) if ttft_s is not None and gaps_s else []
    code = None if error is None else error.code
    return Row(
        sent_s=data.request_start_ns * 1e-9,
        latency_s=latency_s,
        ttft_s=ttft_s,
        last_token_s=latency_s if ttft_s is not None and not at_s else None,
        chunk_s=at_s,
        prompt_tokens=_count(metrics.get("input_sequence_length")),
        output_tokens=_count(metrics.get("output_sequence_length")),
        outcome=outcome,
        status=code if code is not None and 100 <= code < 600 else None,
        error=last_line(text) or None,
        session=session,
        turn=data.turn_index or 0,
    )


def _metrics(found: dict[str, Any]) -> dict[str, Any]:
    """Those metrics that are objects with a value: others are none of those read here."""
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, dict)
        and name
        in (
            "request_latency",
            "time_to_first_token",
            "inter_chunk_latency",
            "input_sequence_length",
            "output_sequence_length",
        )
    }


def _seconds(metric: _Metric | None) -> float | None:
    if metric is None or not isinstance(metric.value, float) or metric.unit not in _UNITS_S:
        return None
    return metric.value * _UNITS_S[metric.unit]


def _gaps_s(metric: _Metric | None) -> list[float]:
    if metric is None or not isinstance(metric.value, list) or metric.unit not in _UNITS_S:
        return []
    return [value * _UNITS_S[metric.unit] for value in metric.value]


def _count(metric: _Metric | None) -> int | None:
    return int(metric.value) if metric is not None and isinstance(metric.value, float) else None


# Aggregates of both


def read_aggregate(document: dict[str, Any]) -> Found:
    """The figures of a whole run; their units are those that the file names."""
    aiperf = "aiperf_version" in document or "schema_version" in document
    config = document.get("input_config")
    config = config if isinstance(config, dict) else {}
    mean = {name: _mean(document, name) for name in ("request_count", "error_request_count")}
    told = Told(
        requests_ok=_whole(mean["request_count"]),
        requests_failed=_whole(mean["error_request_count"]),
        duration_s=_mean(document, "benchmark_duration"),
        qps=_mean(document, "request_throughput"),
        output_tps=_mean(document, "output_token_throughput"),
        total_tps=_mean(document, "total_token_throughput"),
        prompt_tokens=_mean(document, "input_sequence_length"),
        output_tokens=_mean(document, "output_sequence_length"),
        ttft=_times(document, "time_to_first_token"),
        tpot=_times(document, "inter_token_latency"),
        e2e=_times(document, "request_latency"),
    )
    model = _inside(config, "model_names") or _inside(config, "model") or _inside(config, "models")
    if isinstance(model, list) and model:
        model = model[0].get("name") if isinstance(model[0], dict) else model[0]
    other = "profile_export.jsonl" if aiperf else "profile_export.json"
    return Found(
        tool=AIPERF if aiperf else GENAI_PERF,
        load=_load(config),
        told=told,
        why_no_rows=f"this file has aggregates only: give {other} of the same run",
        model=model if isinstance(model, str) else None,
        api=_string(_inside(config, "endpoint_type") or _inside(config, "type")),
        started=_string(document.get("start_time")),
        streamed=bool(told.ttft),
    )


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _inside(value: Any, name: str) -> Any:
    """The first value under *name*, at any depth: versions nest their settings differently."""
    if isinstance(value, dict):
        if value.get(name) is not None and not isinstance(value[name], dict):
            return value[name]
        value = list(value.values())
    if isinstance(value, list):
        return next((x for item in value if (x := _inside(item, name)) is not None), None)
    return None


def _load(config: dict[str, Any]) -> Load:
    rate, users = _inside(config, "request_rate"), _inside(config, "concurrency")
    if isinstance(rate, int | float) and rate > 0:
        mode = _inside(config, "arrival_pattern") or _inside(config, "request_rate_mode")
        spread = None if mode == "constant" else 1.0
        return Load(rate_rps=float(rate), burstiness=spread)
    return Load(in_flight=int(users) if isinstance(users, int) and users > 0 else None)


def _mean(document: dict[str, Any], name: str) -> float | None:
    found = document.get(name)
    value = found.get("avg") if isinstance(found, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _times(document: dict[str, Any], name: str) -> dict[str, float]:
    found = document.get(name)
    if not isinstance(found, dict) or found.get("unit") not in _UNITS_S:
        return {}
    scale = _UNITS_S[found["unit"]]
    told = {ours: found.get(theirs) for theirs, ours in _STATISTICS.items()}
    return {k: float(v) * scale for k, v in told.items() if isinstance(v, int | float)}


# genai-perf's raw answers


class _Answered(msgspec.Struct, frozen=True):
    timestamp: int
    response_timestamps: list[int] = []
    response_outputs: list[dict[str, Any]] = []


class _Experiment(msgspec.Struct, frozen=True):
    requests: list[_Answered]
    experiment: dict[str, Any] = {}


def read_raw(document: dict[str, Any]) -> list[Found]:
    """The load tests that perf_analyzer wrote down, each answer with its chunks.

    Raises:
        msgspec.ValidationError: a field is not of the kind that the tool writes.
    """
    tests = msgspec.convert(document["experiments"], list[_Experiment])
    notes = [
        "genai-perf writes no token counts: they are the server's, where its answers hold them"
    ]
    found = []
    for test in tests:
        mode, value = test.experiment.get("mode"), test.experiment.get("value")
        number = float(value) if isinstance(value, int | float) and value > 0 else None
        rate = number if mode == "request_rate" else None
        users = number if mode == "concurrency" else None
        rows = tuple(map(_answered, test.requests))
        found.append(
            Found(
                tool=GENAI_PERF,
                load=Load(in_flight=_whole(users), rate_rps=rate, burstiness=None),
                told=Told(),
                rows=rows,
                api=_string(document.get("endpoint")) or _string(document.get("service_kind")),
                streamed=any(len(row.chunk_s) > 1 for row in rows),
                notes=tuple(notes),
            )
        )
    return found


def _answered(request: _Answered) -> Row:
    sent_ns, at_s, usage, error = request.timestamp, [], None, ""
    for stamp, output in zip(request.response_timestamps, request.response_outputs, strict=False):
        text, counted, failed = _understood(output.get("response"))
        usage, error = counted or usage, failed or error
        if text:
            at_s.append((stamp - sent_ns) * 1e-9)
    stamps = request.response_timestamps
    bad = bool(error) or not at_s
    return Row(
        sent_s=sent_ns * 1e-9,
        latency_s=(stamps[-1] - sent_ns) * 1e-9 if stamps else None,
        ttft_s=at_s[0] if len(at_s) > 1 else None,
        chunk_s=at_s if len(at_s) > 1 else (),
        prompt_tokens=_tokens(usage, "prompt_tokens"),
        output_tokens=_tokens(usage, "completion_tokens"),
        token_source=TokenSource.SERVER if usage else TokenSource.ESTIMATE,
        outcome=(failure(error) if error else Outcome.BROKEN_STREAM) if bad else Outcome.OK,
        error=last_line(error) or ("the answer is empty" if bad else None),
    )


def _tokens(usage: dict[str, Any] | None, name: str) -> int | None:
    value = (usage or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _understood(response: Any) -> tuple[bool, dict[str, Any] | None, str]:
    """Whether a piece of an answer holds output, its usage figures, and an error in it."""
    output, usage, error = False, None, ""
    for event in str(response or "").split("\n\n"):
        body = event.strip().removeprefix("data:").strip()
        try:
            data = json.loads(body) if body.startswith("{") else None
        except ValueError:
            continue
        if not isinstance(data, dict):
            continue
        error = error or (json.dumps(data["error"]) if data.get("error") else "")
        usage = data["usage"] if isinstance(data.get("usage"), dict) else usage
        output = (
            output or bool(data.get("text_output")) or any(map(_output, data.get("choices") or []))
        )
    return output, usage, error


def _output(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    inner = choice.get("delta") or choice.get("message") or {}
    words = (choice.get("text"), inner.get("content"), inner.get("reasoning_content"))
    return any(words)


# Aggregates as CSV


_HEAD = re.compile(r"^(?P<name>[^()]+?)\s*\((?P<unit>[^()]+)\)$")


def is_csv(text: str) -> bool:
    """Whether it is the table of aggregates of either tool."""
    return text.lstrip("\ufeff").startswith("Metric,")


def read_csv(text: str) -> Found:
    """The figures of a whole run from `*_genai_perf.csv` or `*_aiperf.csv`; no load is in them."""
    heads: list[str] = []
    document: dict[str, Any] = {}
    for row in csv.reader(io.StringIO(text.lstrip("\ufeff"))):
        if row[:1] == ["Metric"]:
            heads = [name.strip() for name in row[1:]]
            continue
        named = _HEAD.match(row[0].strip()) if row else None
        if named is None or not heads:
            continue
        values = {
            "avg" if h == "Value" else h: _plain(v) for h, v in zip(heads, row[1:], strict=False)
        }
        name = named["name"].strip().casefold().replace(" ", "_")
        document[name] = {"unit": named["unit"], **values}
    return read_aggregate(document)


def _plain(text: str) -> float | None:
    """A number that may have its thousands separated.

    >>> _plain("1,234.5"), _plain("N/A")
    (1234.5, None)
    """
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None

"""`vllm bench serve` and SGLang's `bench_serving`: one object with an array for each figure.

Source:
    vLLM, vllm/benchmarks/serve.py and lib/endpoint_request_func.py (2024 to 2026): times per
    request in seconds, aggregates in milliseconds; `start_times` (since late 2025) by
    `perf_counter`; an ITL is the gap between two chunks, whatever they carry; latency ends with the
    last token; a failed request has no latency (0). Without --save-detailed the arrays are gone.
    SGLang, python/sglang/bench_serving.py (2024 to 2026): one line per run, arrays with
    --output-details only, no start times; the gap before a chunk of k tokens is written as k equal
    ITLs of gap / k. Python writes an unlimited rate as `Infinity`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from servecap.foreign.rows import Found, Load, Row, Told, chunks, failure, last_line, replayed

VLLM = "vllm bench serve"
SGLANG = "SGLang bench_serving"
_STATISTICS = {"mean": "mean", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
_REDONE = (
    "the file does not tell when requests were sent: their times follow from their latencies and "
    "the number kept in flight, and give the run's length"
)


class _Arrays(msgspec.Struct, frozen=True):
    """The values per request; a list is empty where the file has none."""

    ttfts: list[float | None] = []
    itls: list[list[float]] = []
    input_lens: list[int | None] = []
    output_lens: list[int | None] = []
    errors: list[str | None] = []
    start_times: list[float | None] = []
    queue_times: list[float | None] = []
    latencies: list[float | None] = []


def is_vllm(document: dict[str, Any]) -> bool:
    """Whether vLLM wrote it."""
    return "request_throughput" in document and "model_id" in document


def is_sglang(document: dict[str, Any]) -> bool:
    """Whether SGLang wrote it: unlike vLLM it names the data set and no model."""
    return "request_throughput" in document and "dataset_name" in document


def read(document: dict[str, Any]) -> Found:
    """The load test in one object.

    Raises:
        msgspec.ValidationError: a field is not of the kind that the tool writes.
    """
    vllm = is_vllm(document)
    told, load = _told(document), _load(document)
    arrays = msgspec.convert(document, _Arrays)
    rows, why, notes = _rows(arrays, load, told, sglang=not vllm)
    backend = document.get("backend") or document.get("endpoint_type")
    if load.in_flight and load.rate_rps:
        notes.append(
            f"the tool held back arrivals beyond {load.in_flight} in flight: the load was less "
            "than its rate says wherever that happened"
        )
    lengths = (document.get("random_input_len"), document.get("random_output_len"))
    return Found(
        tool=VLLM if vllm else SGLANG,
        load=load,
        told=told,
        rows=rows,
        why_no_rows=why,
        model=_text(document.get("model_id")) or _served(document),
        api=_text(backend),
        streamed=any(arrays.ttfts),
        started=_text(document.get("date")) and f"{document['date']} (local time)",
        workload=_workload(document.get("dataset_name"), lengths),
        notes=tuple(notes),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _served(document: dict[str, Any]) -> str | None:
    """The model that SGLang's server says it serves."""
    info = document.get("server_info")
    return _text(info.get("model_path")) if isinstance(info, dict) else None


def _workload(name: Any, lengths: tuple[Any, Any]) -> str | None:
    if not isinstance(name, str):
        return None
    return f"{name} {lengths[0]}/{lengths[1]}" if name.startswith("random") else name


def _number(value: Any) -> float | None:
    """A finite number, else None; vLLM writes an unlimited rate as "inf"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _told(document: dict[str, Any]) -> Told:
    ok = _number(document.get("completed"))
    failed = _number(document.get("failed"))
    if failed is None and _number(document.get("num_prompts")) is not None and ok is not None:
        failed = max(0.0, document["num_prompts"] - ok)

    def each(name: str) -> float | None:
        total = _number(document.get(name))
        return total / ok if total is not None and ok else None

    return Told(
        requests_ok=None if ok is None else int(ok),
        requests_failed=None if failed is None else int(failed),
        duration_s=_number(document.get("duration")),
        qps=_number(document.get("request_throughput")),
        output_tps=_number(document.get("output_throughput")),
        total_tps=_number(document.get("total_token_throughput", document.get("total_throughput"))),
        prompt_tokens=each("total_input_tokens"),
        output_tokens=each("total_output_tokens"),
        ttft=_statistics(document, "ttft"),
        tpot=_statistics(document, "tpot"),
        e2e=_statistics(document, "e2el") or _statistics(document, "e2e_latency"),
    )


def _statistics(document: dict[str, Any], metric: str) -> dict[str, float]:
    found = {ours: _number(document.get(f"{s}_{metric}_ms")) for s, ours in _STATISTICS.items()}
    return {name: value / 1e3 for name, value in found.items() if value is not None}


def _load(document: dict[str, Any]) -> Load:
    rate, limit = document.get("request_rate"), _number(document.get("max_concurrency"))
    burstiness = document.get("burstiness", 1.0)
    endless = isinstance(burstiness, float) and math.isinf(burstiness)
    rate_rps = _number(rate)
    told = rate is not None and rate != "trace"
    return Load(
        in_flight=None if limit is None else int(limit),
        rate_rps=rate_rps,
        burstiness=None if endless else _number(burstiness) or 1.0,
        at_once=told and rate_rps is None and limit is None,
    )


def _rows(
    arrays: _Arrays, load: Load, told: Told, *, sglang: bool
) -> tuple[tuple[Row, ...], str, list[str]]:
    """The requests, why there are none, and what is to be known of them."""
    count = len(arrays.ttfts)
    if not count:
        option = "--output-details" if sglang else "--save-detailed"
        return (), f"the file has no figures per request: it was written without {option}", []
    rows = tuple(_row(arrays, i, sglang) for i in range(count))
    notes = _notes(rows)
    if all(row.sent_s is not None for row in rows):
        return rows, "", notes
    slots = count if load.at_once else load.in_flight
    placed = None
    if slots is not None and slots > 0 and load.rate_rps is None:
        # A failure without a length is taken for one that was refused at once.
        known = [r if r.latency_s is not None else _ended_at_once(r) for r in rows]
        placed = replayed(known, slots, told.duration_s)
    if placed is None:
        why = "the file does not tell when requests were sent, and it does not follow from the rest"
        return (), why, []
    return placed, "", [*notes, _REDONE]


def _ended_at_once(row: Row) -> Row:
    return msgspec.structs.replace(row, latency_s=0.0)


def _row(arrays: _Arrays, i: int, sglang: bool) -> Row:
    ttft_s = _at(arrays.ttfts, i) or None  # 0: not streamed, or failed before
    gaps_s = _at(arrays.itls, i) or []
    error = _at(arrays.errors, i) or ""
    tokens = _at(arrays.output_lens, i)
    failed = bool(error) or (not tokens and ttft_s is None)
    first, steps = None, [(gap_s, 0) for gap_s in gaps_s]
    if sglang:
        steps = _joined(gaps_s)
        first = (tokens or 0) - sum(count for _, count in steps)
    elif tokens == len(gaps_s) + 1:
        steps, first = [(gap_s, 1) for gap_s in gaps_s], 1
    told = first is not None and first > 0
    sent_s, waited_s = _at(arrays.start_times, i), _at(arrays.queue_times, i)
    at_s = [] if ttft_s is None else chunks(ttft_s, [gap_s for gap_s, _ in steps])
    return Row(
        sent_s=sent_s,
        planned_s=None if sent_s is None or waited_s is None else sent_s - waited_s,
        latency_s=_at(arrays.latencies, i) or (at_s[-1] if at_s else None),
        ttft_s=ttft_s,
        chunk_s=at_s,
        chunk_tokens=[first or 0, *(count for _, count in steps)] if told and at_s else [],
        prompt_tokens=_at(arrays.input_lens, i),
        output_tokens=None if failed else tokens,
        outcome=failure(error) if failed else Row().outcome,
        error=last_line(error) or None,
    )


def _joined(itls_s: Sequence[float]) -> list[tuple[float, int]]:
    """The gaps before chunks, with their tokens, from the equal shares that SGLang makes of them.

    >>> _joined([0.25, 0.25, 0.1])
    [(0.5, 2), (0.1, 1)]
    """
    runs = [(value, len(list(same))) for value, same in itertools.groupby(itls_s)]
    return [(value * count, count) for value, count in runs]


def _at(values: Sequence[Any], i: int) -> Any:
    return values[i] if i < len(values) else None


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = ["token counts are the tool's: the server's where it sent them, else re-tokenised text"]
    if any(row.error or row.output_tokens is None for row in rows):
        notes.append("the file does not tell when failed requests ended: they end where they began")
    return notes

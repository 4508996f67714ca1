"""The same eight-user test as each tool would have written it down (formats of 2024 to 2026)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

USERS = 8
EPOCH_S = 1_760_000_000.0


class Asked(NamedTuple):
    """One request: when it was sent, then seconds since that; tokens of each chunk."""

    sent_s: float
    ttft_s: float
    gaps_s: list[float]
    tokens: list[int]
    prompt_tokens: int
    error: str

    @property
    def latency_s(self) -> float:
        return self.ttft_s + sum(self.gaps_s)


def asked(count: int = 120, *, failed: int = 2) -> list[Asked]:
    """A closed loop of eight, without thinking; the last *failed* requests are refused at once."""
    rng = random.Random(7)
    free = [0.0] * USERS
    made = []
    for number in range(count):
        sent_s = min(free)
        bad = number >= count - failed
        chunks = 0 if bad else rng.randint(10, 30)
        one = Asked(
            sent_s=sent_s,
            ttft_s=0.0 if bad else rng.uniform(0.1, 0.4),
            gaps_s=[rng.uniform(0.02, 0.04) for _ in range(chunks)],
            tokens=[] if bad else [1, *(rng.choice((1, 1, 2)) for _ in range(chunks))],
            prompt_tokens=rng.randint(50, 200),
            error="Service Unavailable" if bad else "",
        )
        made.append(one)
        free[free.index(sent_s)] = sent_s + one.latency_s + 1e-5  # what a client takes
    return made


def duration_s(requests: list[Asked]) -> float:
    return max(r.sent_s + r.latency_s for r in requests)


def good(requests: list[Asked]) -> list[Asked]:
    return [r for r in requests if not r.error]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def tpot_s(r: Asked) -> float:
    return (r.latency_s - r.ttft_s) / (sum(r.tokens) - 1)


def _aggregates(requests: list[Asked]) -> dict[str, Any]:
    fine, span_s = good(requests), duration_s(requests)
    output = sum(sum(r.tokens) for r in fine)
    return {
        "duration": span_s,
        "completed": len(fine),
        "total_input_tokens": sum(r.prompt_tokens for r in fine),
        "total_output_tokens": output,
        "request_throughput": len(fine) / span_s,
        "output_throughput": output / span_s,
        "mean_ttft_ms": _mean([r.ttft_s for r in fine]) * 1e3,
        "median_ttft_ms": sorted(r.ttft_s for r in fine)[len(fine) // 2] * 1e3,
        "p99_ttft_ms": max(r.ttft_s for r in fine) * 1e3,
        "mean_tpot_ms": _mean([tpot_s(r) for r in fine]) * 1e3,
    }


def _arrays(requests: list[Asked]) -> dict[str, Any]:
    return {
        "input_lens": [r.prompt_tokens for r in requests],
        "output_lens": [sum(r.tokens) for r in requests],
        "ttfts": [r.ttft_s for r in requests],
        "itls": [r.gaps_s for r in requests],
        "generated_texts": ["a\u2028b" for _ in requests],
        "errors": [r.error for r in requests],
    }


def vllm(
    requests: list[Asked], *, detailed: bool = True, starts: bool = True, **other: Any
) -> dict[str, Any]:
    """`vllm bench serve --save-result [--save-detailed]` of 2026; *starts*: since late 2025."""
    document = {
        "date": "20261101-101500",
        "endpoint_type": "openai-chat",
        "backend": "openai-chat",
        "label": None,
        "model_id": "meta-llama/Llama-3.1-8B-Instruct",
        "tokenizer_id": "meta-llama/Llama-3.1-8B-Instruct",
        "num_prompts": len(requests),
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": USERS,
        **_aggregates(requests),
        "failed": len(requests) - len(good(requests)),
        "total_token_throughput": 0.0,
    }
    if detailed:
        document |= _arrays(requests)
    if detailed and starts:
        document["start_times"] = [5000.0 + r.sent_s for r in requests]
    return document | other


def sglang(requests: list[Asked], *, detailed: bool = True, **other: Any) -> dict[str, Any]:
    """One line of `python -m sglang.bench_serving --output-file F [--output-details]`."""
    document = {
        "tag": None,
        "backend": "sglang",
        "dataset_name": "random",
        "request_rate": float("inf"),
        "max_concurrency": USERS,
        "random_input_len": 1024,
        "random_output_len": 128,
        "server_info": {"model_path": "Qwen/Qwen3-8B"},
        **_aggregates(requests),
        "total_output_tokens_retokenized": 7,
        "mean_e2e_latency_ms": _mean([r.latency_s for r in good(requests)]) * 1e3,
        "accept_length": None,
    }
    if detailed:
        document |= _arrays(requests)
        document["itls"] = [
            [gap_s / k for gap_s, k in zip(r.gaps_s, r.tokens[1:], strict=True) for _ in range(k)]
            for r in requests
        ]
    return document | other


def guidellm(requests: list[Asked], *, old: bool = False) -> dict[str, Any]:
    """`benchmarks.json` of 0.6, or of 0.2 (*old*)."""

    def one(number: int, r: Asked) -> dict[str, Any]:
        start_s = EPOCH_S + r.sent_s
        counts = {"prompt_tokens": r.prompt_tokens, "output_tokens": sum(r.tokens) or None}
        first_s = start_s + r.ttft_s if r.tokens else None
        last_s = start_s + r.latency_s if r.tokens else None
        if old:
            times = {"start_time": start_s, "end_time": start_s + r.latency_s}
            tokens = {"first_token_time": first_s, "last_token_time": last_s}
            error = {"error": r.error} if r.error else {}
            return {"request_id": str(number), **counts, **times, **tokens, **error}
        timings = {
            "targeted_start": None,
            "request_start": start_s,
            "first_token_iteration": first_s,
            "last_token_iteration": last_s,
            "request_end": start_s + r.latency_s,
            "token_iterations": len(r.tokens),
        }
        info = {"status": "completed", "timings": timings, "error": r.error or None}
        latency = {"request_latency": r.latency_s, "time_to_first_token_ms": r.ttft_s * 1e3}
        return {"request_id": str(number), "info": info, **counts, **latency}

    fine, bad = good(requests), [r for r in requests if r.error]
    ttfts_ms = [r.ttft_s * 1e3 for r in fine]
    strategy = {"type_": "concurrent", "streams": USERS}
    test = {
        "type_": "generative_benchmark",
        ("args" if old else "config"): {"strategy": strategy},
        "duration": duration_s(requests),
        "metrics": {
            "request_totals": {"successful": len(fine), "errored": len(bad), "total": 0},
            "time_to_first_token_ms": {"successful": {"mean": _mean(ttfts_ms), "percentiles": {}}},
        },
        "requests": {
            "successful": [one(i, r) for i, r in enumerate(fine)],
            "incomplete": [],
            "errored": [one(i, r) for i, r in enumerate(bad)],
            "total": None,
        },
    }
    args = {"target": "http://127.0.0.1:8000", "model": "m", "backend_type": "openai"}
    return {"args": args, "benchmarks": [test]}


def aiperf(requests: list[Asked]) -> tuple[str, dict[str, Any]]:
    """`profile_export.jsonl` and `profile_export_aiperf.json` of 0.12."""
    lines = []
    for number, r in enumerate([requests[0], *requests]):
        start_ns = int((EPOCH_S + r.sent_s) * 1e9)
        metadata = {
            "session_num": number,
            "x_request_id": f"r{number}",
            "x_correlation_id": f"c{number}",
            "turn_index": 0,
            "request_start_ns": start_ns,
            "request_end_ns": start_ns + int(r.latency_s * 1e9),
            "benchmark_phase": "profiling" if number else "warmup",
            "was_cancelled": False,
        }
        metrics: dict[str, Any] = {"error_isl": {"value": 1, "unit": "tokens"}}
        error = {"code": 503, "type": "HTTPError", "message": r.error} if r.error else None
        if not r.error:
            metrics = {
                "input_sequence_length": {"value": r.prompt_tokens, "unit": "tokens"},
                "output_sequence_length": {"value": sum(r.tokens), "unit": "tokens"},
                "time_to_first_token": {"value": r.ttft_s * 1e3, "unit": "ms"},
                "request_latency": {"value": r.latency_s * 1e3, "unit": "ms"},
                "inter_chunk_latency": {"value": [g * 1e3 for g in r.gaps_s], "unit": "ms"},
                "http_req_chunks": {"value": [[1, 2]], "unit": "tuple"},
            }
        lines.append(json.dumps({"metadata": metadata, "metrics": metrics, "error": error}))
    told, fine = _aggregates(requests), good(requests)
    whole = {
        "schema_version": "1.5",
        "aiperf_version": "0.12.0",
        "request_throughput": {"unit": "requests/sec", "avg": told["request_throughput"]},
        "request_count": {"unit": "requests", "avg": float(len(fine))},
        "error_request_count": {"unit": "requests", "avg": float(len(requests) - len(fine))},
        "time_to_first_token": {
            "unit": "ms", "avg": told["mean_ttft_ms"], "p50": told["median_ttft_ms"],
            "p99": told["p99_ttft_ms"],
        },
        "inter_token_latency": {"unit": "ms", "avg": told["mean_tpot_ms"]},
        "request_latency": {"unit": "ms", "avg": _mean([r.latency_s for r in fine]) * 1e3},
        "output_token_throughput": {"unit": "tokens/sec", "avg": told["output_throughput"]},
        "input_config": {
            "endpoint": {"model_names": ["m"], "type": "chat"}, "loadgen": {"concurrency": USERS},
        },
    }  # fmt: skip
    return "\n".join(lines) + "\n", whole


def genai_perf(requests: list[Asked]) -> dict[str, Any]:
    """perf_analyzer's `profile_export.json`, with usage figures in the last event."""
    made = []
    for r in requests:
        start_ns = int((EPOCH_S + r.sent_s) * 1e9)
        at_s, events = r.ttft_s, ['data: {"choices":[{"delta":{"role":"assistant","content":""}}]}']
        stamps = [start_ns + 1000]
        for gap_s in [0.0, *r.gaps_s] if r.tokens else []:
            at_s += gap_s
            stamps.append(start_ns + int(at_s * 1e9))
            events.append('data: {"choices":[{"delta":{"content":"x"}}]}')
        if r.error:
            events[-1] = 'data: {"error": {"message": "Service Unavailable"}}'
        usage = {"prompt_tokens": r.prompt_tokens, "completion_tokens": sum(r.tokens)}
        events[-1] += f'\n\ndata: {{"choices":[],"usage":{json.dumps(usage)}}}\n\ndata: [DONE]\n\n'
        made.append(
            {
                "timestamp": start_ns,
                "request_inputs": {"payload": "{}"},
                "response_timestamps": stamps,
                "response_outputs": [{"response": event} for event in events],
            }
        )
    experiment = {"mode": "concurrency", "value": USERS}
    return {
        "service_kind": "openai",
        "endpoint": "v1/chat/completions",
        "experiments": [{"experiment": experiment, "requests": made, "window_boundaries": []}],
        "version": "2.59.0",
    }


GENAI_CSV = """\
Metric,avg,min,max,p99,p95,p90,p75,p50,p25
Time To First Token (ms),250.00,100.00,400.00,399.00,380.00,370.00,330.00,250.00,170.00
Inter Token Latency (ms),25.00,20.00,30.00,29.00,28.00,28.00,27.00,25.00,22.00
Request Latency (ms),"1,250.00",100.00,400.00,399.00,380.00,370.00,330.00,250.00,170.00
Output Sequence Length (tokens),41.00,10.00,60.00,60.00,59.00,58.00,50.00,41.00,30.00

Metric,Value
Output Token Throughput (tokens/sec),262.4
Request Throughput (requests/sec),6.4
Request Count (count),118.00
"""


def files(folder: Path) -> dict[str, Path]:
    """One file of each tool that has figures per request."""
    requests = asked()
    lines, whole = aiperf(requests)
    texts = {
        "vllm.json": json.dumps(vllm(requests)),
        "vllm-old.json": json.dumps(vllm(requests, starts=False)),
        "sglang.jsonl": json.dumps(sglang(requests)) + "\n",
        "benchmarks.json": json.dumps(guidellm(requests)),
        "benchmarks-0.2.json": json.dumps(guidellm(requests, old=True)),
        "profile_export.jsonl": lines,
        "profile_export_aiperf.json": json.dumps(whole),
        "profile_export.json": json.dumps(genai_perf(requests)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in texts if name != "profile_export_aiperf.json"}

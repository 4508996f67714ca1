"""Public measurements as rows of the engine model; each with what is known of its test."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from servecap import slo as slos
from servecap.cell import Cell
from servecap.engine.scheduler import ChunkedPrefill, Policy
from servecap.engine.spec import EngineKind, sglang_policy
from servecap.matrix import files
from servecap.predict import profile, rows
from servecap.predict.calibrate import Measured
from servecap.predict.figures import Case
from servecap.predict.harness import Harness, Lengths
from servecap.predict.place import Place, place

DATA = Path(__file__).resolve().parents[3] / "shared/data"
VALIDATION = DATA / "validation"
TOLERANCE = slos.parse("ttft.mean<3.2s,tpot.mean<110ms")
TTFT_ALONE = slos.parse("ttft.mean<3.2s")

# Rates that no closed loop of these users can have (docs: audit by Little's law), by line.
_IMPOSSIBLE_RATES = {("llama-13b", "V100", 4), ("llama-13b", "A100", 1)}
# "could be more users" says the table of this row: its users are no capacity.
_NO_CAPACITY = {("llama-13b", "A100", 1)}


def chat_matrix() -> list[Measured]:
    """The 22 chat cells. Rates as in the file, but for those that are impossible."""
    path = DATA / "matrix_chat.csv"
    cells = files.read(path).cells
    with path.open(newline="") as file:
        raw = [float(r["requests_per_s"]) for r in csv.DictReader(file)]
    found, _ = rows.measured(cells, rows.Rules(slo=TOLERANCE), tuning=profile.prior("tgi").tuning)
    return [
        msgspec.structs.replace(
            row,
            requests_per_s=None if _key(cell) in _IMPOSSIBLE_RATES else rate,
            slo=None if _key(cell) in _NO_CAPACITY else row.slo,
        )
        for row, cell, rate in zip(found, cells, raw, strict=True)
    ]


def _key(cell: Cell) -> tuple[str, str, int]:
    return cell.model, cell.gpu, cell.tp


def h100(*, together: bool, fp8: bool = False) -> list[tuple[str, Measured]]:
    """Closed loops of fixed lengths without think time on H100s, 16-bit or fp8 weights; by engine.

    *together*: all users start at once, and with equal lengths stay in step; else spread.
    """
    found = []
    for r in _table("serving_concurrency_h100.csv"):
        if (r["precision"] == "fp8") != fp8 or r["mode"] != "agg":
            continue
        users = int(r["batch_size"])
        harness = Harness(
            engine=_ENGINES[r["backend"]],
            queue=max(8 * users, 64) if together else None,
            think_s=(0.0, 0.0),
            scheduler=_scheduler(r["backend"]),
        )
        lengths = Lengths(
            prompt_tokens=int(r["isl"]),
            output_tokens=int(r["osl"]),
            prompt_spread=0.0,
            output_spread=0.0,
        )
        weights = "fp8" if fp8 else None
        where = place(r["model_path"], "h100-sxm", int(r["tp_size"]), weights=weights)
        row = Measured(
            case=Case(place=where, lengths=lengths, harness=harness),
            users=users,
            slo=None,
            ttft_s=float(r["silicon_ttft_ms"]) / 1e3,
            tpot_s=float(r["silicon_tpot_ms"]) / 1e3,
            label=f"{r['backend']} {r['model_path']}",
        )
        found.append((r["backend"], row))
    return found


# As the rows' versions are: SGLang 0.5 and TensorRT-LLM 1.0 plan steps ahead by default (its
# documentation: "overlap scheduler"), vLLM 0.12 does not yet (0.14 does).
_ENGINES: dict[str, EngineKind] = {"sglang": "sglang", "trtllm": "vllm", "vllm": "vllm-2025"}


def _scheduler(backend: str) -> Policy:
    if backend == "sglang":
        return sglang_policy(max_running=512)
    return ChunkedPrefill(step_tokens=8192, max_running=512, plans_ahead=backend == "trtllm")


def lmdeploy() -> list[Measured]:
    """Closed loops without think time on A100-80GB, LMDeploy 0.1 (2023), ShareGPT lengths."""
    found = []
    for r in _table("lmdeploy_a100_fp16_requests.csv"):
        rate = float(r["PRS"])
        output = float(r["throughput(out tok/s)"]) / rate
        total = float(r["throughput(total tok/s)"]) / rate
        scheduler = ChunkedPrefill(step_tokens=8192)  # TurboMind of 2023 plans no step ahead
        harness = Harness(queue=1500, think_s=(0.0, 0.0), scheduler=scheduler)
        found.append(
            Measured(
                case=Case(
                    place=_turbomind(place(r["model"], "a100-80gb", int(r["tp"]))),
                    lengths=Lengths(prompt_tokens=total - output, output_tokens=output),
                    harness=harness,
                ),
                users=int(r["batch"]),
                slo=None,
                ttft_s=float(r["FTL(ave)(s)"]),
                requests_per_s=rate,
                label=f"{r['model']} TP{r['tp']} batch {r['batch']}",
            )
        )
    return found


def _turbomind(where: Place) -> Place:
    """Its kernels for decoding are its own, not vLLM's for all that such a GPU knows."""
    device = msgspec.structs.replace(where.gpu, compute_capability=None)
    return msgspec.structs.replace(where, gpu=device)


class Log(msgspec.Struct, frozen=True):
    """A recorded open-loop run: times in seconds since the first arrival.

    Arrivals are the front end's own. The engine's "queued" comes later: it takes who has come from
    its queue between two steps only, so that half a step of waiting, on average, is over by then.
    The two clocks are put together where that took the least.
    """

    name: str
    gpu: str
    model: str
    kv_tokens: int | None
    max_running: int
    step_tokens: int
    arrival_s: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    first_s: np.ndarray
    last_s: np.ndarray


def vllm_logs() -> Iterator[Log]:
    """Real vLLM 0.19 runs, request by request."""
    devices = {"RTX4090": "rtx-4090", "RTXPRO6000": "rtx-pro-6000"}
    for path in sorted((VALIDATION / "vllm_requests").glob("*.meta.json")):
        name = path.name.removesuffix(".meta.json")
        meta = json.loads(path.read_text())
        lines = path.with_name(f"{name}.requests.jsonl").read_text().splitlines()
        requests = sorted(map(json.loads, lines), key=lambda r: float(r["arrival_time"]))
        first = requests[0]["arrival_time"]
        start = first + min(r["queued_ts"] - r["arrival_time"] for r in requests)

        def column(key: str, requests: list[dict[str, float]] = requests) -> np.ndarray:
            return np.array([r[key] for r in requests])

        yield Log(
            name,
            devices[name.split("_")[0]],
            "llama-3.1-8b",
            (meta.get("kv_cache") or {}).get("num_kv_tokens"),
            meta["engine_kwargs"]["max_num_seqs"],
            meta["engine_kwargs"]["max_num_batched_tokens"],
            column("arrival_time") - first,
            column("input_toks").astype(np.int64),
            column("output_toks").astype(np.int64),
            column("first_token_ts") - start,
            column("last_token_ts") - start,
        )


def splitwise() -> list[tuple[str, str, int, int, int, float, float]]:
    """Static batches: hardware, model, TP, batch, prompt tokens, prefill s, decode step s."""
    groups: dict[tuple[str, str, int, int, int], list[tuple[float, float]]] = {}
    for r in _table("splitwise_perf_model.csv"):
        if r["model"] != "llama2-70b" or r["hardware"] not in ("a100-80gb", "h100-80gb"):
            continue
        key = (r["hardware"], r["model"], int(r["tensor_parallel"]), int(r["batch_size"]),
               int(r["prompt_size"]))  # fmt: skip
        groups.setdefault(key, []).append((float(r["prompt_time"]), float(r["token_time"])))
    return [
        (*key, float(np.median([p for p, _ in v])) / 1e3, float(np.median([t for _, t in v])) / 1e3)
        for key, v in groups.items()
    ]


def _table(name: str) -> list[dict[str, str]]:
    with (VALIDATION / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

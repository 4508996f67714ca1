"""Errors of predictions: signed and absolute, by regime, and the coverage of intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import accelmark
import data
import msgspec
import numpy as np

from servecap.engine import fast
from servecap.engine.cost import StepWork
from servecap.engine.kv import BLOCK_TOKENS
from servecap.engine.memory import kv_tokens
from servecap.engine.spec import vllm_policy
from servecap.predict import calibrate, profile, uncertainty, untold
from servecap.predict.calibrate import Measured
from servecap.predict.intervals import kind_of
from servecap.predict.place import place
from servecap.predict.profile import Profile, Spread


class Error(msgspec.Struct, frozen=True):
    """One figure of one row; `inside`: the 80% interval held the truth (None: none was given)."""

    regime: str
    figure: str
    truth: float
    predicted: float
    inside: bool | None = None
    label: str = ""

    @property
    def relative(self) -> float:
        return self.predicted / self.truth - 1


def errors(
    rows: Iterable[Measured], known: Profile, regime: str, *, intervals: bool = False
) -> list[Error]:
    """Each figure of each row against the profile; with the product's own intervals, if asked."""
    found = []
    for row in rows:
        model = predicted(row, known)
        main = msgspec.structs.replace(row, case=untold.as_fitted(row.case, known))
        spreads = spreads_of(main, known) if intervals else {}
        for figure, truth in calibrate.truth(row).items():
            inside = None
            if figure in spreads:
                off = math.log(truth / max(model[figure], _least(figure)))
                inside = spreads[figure].low <= off <= spreads[figure].high
            found.append(Error(regime, figure, truth, model[figure], inside, row.label))
    return found


def predicted(row: Measured, known: Profile) -> dict[str, float]:
    """The row's figures, as `servecap predict` tells them."""
    at = untold.figures(row.case, known, row.users, seeds=8)
    found = {
        "ttft_s": at.ttft_s,
        "tpot_s": at.tpot_s,
        "requests_per_s": at.requests_per_s,
    }
    if row.slo is not None:
        found["max_users"] = float(untold.capacity(row.case, known, row.slo, seeds=8)[0])
    return found


def spreads_of(row: Measured, known: Profile) -> dict[str, Spread]:
    """How far the truths may lie from the predictions, as `servecap predict` tells it."""
    tuning = known.tuning(row.case.place.gpu)
    kind = kind_of(row.case, known, row.case.figures(tuning, row.users, seeds=2))
    middle = calibrate.predicted(row, known)
    drawn = [calibrate.predicted(row, profile) for profile in known.drawn()]
    found = {}
    for figure, value in middle.items():
        least = _least(figure)
        logs = [math.log(max(d[figure], least) / max(value, least)) for d in drawn]
        spread = uncertainty.spread_of(known, kind, figure)
        if spread is not None:
            unsure = float(np.sqrt(np.mean(np.square(logs)))) if logs else 0.0
            found[figure] = uncertainty.joined(spread, unsure)
    return found


def _least(figure: str) -> float:
    return 0.5 if figure == "max_users" else 1e-9


def folds(rows: list[Measured], group: Callable[[Measured], str], regime: str) -> list[Error]:
    """Each group predicted by a fit to the others; intervals from these others alone, too."""
    found = []
    for name in sorted({group(row) for row in rows}):
        kept = [row for row in rows if group(row) != name]
        fitted = untold.fit(kept, profile.prior("tgi"), name="fold")
        known = uncertainty.with_spreads(fitted)
        found += of_matrix([row for row in rows if group(row) == name], known, regime)
    return found


TTFT_ALONE = "max_users, newer rows by TTFT alone"


def of_matrix(rows: list[Measured], known: Profile, regime: str) -> list[Error]:
    """All figures, and the capacities again with the newer rows' held to TTFT alone."""
    found = errors(rows, known, regime, intervals=True)
    newer = [row for row in rows if row.case.harness.queue is not None]
    alone = [
        msgspec.structs.replace(
            row, slo=data.TTFT_ALONE, ttft_s=None, tpot_s=None, requests_per_s=None
        )
        for row in newer
    ]
    labels = {row.label for row in newer}
    again = [e for e in found if e.figure == "max_users" and e.label not in labels]
    again += errors(alone, known, regime, intervals=True)
    return found + [msgspec.structs.replace(e, figure=TTFT_ALONE) for e in again]


def matrix() -> list[Error]:
    """matrix_chat.csv: without calibration, and by left-out cell, GPU and model."""
    rows = data.chat_matrix()
    gpu = lambda row: row.case.place.gpu.name  # noqa: E731
    model = lambda row: row.case.place.model.name  # noqa: E731
    return [
        *of_matrix(rows, profile.prior("tgi"), "public specs only"),
        *folds(rows, lambda r: f"{gpu(r)} {model(r)}", "left-out GPU+model cell"),
        *folds(rows, gpu, "left-out GPU"),
        *folds(rows, model, "left-out model"),
    ]


def at_a_limit(found: list[Error]) -> list[Error]:
    """The capacities whose rows stand at a limit (within a sixth) and keep both, as a regime."""
    bounds = {"ttft_s": 3.2, "tpot_s": 0.11}
    shares: dict[str, list[float]] = {}
    for e in found:
        if e.regime == "public specs only" and e.figure in bounds:
            shares.setdefault(e.label, []).append(e.truth / bounds[e.figure])
    kept = {label for label, s in shares.items() if 5 / 6 <= max(s) <= 1}
    return [
        msgspec.structs.replace(e, figure="max_users at a limit")
        for e in found
        if e.figure == "max_users" and e.label in kept
    ]


def h100() -> list[Error]:
    """The concurrency rows: as they are, and after a fit to a random 5% of each engine's.

    Whether the users start together is not told; the rows of the sample decide that, too.
    """
    found = []
    both = [data.h100(together=True), data.h100(together=False)]
    for backend in sorted({b for b, _ in both[0]}):
        variants = [[row for b, row in rows if b == backend] for rows in both]
        start = profile.prior(variants[0][0].case.harness.engine)
        found += errors(variants[0], start, f"{backend}, not calibrated")
        count = len(variants[0])
        sample = random.Random(0).sample(range(count), max(2, round(0.05 * count)))
        fits = [calibrate.fit([v[k] for k in sample], start, name=backend) for v in variants]
        off = [sum(np.abs(np.concatenate(f.errors))) for f in fits]
        best = off.index(min(off))
        rest = [row for k, row in enumerate(variants[best]) if k not in sample]
        how = "together" if best == 0 else "spread"
        regime = f"{backend}, fit to {len(sample)} of {count} rows; starts {how}"
        found += errors(rest, uncertainty.with_spreads(fits[best]), regime, intervals=True)
    return found


def h100_fp8() -> list[Error]:
    """The concurrency rows with fp8 weights, as they are."""
    found = []
    for backend in ("trtllm", "vllm"):
        rows = [row for b, row in data.h100(together=True, fp8=True) if b == backend]
        start = profile.prior(rows[0].case.harness.engine)
        found += errors(rows, start, f"{backend}, fp8, not calibrated")
    return found


def replays() -> list[Error]:
    """The vLLM logs: quantiles of the replayed run against those recorded; nothing is fitted."""
    found = []
    for log in data.vllm_logs():
        where = place(log.model, log.gpu, 1)
        known = profile.prior("vllm")
        room = log.kv_tokens or kv_tokens(
            where.model, where.gpu, 1, step_tokens=log.step_tokens, sequences=log.max_running
        )
        once = np.full(len(log.prompt), np.inf)  # thinks for ever: nobody comes twice
        traffic = fast.Traffic(
            log.arrival_s, log.prompt, log.output, log.output, once, own_blocks(log.prompt)
        )
        got = fast.serve(
            where.coefficients(known.tuning(where.gpu)),
            vllm_policy(step_tokens=log.step_tokens, max_running=log.max_running),
            traffic,
            kv_tokens=room,
            max_context_tokens=32768,
        )
        later = np.maximum(log.output - 1, 1)
        columns = {
            "ttft_s": (log.first_s - log.arrival_s, got.first_s - got.planned_s),
            "tpot_s": ((log.last_s - log.first_s) / later, (got.end_s - got.first_s) / later),
            "e2e_s": (log.last_s - log.arrival_s, got.end_s - got.planned_s),
        }
        for figure, (truth, model) in columns.items():
            for share, name in ((0.5, "p50"), (0.9, "p90")):
                found.append(
                    Error(log.name, f"{figure} {name}", float(np.quantile(truth, share)),
                          float(np.quantile(model, share)))
                )  # fmt: skip
    return found


def own_blocks(prompt: np.ndarray) -> fast.Prefixes:
    """Keys that no other prompt has: who was preempted finds in the cache what is left of its own.

    The log says that the cache was on, vLLM's default; of what prompts share it says nothing.
    Blocks of answers are the first to go where memory is short, and are left out.
    """
    counts = prompt // BLOCK_TOKENS
    at = np.concatenate([[0], np.cumsum(counts)])
    return fast.Prefixes(np.arange(at[-1]), at, int(at[-1]))


def lmdeploy() -> list[Error]:
    """LMDeploy's request benchmark, not calibrated."""
    return errors(data.lmdeploy(), profile.prior("vllm-2025"), "LMDeploy 0.1 on A100-80GB")


def accelmark_rows() -> list[Error]:
    """AccelMark's tests, not calibrated."""
    found = [
        Error(r.regime, r.figure, r.truth, r.predicted, None, r.label) for r in accelmark.rows()
    ]
    return sorted(found, key=lambda e: (e.regime, e.figure))


def splitwise() -> list[Error]:
    """Single steps of static batches, not calibrated."""
    found = []
    for device, model, tp, batch, prompt, prefill_s, decode_s in data.splitwise():
        where = place(model, "a100-80gb" if device.startswith("a100") else "h100-sxm", tp)
        cost = where.coefficients(profile.prior("vllm-2023").tuning(where.gpu))
        tokens = batch * prompt
        prefill = StepWork(0, 0, tokens, batch * prompt * (prompt + 1) / 2, 0, batch, batch)
        decode = StepWork(batch, batch * (prompt + 64), 0, 0.0, 0, batch)
        for figure, truth, work in (
            ("prefill_s", prefill_s, prefill),
            ("step_s", decode_s, decode),
        ):
            found.append(Error(f"{device} TP{tp}", figure, truth, cost.step_s(work)))
    return found

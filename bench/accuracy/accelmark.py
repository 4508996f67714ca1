"""AccelMark's rows (Apache-2.0): single requests, fixed concurrency, batches, arrivals.

Nothing is fitted. What its suites say of themselves (README.md and suite.json there): numbers of
requests, at most 512 answer tokens (256 for long prompts and the small model), arrivals as a
Poisson process. Mean lengths are those that rows tell which name tokens in and out per second:
256 and 343 for chat, 105 and 214 for the small model, 28,650 and 255 for long prompts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

import data
import msgspec
import numpy as np
from numpy.typing import NDArray

from servecap.engine import fast
from servecap.engine.memory import kv_tokens
from servecap.engine.scheduler import Policy, Vllm2023
from servecap.engine.spec import EngineKind, sglang_policy, usual_running, vllm_policy
from servecap.errors import UsageError
from servecap.predict import profile
from servecap.predict.harness import Lengths, drawn
from servecap.predict.place import Place, place

CHAT = Lengths(prompt_tokens=256, output_tokens=343, prompt_spread=0.8, output_spread=0.63)


class Suite(msgspec.Struct, frozen=True):
    """What all rows of a suite have in common."""

    name: str
    lengths: Lengths
    longest: int  # answer, tokens
    together: int  # requests that are sent at once ("offline")
    arrivals: int  # requests that arrive ("online")
    alone: int  # requests one after the other ("interactive")
    context: int = 8192  # tokens


SUITES = {
    "suite_A": Suite("8B", CHAT, 512, 100, 300, 150),
    "suite_B": Suite("70B on 8", CHAT, 512, 100, 200, 50),
    "suite_C": Suite("8B", CHAT, 512, 100, 300, 150),
    "suite_D": Suite(
        "8B, prompts of 28,650 tokens",
        Lengths(prompt_tokens=28650, output_tokens=255, prompt_spread=0.02, output_spread=0.02),
        256, 50, 200, 100, 30208,
    ),
    "suite_E": Suite("8B on 1 to 8", CHAT, 512, 150, 300, 150),
    "suite_F": Suite(
        "0.5B",
        Lengths(prompt_tokens=105, output_tokens=214, prompt_spread=0.8, output_spread=0.4),
        256, 200, 300, 150,
    ),
    "suite_G": Suite("8x7B on 8", CHAT, 512, 100, 200, 50),
}  # fmt: skip
_WEIGHTS = {"W4A16": "int4", "W8A16": "int8-weights", "W8A8": "int8", "FP8": "fp8"}
_ENGINES: dict[tuple[str, str], EngineKind] = {
    ("vLLM", "0.7.3"): "vllm-2024",
    ("vLLM", "0.20.1"): "vllm",
    ("SGLang", "0.5.6"): "sglang",
}
# Machine whose rows the host's times of "vllm-2024" were read from (servecap.engine.cost).
_READ_FROM = "NVIDIA A100-SXM4-80GB"
# Single requests whose times per token some other number was read from: that nothing of the host
# grows with the number of GPUs (the first), and two cards' `read_share` (engine.hardware).
_TPOT_READ = {
    ("suite_B", "NVIDIA A800-SXM4-80GB"),
    ("suite_A", "NVIDIA GeForce RTX 4090 D"),
    ("suite_A", "NVIDIA RTX 6000 Ada Generation"),
}
_SUSTAINED_EACH = 60  # requests of each user; the test goes on for half an hour


class Row(msgspec.Struct, frozen=True):
    """One figure: where, of what test, and what was measured (seconds, or tokens/s)."""

    regime: str
    figure: str
    truth: float
    predicted: float
    label: str


def rows() -> Iterator[Row]:
    """All figures that are no overload's and that no number of the model was read from.

    Of arrivals the lowest rate only.
    """
    with (data.VALIDATION / "accelmark.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    rates: dict[str, float] = {}
    for r in table:
        if r["target_qps"]:
            rates[r["run"]] = min(rates.get(r["run"], np.inf), float(r["target_qps"]))
    for r in table:
        kind = _ENGINES.get((r["framework"], r["fw_version"].partition("+")[0]))
        overload = bool(r["target_qps"]) and float(r["target_qps"]) > rates[r["run"]]
        # How many long prompts arrived is not told: the tests' durations are of fewer than 200.
        long = r["suite"] == "suite_D" and r["scenario"] == "online"
        known = r["scenario"] in ("interactive", "sustained", "offline", "online")
        read_from = kind == "vllm-2024" and r["gpu"] == _READ_FROM
        if kind is None or overload or long or not known or read_from or r["oom"] == "True":
            continue
        yield from _figures(r, kind)


def _figures(r: dict[str, str], kind: EngineKind) -> Iterator[Row]:
    suite = SUITES[r["suite"]]
    try:
        where = place(r["model"], r["gpu"], int(r["tp"]), weights=_WEIGHTS.get(r["precision"]))
        answers, output = _served(r, kind, suite, where)
    except UsageError:
        return  # a GPU whose data sheet is not there
    front_s = profile.prior(kind).tuning(where.gpu).host.front_s
    stored = ", quantised" if r["precision"] in _WEIGHTS else ""
    regime = f"{r['framework']} {r['fw_version'].partition('+')[0]}, {suite.name}{stored}"
    label = f"{r['gpu']} {r['precision']} {r['scenario']}"
    alone = r["scenario"] == "interactive"
    if alone or r["scenario"] == "online":
        how = "alone" if alone else "arrivals"
        ttft = float(np.median(answers.first_s - answers.planned_s)) + front_s
        tpot = float(np.median((answers.end_s - answers.first_s) / np.maximum(output - 1, 1)))
        if not (alone and r["suite"] == "suite_F"):  # there `HostCost.front_s` was read
            yield Row(regime, f"ttft_s p50, {how}", float(r["ttft_p50"]) / 1e3, ttft, label)
        if not (alone and (r["suite"], r["gpu"]) in _TPOT_READ):
            yield Row(regime, f"tpot_s p50, {how}", float(r["tpot_p50"]) / 1e3, tpot, label)
    elif r["out_tok_s"]:
        how = "at once" if r["scenario"] == "offline" else "sustained"
        rate = float(output.sum() / (answers.end_s.max() - answers.planned_s.min()))
        yield Row(regime, f"tokens/s, {how}", float(r["out_tok_s"]), rate, label)


def _served(
    r: dict[str, str], kind: EngineKind, suite: Suite, where: Place
) -> tuple[fast.Answers, NDArray[np.int64]]:
    """The answers of the row's test, and their lengths.

    Raises:
        UsageError: the model does not fit.
    """
    running = int(float(r["max_num_seqs"])) if r["max_num_seqs"] else usual_running(kind, where.gpu)
    policy = _policy(kind, running, suite.context)
    room = kv_tokens(where.model, where.gpu, where.tp, step_tokens=suite.context, sequences=running)
    rng = np.random.default_rng(5797)
    start_s, count = _starts(r, suite, rng)
    comes_again = r["scenario"] in ("interactive", "sustained")
    think_s = np.full(count, 0.0 if comes_again else np.inf)
    lengths, longest = suite.lengths, suite.longest
    prompt = drawn(
        rng, lengths.prompt_tokens, lengths.prompt_spread, count, suite.context - longest
    )
    output = drawn(rng, lengths.output_tokens, lengths.output_spread, count, longest)
    answers = fast.serve(
        where.coefficients(profile.prior(kind).tuning(where.gpu)),
        policy,
        fast.Traffic(start_s, prompt, output, output, think_s),
        kv_tokens=room,
        max_context_tokens=suite.context,
        instances=int(float(r["dp"] or 1)),
    )
    return answers, output


def _starts(
    r: dict[str, str], suite: Suite, rng: np.random.Generator
) -> tuple[NDArray[np.float64], int]:
    """When users are first due, and how many requests there are."""
    match r["scenario"]:
        case "interactive":
            return np.zeros(1), suite.alone
        case "sustained":
            users = int(float(r["concurrency"]))
            return np.zeros(users), users * _SUSTAINED_EACH
        case "offline":
            return np.zeros(suite.together), suite.together
    gaps_s = rng.exponential(1 / float(r["target_qps"]), suite.arrivals)
    return np.cumsum(gaps_s), suite.arrivals


def _policy(kind: EngineKind, running: int, context: int) -> Policy:
    match kind:
        case "vllm-2024":
            return Vllm2023(max_running=running, step_tokens=context)
        case "sglang":
            return sglang_policy(max_running=running, step_tokens=context)
        case _:
            return vllm_policy(max_running=running, step_tokens=8192)

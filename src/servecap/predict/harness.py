"""The load test that a predicted figure is the figure of: users, lengths, stop rule, scheduler."""

from __future__ import annotations

import functools
import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from servecap.engine.fast import Prefixes, Traffic
from servecap.engine.kv import BLOCK_TOKENS
from servecap.engine.router import Routing
from servecap.engine.scheduler import (
    Policy,
    PrefillFirst,
    Vllm2023,
    static_batching,
)
from servecap.engine.spec import (
    EngineKind,
    llama_cpp_policy,
    sglang_policy,
    vllm_2025_policy,
    vllm_policy,
)

# Of prompt + answer, where a table tells only their sum. Source: the rows of the same tables that
# tell both (0.42 to 0.43 for chat); the caller may know better.
CHAT_OUTPUT_SHARE = 0.43


class Lengths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mean tokens of prompts and answers, and how much they vary (standard deviation / mean).

    Prompts and answers are drawn from log-normal distributions, independent of each other.
    Source of the default spread: 0.96 and 0.77 in the Azure 2023 conversation trace (19,366
    requests), 1.01 and 1.03 in BurstGPT.
    """

    prompt_tokens: float
    output_tokens: float
    prompt_spread: float = 1.0
    output_spread: float = 0.8


class Harness(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the load test is done, and what is told to the server.

    `queue`: requests in all, all users starting at once, measured to the last end (the classic
    stop rule). `cycles`: so many requests of each user, likewise; rates are those of Little's law,
    without the tail at the end. Neither: the steady state, of which a window is looked at.
    `start_s`: within which time the users of the first two start. `untold`: that time, and the
    number of cycles, are assumptions, for the source of the figures tells neither.
    `reserve_tokens`: what a prefill-first server reserves for each answer; None: `reserve_share`
    of the answer. A server that admits by the tokens that are there (LightLLM's token attention)
    holds half of each answer on average. `prefix_tokens`: with which all prompts begin, and which
    the server keeps. `instances`: equal servers behind one router.
    """

    engine: EngineKind = "vllm"
    queue: int | None = None
    cycles: int | None = None
    start_s: float = 0.0
    think_s: tuple[float, float] = (1.0, 3.0)
    reserve_tokens: int | None = None
    reserve_share: float = 1.0
    max_waiting_tokens: int = 20
    waiting_served_ratio: float = 1.2
    max_batch_prefill_tokens: int = 4096
    step_tokens: int = 2048
    max_running: int = 256
    memory_share: float = 0.9
    prefix_tokens: int = 0
    instances: int = 1
    routing: Routing = "least-load"
    untold: bool = False
    scheduler: Policy | None = None  # instead of the engine's with the settings above

    @property
    def policy(self) -> Policy:
        """The scheduler with these settings."""
        if self.scheduler is not None:
            return self.scheduler
        match self.engine:
            case "vllm":
                return vllm_policy(max_running=self.max_running, step_tokens=self.step_tokens)
            case "vllm-2025":
                return vllm_2025_policy(max_running=self.max_running, step_tokens=self.step_tokens)
            case "llama.cpp":
                return llama_cpp_policy(max_running=self.max_running, step_tokens=self.step_tokens)
            case "tgi":
                return PrefillFirst(
                    waiting_served_ratio=self.waiting_served_ratio,
                    max_waiting_tokens=self.max_waiting_tokens,
                    max_batch_prefill_tokens=self.max_batch_prefill_tokens,
                    max_running=self.max_running,
                )
            case "sglang":
                return sglang_policy(max_running=self.max_running, step_tokens=self.step_tokens)
            case "vllm-2024" | "vllm-2023":
                return Vllm2023(max_running=self.max_running)
            case "static":
                return static_batching(max_running=self.max_running)


_WARM_CYCLES, _WINDOW_CYCLES = 2, 4  # requests per user before and inside the window
_LEAST_REQUESTS = 300
_RAMP_TOKEN_S = 0.05
PROMPT_LIMIT_TOKENS = 1 << 20  # longer ones are cut
_ANSWER_LIMIT_TOKENS = 1024  # longest answer that is drawn; four in a hundred would be longer


def requests_of(harness: Harness, users: int) -> tuple[int, int]:
    """How many requests a run has, and how many of them come before what is measured."""
    if harness.queue is not None:
        return harness.queue, 0
    if harness.cycles is not None:
        return users * harness.cycles, 0
    cycles = max(_WINDOW_CYCLES, math.ceil(_LEAST_REQUESTS / users))
    # As many again at the end keep the load up while the last of the window are served.
    return users * (_WARM_CYCLES + cycles + 1), users * _WARM_CYCLES


def traffic_of(harness: Harness, lengths: Lengths, users: int, *, seed: int) -> Traffic:
    """The users' requests; the mean lengths are exactly those asked for.

    For the steady state the users start over about one cycle of a server that takes 50 ms a token.
    """
    count, _ = requests_of(harness, users)
    return (_kept if count <= _LARGE else _kept_large)(harness, lengths, users, count, seed)


_LARGE = 8192  # requests: 4,096 times as many take 1 GB, 256 of 140,000 (20,000 users) as much


def _made(harness: Harness, lengths: Lengths, users: int, count: int, seed: int) -> Traffic:
    rng = np.random.default_rng([seed, 20231])
    prompt = drawn(rng, lengths.prompt_tokens, lengths.prompt_spread, count, PROMPT_LIMIT_TOKENS)
    limit = max(harness.reserve_tokens or _ANSWER_LIMIT_TOKENS, math.ceil(lengths.output_tokens))
    output = drawn(rng, lengths.output_tokens, lengths.output_spread, count, limit)
    cycle_s = sum(harness.think_s) / 2 + lengths.output_tokens * _RAMP_TOKEN_S
    steady = harness.queue is None and harness.cycles is None
    ramp_s = cycle_s if steady else harness.start_s
    start_s = np.linspace(0.0, ramp_s, users, endpoint=False, dtype=np.float64)
    if harness.reserve_tokens is not None:
        reserve = np.full(count, limit)
    else:
        reserve = np.ceil(output * harness.reserve_share).astype(np.int64)
    think_s = rng.uniform(*harness.think_s, count)
    shared = _shared(harness.prefix_tokens // BLOCK_TOKENS, count)
    return Traffic(start_s, prompt, output, reserve, think_s, shared)


_kept = functools.lru_cache(maxsize=4096)(_made)
_kept_large = functools.lru_cache(maxsize=256)(_made)


def _shared(blocks: int, count: int) -> Prefixes | None:
    """Requests that all begin with the same blocks; None: with none."""
    if not blocks:
        return None
    keys = np.tile(np.arange(blocks, dtype=np.int64), count)
    return Prefixes(keys, np.arange(count + 1) * blocks, blocks)


def drawn(
    rng: np.random.Generator, mean: float, spread: float, count: int, limit: int
) -> NDArray[np.int64]:
    """Log-normal lengths within 1 and *limit*, scaled until their mean is the one asked for."""
    sigma = math.sqrt(math.log1p(spread * spread))
    raw = np.exp(rng.normal(0.0, sigma, count))
    scale = mean / raw.mean()
    for done in range(60):
        reached = mean / np.clip(raw * scale, 1, limit).mean()
        scale *= reached
        if done >= 7 and abs(reached - 1) < 1e-3:  # slow where the limit cuts many
            break
    tokens: NDArray[np.int64] = np.rint(np.clip(raw * scale, 1, limit)).astype(np.int64)
    return tokens

"""The engine in virtual time, compiled: the times that `Engine` gives, thousands of times faster.

`Engine` (and `Router`) is the reference, on which the emulator runs; a property test holds the two
against each other. Here runs of decode steps in which nobody comes, goes or needs memory that
is not there are skipped in closed form, so that the work grows with requests and not with tokens.
With numba (`pip install "servecap[fast]"`) the loops are compiled; without it they run as they are.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from servecap.engine.cost import StepCoefficients
from servecap.engine.kernel import GIVEN, LEAST_LOAD, ROUND_ROBIN, STICKY, serve_all
from servecap.engine.kernel_state import (
    CHUNKED,
    HIT,
    OUTPUT,
    PREEMPTED,
    PREFILL_FIRST,
    PROMPT,
    RESERVE,
    SEQ,
    SHAPE,
    STATE,
    USER,
    VLLM_2023,
    Engines,
)
from servecap.engine.kernel_state import COMPILED as COMPILED
from servecap.engine.kv import BLOCK_TOKENS
from servecap.engine.router import Routing
from servecap.engine.scheduler import ChunkedPrefill, Policy, PrefillFirst, Vllm2023
from servecap.rand import stream

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Prefixes(msgspec.Struct, frozen=True):
    """What prompts have in common: keys as `EngineRequest.keys`, 0 to `count` - 1.

    Request i's are `keys[at[i]:at[i + 1]]`; those that no other request has may be left out.
    """

    keys: Ints
    at: Ints
    count: int


class Traffic(msgspec.Struct, frozen=True):
    """Who asks for what: request i is the i-th that is sent, by whichever user is due then.

    User u is first due at `start_s[u]`; who sent request i thinks `think_s[i]` after its end and
    then is due again. With as many users as requests, who all think for ever (infinity), it is
    open-loop traffic.
    """

    start_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    reserve_tokens: Ints  # longest answer that the server must expect
    think_s: Floats
    prefixes: Prefixes | None = None  # None: no prefix cache


class Answers(msgspec.Struct, frozen=True):
    """What became of each request, in seconds; NaN where it was refused."""

    user: Ints
    planned_s: Floats
    started_s: Floats  # its prompt was computed for the first time
    first_s: Floats
    end_s: Floats
    hit_tokens: Ints  # of the prompt, found in the prefix cache
    preemptions: int


def serve(
    cost: StepCoefficients,
    policy: Policy,
    traffic: Traffic,
    *,
    kv_tokens: int,
    max_context_tokens: int,
    instances: int = 1,
    routing: Routing = "least-load",
    seed: int = 0,
) -> Answers:
    """The answers that a `Router` with so many engines gives; nobody is left without one.

    A refused request takes a millisecond, as in `simulate`.
    """
    n = len(traffic.prompt_tokens)
    count = 0 if traffic.prefixes is None else traffic.prefixes.count
    engines = fresh(
        cost,
        settings_of(policy, kv_tokens, max_context_tokens),
        instances=instances,
        requests=n,
        prefixes=(*_whole(traffic), count) if count else None,
    )
    seq, times = engines.seq, engines.times
    seq[PROMPT], seq[OUTPUT] = traffic.prompt_tokens, traffic.output_tokens
    seq[RESERVE], seq[HIT] = traffic.reserve_tokens, -1
    way, picks = _route(routing, instances, n, seed)
    due = np.empty(len(traffic.start_s) + 1), np.empty(len(traffic.start_s) + 1, np.int64)
    serve_all(engines, traffic.start_s, traffic.think_s, way, picks, *due)
    hits = np.maximum(seq[HIT], 0)
    return Answers(
        seq[USER],
        times[0],
        times[1],
        times[2],
        times[3],
        hits,
        int(engines.state[:, PREEMPTED].sum()),
    )


def fresh(
    cost: StepCoefficients,
    settings: Floats,
    *,
    instances: int,
    requests: int,
    prefixes: tuple[Ints, Ints, int] | None = None,
) -> Engines:
    """Engines that have done nothing, with places for so many requests at once.

    Args:
        prefixes: keys, where each request's begin, and how many different ones there are.
    """
    none = np.zeros(0, np.int64)
    keys, at, count = prefixes or (none, none, 0)
    places = max(1, min(requests, int(settings[2])))
    return Engines(
        c=np.array([*msgspec.structs.astuple(cost)[:SHAPE], *cost.shape]),
        s=settings,
        state=np.zeros((instances, STATE), np.int64),
        begins_s=np.zeros(instances),
        ends_s=np.full(instances, np.inf),
        phases=np.zeros((instances, BLOCK_TOKENS), np.int64),
        ends=np.zeros((instances, places), np.int64),
        seq=np.zeros((SEQ, requests), np.int64),
        times=np.full((4, requests), np.nan),
        sums=np.zeros(5),
        keys=keys,
        key_at=at,
        held=np.zeros(len(keys), np.int64),
        holders=np.full((instances, count), -1, np.int64),
        order=np.zeros((3, instances, count + 1), np.int64),
    )


def _whole(traffic: Traffic) -> tuple[Ints, Ints]:
    """The keys, without those whose block is not all prompt."""
    prefixes = traffic.prefixes
    assert prefixes is not None
    starts, counts = prefixes.at[:-1], np.diff(prefixes.at)
    kept = np.minimum(counts, traffic.prompt_tokens // BLOCK_TOKENS)
    at = np.concatenate([[0], np.cumsum(kept)])
    keys = np.concatenate(
        [prefixes.keys[a : a + m] for a, m in zip(starts, kept, strict=True)]
    ).astype(np.int64)
    return keys, at


def _route(routing: Routing, instances: int, n: int, seed: int) -> tuple[int, Ints]:
    """The kernel's name of the routing, and where each request goes if that is drawn."""
    none = np.zeros(0, np.int64)
    match routing:
        case "least-load":
            return LEAST_LOAD, none
        case "round-robin":
            return ROUND_ROBIN, none
        case "sticky":
            return STICKY, none
        case "random":
            draws = stream(seed, "route")
            return GIVEN, np.array([draws.randrange(instances) for _ in range(n)], np.int64)


def settings_of(policy: Policy, kv_tokens: int, max_context_tokens: int) -> Floats:
    """The policy and the room as the kernel takes them."""
    blocks = kv_tokens // BLOCK_TOKENS
    between, spared, ahead = True, 0, False
    match policy:
        case ChunkedPrefill():
            own = (CHUNKED, policy.step_tokens, policy.max_running, 0.0, 0.0)
            ahead = policy.plans_ahead
        case Vllm2023():
            own = (VLLM_2023, policy.step_tokens, policy.max_running, 0.0, 0.0)
            spared = int(policy.watermark_share * blocks)
        case PrefillFirst():
            own = (
                PREFILL_FIRST,
                policy.max_batch_prefill_tokens,
                policy.max_running,
                policy.waiting_served_ratio,
                policy.max_waiting_tokens,
            )
            between, ahead = policy.decode_between, policy.plans_ahead
    return np.array([*own, blocks, max_context_tokens, between, spared, ahead], np.float64)

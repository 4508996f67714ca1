"""The engine in virtual time, compiled: the same times as `Engine` gives, a thousand times faster.

`Engine` is the reference and is what the emulator runs on; a property test holds the two against
each other. Here runs of decode steps in which nobody comes, goes or needs memory that is not
there are skipped in closed form, so that the work grows with requests and not with tokens.
With numba (`pip install "servecap[fast]"`) the loops are compiled; without it they run as they are.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from servecap.engine.cost import StepCoefficients
from servecap.engine.kernel import serve_all
from servecap.engine.kernel_steps import COMPILED as COMPILED
from servecap.engine.kv import BLOCK_TOKENS
from servecap.engine.scheduler import ChunkedPrefill, Policy, PrefillFirst

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Traffic(msgspec.Struct, frozen=True):
    """Who asks for what: request i is the i-th that is sent, by whichever user is due then.

    User u is first due at `start_s[u]`; who sent request i thinks `think_s[i]` after its end and
    then is due again. With as many users as requests it is open-loop traffic.
    """

    start_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    reserve_tokens: Ints  # longest answer that the server must expect
    think_s: Floats


class Answers(msgspec.Struct, frozen=True):
    """What became of each request, in seconds; NaN where it was refused."""

    user: Ints
    planned_s: Floats
    started_s: Floats  # its prompt was computed for the first time
    first_s: Floats
    end_s: Floats
    preemptions: int


def serve(
    cost: StepCoefficients,
    policy: Policy,
    traffic: Traffic,
    *,
    kv_tokens: int,
    max_context_tokens: int,
) -> Answers:
    """The answers that one engine gives; all requests are sent and answered, or refused.

    A refused request takes a millisecond, as in `simulate`.
    """
    n = len(traffic.prompt_tokens)
    times = np.full((4, n), np.nan)
    users = np.zeros(n, np.int64)
    settings = settings_of(policy, kv_tokens, max_context_tokens)
    preemptions = serve_all(
        np.array(msgspec.structs.astuple(cost)),
        settings,
        traffic.start_s,
        traffic.prompt_tokens,
        traffic.output_tokens,
        traffic.reserve_tokens,
        traffic.think_s,
        users,
        times,
    )
    return Answers(users, times[0], times[1], times[2], times[3], int(preemptions))


def settings_of(policy: Policy, kv_tokens: int, max_context_tokens: int) -> Floats:
    """The policy and the room as the kernel takes them."""
    blocks = kv_tokens // BLOCK_TOKENS
    match policy:
        case ChunkedPrefill():
            own = (0.0, policy.step_tokens, policy.max_running, 0.0, 0.0)
            between = True
        case PrefillFirst():
            own = (
                1.0,
                policy.max_batch_prefill_tokens,
                policy.max_running,
                policy.waiting_served_ratio,
                policy.max_waiting_tokens,
            )
            between = policy.decode_between
    return np.array([*own, blocks, max_context_tokens, between], np.float64)

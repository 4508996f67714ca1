"""Steps, runs of steps and memory of the compiled engine; see `servecap.engine.fast`.

Arrays that the functions share: `c` as StepCoefficients, `state` and `seq` by the indices below,
`running` oldest first, `waiting` from HEAD to TAIL, `times` by request.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from servecap.engine.kv import BLOCK_TOKENS

F = TypeVar("F", bound=Callable[..., Any])

try:
    from numba import njit
except ImportError:  # the extra is not installed
    COMPILED = False

    def compiled(function: F) -> F:
        """*function* as it is: numba is not installed."""
        return function

else:
    COMPILED = True
    # Numba looks for cached code by the name and the text of a function's own file, and would go on
    # with what it calls in other files as these once were. So the name tells all their texts.
    _TEXTS = b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("kernel*.py")))
    _VERSION = hashlib.sha256(_TEXTS).hexdigest()[:12]

    def compiled(function: F) -> F:
        """*function* as machine code, kept on disk between runs."""
        function.__qualname__ += f"_{_VERSION}"
        return cast(F, njit(cache=True)(function))


# Indices into the state that the compiled functions share.
FREE, HEAD, TAIL, RUNNING, WAITED, JOINED, PREEMPTED, PARTIAL, ENDED = range(9)
CACHED, GENERATED, BLOCKS, PROMPT, OUTPUT, RESERVE = range(6)
PLANNED, STARTED, FIRST, END = range(4)


@compiled
def blocks_for(tokens: int) -> int:
    """As `kv.blocks_for`."""
    return (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS


@compiled
def _linear_s(c: Any, tokens: float) -> float:
    """The layers' matrices for so many tokens."""
    read_s = c[3]
    if c[15] > 0:
        read_s -= c[15] * math.expm1(tokens * c[16])
    return float(math.sqrt(read_s * read_s + (tokens * c[4]) ** 2))


@compiled
def step_s(c: Any, decodes: int, context: float, sums: Any) -> float:
    """As `StepCoefficients.step_s`; *sums* as in `_chunk`."""
    tokens = decodes + sums[0]
    sampled = decodes + sums[3]
    gpu = _linear_s(c, tokens)
    if sampled > 0:
        gpu += math.sqrt(c[5] * c[5] + (sampled * c[6]) ** 2)
    gpu += (context + sums[2]) * c[7] + sums[1] * c[8] + c[9] + tokens * c[10]
    if c[12] > 0:
        gpu += (min(context, c[12] * decodes) + min(sums[2], c[12] * sums[4])) * c[13]
        gpu += min(sums[1], c[12] * sums[0]) * c[14]
    return float(c[0] + c[1] * sampled + c[11] * sums[4] + max(c[2], gpu))


@compiled
def _growing_s(floor: float, first: float, more: float, steps: int) -> float:
    """Steps that each take *more* than the one before, but none less than *floor*."""
    floored = 0
    if first < floor:
        floored = steps
        if more > 0:
            floored = min(steps, math.ceil((floor - first) / more))
    rest = steps - floored
    first += floored * more
    return float(floored * floor + rest * first + more * (rest * (rest - 1) / 2))


@compiled
def _run_s(c: Any, decodes: int, context: float, steps: int) -> float:
    """Seconds of so many decode steps in a row; *context* grows by *decodes* with each."""
    host = c[0] + c[1] * decodes
    gpu = _linear_s(c, decodes)
    gpu += math.sqrt(c[5] * c[5] + (decodes * c[6]) ** 2)
    gpu += context * c[7] + c[9] + decodes * c[10]
    more = decodes * c[7]  # that each step takes longer than the one before
    if c[12] == 0:
        return float(steps * host + _growing_s(c[2], gpu, more, steps))
    inside = 0  # steps before the mean context fills the window
    if context < c[12] * decodes:
        inside = min(steps, math.ceil((c[12] * decodes - context) / decodes))
    total = _growing_s(c[2], gpu + context * c[13], more + decodes * c[13], inside)
    gpu += inside * more + c[12] * decodes * c[13]
    return float(steps * host + total + _growing_s(c[2], gpu, more, steps - inside))


@compiled
def _steps_until(c: Any, decodes: int, context: float, most: int, seconds: float) -> int:
    """Fewest steps (at most *most*) that take at least that long."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if _run_s(c, decodes, context, middle) >= seconds:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def _grown(seq: Any, running: Any, count: int, steps: int) -> int:
    """Blocks that the running sequences need beyond theirs after so many decode steps."""
    blocks = 0
    for r in range(count):
        i = running[r]
        blocks += blocks_for(seq[CACHED, i] + steps) - seq[BLOCKS, i]
    return blocks


@compiled
def _affordable(state: Any, seq: Any, running: Any, count: int, most: int) -> int:
    """Decode steps, at most *most*, for which there is memory."""
    if state[FREE] >= count * (most // BLOCK_TOKENS + 1):
        return most
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if _grown(seq, running, count, middle) <= state[FREE]:
            low = middle
        else:
            high = middle - 1
    return low


@compiled
def decode(
    c: Any, state: Any, seq: Any, running: Any, now_s: float, due_s: float, most: int, paged: bool
) -> float:
    """End of a run of decode steps of all that run: to the first end of an answer, the first step
    that begins after *due_s*, or as long as there is memory; -1 where that is not even one step."""
    count = state[RUNNING]
    context, least = count, 1 << 40
    for r in range(count):
        i = running[r]
        context += seq[CACHED, i]
        least = min(least, seq[OUTPUT, i] - seq[GENERATED, i])
    most = min(most, least)
    if paged:
        most = _affordable(state, seq, running, count, most)
        if most == 0:
            return -1.0
    steps = most
    if due_s < now_s + _run_s(c, count, context, most):
        steps = _steps_until(c, count, context, most, due_s - now_s)
    for r in range(count):
        i = running[r]
        seq[CACHED, i] += steps
        seq[GENERATED, i] += steps
        if paged:
            blocks = blocks_for(seq[CACHED, i])
            state[FREE] -= blocks - seq[BLOCKS, i]
            seq[BLOCKS, i] = blocks
    state[WAITED] += steps
    state[ENDED] = 1 if steps == least else 0
    return now_s + _run_s(c, count, context, steps)


@compiled
def hold(state: Any, seq: Any, i: int, tokens: int) -> bool:
    """As `Queues.hold`."""
    more = blocks_for(tokens) - seq[BLOCKS, i]
    if more > 0:
        if more > state[FREE]:
            return False
        state[FREE] -= more
        seq[BLOCKS, i] += more
    return True


@compiled
def preempt(state: Any, seq: Any, running: Any, waiting: Any) -> int:
    """As `Queues.preempt_youngest`; who it was."""
    state[RUNNING] -= 1
    victim = running[state[RUNNING]]
    state[FREE] += seq[BLOCKS, victim]
    seq[BLOCKS, victim] = 0
    seq[CACHED, victim] = 0
    state[HEAD] -= 1
    waiting[state[HEAD]] = victim
    state[PREEMPTED] += 1
    return int(victim)

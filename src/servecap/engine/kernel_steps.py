"""Steps, runs of steps and those that decode, in the compiled engine; see `servecap.engine.fast`.

All that decode advance by one token in each step, so nothing is written for each of them: what
they have is what they had when they began to decode, plus the steps since.
"""

from __future__ import annotations

import math
from typing import Any

from servecap.engine.kernel_state import (
    BLOCKS,
    CACHED,
    CONTEXT,
    DECODED,
    DECODING,
    FREE,
    GENERATED,
    LAST,
    OUTPUT,
    PAGED,
    PREEMPTED,
    RANK,
    SHAPE,
    SINCE,
    STARTED,
    YOUNGEST,
    Engines,
    blocks_for,
    compiled,
    leave,
    missing,
    release,
    take,
    wait,
)
from servecap.engine.kv import BLOCK_TOKENS


@compiled
def add_chunk(e: Engines, i: int, tokens: int, now_s: float) -> None:
    """Counts a chunk of a prompt into the sums: tokens, pairs, cached, sampled, prompts."""
    if math.isnan(e.times[STARTED, i]):
        e.times[STARTED, i] = now_s
    e.sums[0] += tokens
    e.sums[1] += tokens * (e.seq[CACHED, i] + (tokens + 1) / 2)
    e.sums[2] += e.seq[CACHED, i]
    e.sums[3] += 1 if tokens == missing(e, i) else 0
    e.sums[4] += 1


@compiled
def _linear_s(c: Any, tokens: float) -> float:
    """The layers' matrices for so many tokens."""
    read_s = c[3]
    if c[15] > 0:
        read_s -= c[15] * math.expm1(tokens * c[16])
    smooth_s = math.sqrt(read_s * read_s + (tokens * c[4]) ** 2)
    last = len(c) - 1
    if last < SHAPE or tokens < 1:
        return float(smooth_s)
    at = math.log2(tokens)
    below = min(int(at), last - SHAPE)
    left, right = c[SHAPE + below], c[min(SHAPE + below + 1, last)]
    return float(smooth_s * (left + (at - below) * (right - left)))


@compiled
def step_s(e: Engines, decodes: int, cached: int) -> float:
    """As `StepCoefficients.step_s`, of those who decode and of the chunks in the sums."""
    c, sums = e.c, e.sums
    tokens = decodes + sums[0]
    sampled = decodes + sums[3]
    context = cached + decodes
    gpu = _linear_s(c, tokens)
    if sampled > 0:
        gpu += math.sqrt(c[5] * c[5] + (sampled * c[6]) ** 2)
    joint = c[19] if sums[0] > 0 else 1.0
    gpu += (context * joint + sums[2]) * c[7] + sums[1] * c[8] + c[9] + c[18]
    gpu += tokens * (c[10] + c[17])
    if c[12] > 0:
        gpu += (min(context, c[12] * decodes) * joint + min(sums[2], c[12] * sums[4])) * c[13]
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
def run_s(e: Engines, k: int, steps: int) -> float:
    """Seconds of so many steps of all that decode now, and of nothing else."""
    c = e.c
    decodes = e.state[k, DECODING]
    context = e.state[k, CONTEXT] + decodes
    host = c[0] + c[1] * decodes
    gpu = _linear_s(c, decodes)
    gpu += math.sqrt(c[5] * c[5] + (decodes * c[6]) ** 2)
    gpu += context * c[7] + c[9] + c[18] + decodes * (c[10] + c[17])
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
def steps_until(e: Engines, k: int, most: int, seconds: float) -> int:
    """Fewest steps (at most *most*, at least 1) that take at least that long."""
    low, high = 1, most
    guess = int(seconds / run_s(e, k, 1)) + 1  # steps get longer, so fewer will do, but hardly
    if guess < high and run_s(e, k, guess) >= seconds:
        high = guess
    back = 1
    while low < high:
        middle = max((low + high) // 2, high - back)
        if run_s(e, k, middle) >= seconds:
            high = middle
            back *= 4
        else:
            low = middle + 1
            back = 1
    return low


@compiled
def affordable(e: Engines, k: int, most: int) -> int:
    """Steps of those that decode, at most *most*, for which there is memory."""
    free, decodes = e.state[k, FREE], e.state[k, DECODING]
    if free >= decodes * (most // BLOCK_TOKENS + 1):
        return most
    steps = (free // decodes) * BLOCK_TOKENS
    free -= (free // decodes) * decodes
    while steps < most:
        free -= e.phases[k, -(e.state[k, DECODED] + steps) % BLOCK_TOKENS]
        if free < 0:
            return int(steps)
        steps += 1
    return most


@compiled
def blocks_of_run(e: Engines, k: int, steps: int) -> int:
    """Blocks that so many steps fill."""
    blocks = (steps // BLOCK_TOKENS) * e.state[k, DECODING]
    for step in range(steps - steps % BLOCK_TOKENS, steps):
        blocks += e.phases[k, -(e.state[k, DECODED] + step) % BLOCK_TOKENS]
    return int(blocks)


@compiled
def advance(e: Engines, k: int, steps: int) -> None:
    """All that decode have so many tokens more; their blocks have been taken."""
    e.state[k, DECODED] += steps
    e.state[k, CONTEXT] += steps * e.state[k, DECODING]


@compiled
def decode(e: Engines, k: int, steps: int) -> None:
    """All that decode have so many tokens more, and the blocks for them."""
    if e.state[k, PAGED] == 1:
        take(e, k, blocks_of_run(e, k, steps))
    advance(e, k, steps)


@compiled
def begin_decode(e: Engines, k: int, i: int) -> None:
    """From now on the running sequence decodes."""
    decoded = e.state[k, DECODED]
    e.seq[SINCE, i] = decoded
    e.seq[LAST, i] = decoded + e.seq[OUTPUT, i] - e.seq[GENERATED, i]
    e.state[k, CONTEXT] += e.seq[CACHED, i]
    e.phases[k, (e.seq[CACHED, i] - decoded) % BLOCK_TOKENS] += 1
    size = e.state[k, DECODING]
    e.state[k, DECODING] += 1
    _up(e, k, size, i)


@compiled
def end_decode(e: Engines, k: int, place: int) -> int:
    """Takes the one at that *place* of the heap from those that decode; who it is."""
    i = e.ends[k, place]
    decoded = e.state[k, DECODED]
    e.phases[k, (e.seq[CACHED, i] - e.seq[SINCE, i]) % BLOCK_TOKENS] -= 1
    e.seq[CACHED, i] += decoded - e.seq[SINCE, i]
    e.seq[GENERATED, i] += decoded - e.seq[SINCE, i]
    if e.state[k, PAGED] == 1:
        e.seq[BLOCKS, i] = blocks_for(e.seq[CACHED, i])
    e.state[k, CONTEXT] -= e.seq[CACHED, i]
    e.state[k, DECODING] -= 1
    size = e.state[k, DECODING]
    if place < size:
        moved = e.ends[k, size]
        _down(e, k, place, moved)
        if e.ends[k, place] == moved:
            _up(e, k, place, moved)
    return int(i)


@compiled
def _sooner(e: Engines, i: int, j: int) -> bool:
    """Whether i ends before j; of two that end together, whether it was admitted before."""
    if e.seq[LAST, i] != e.seq[LAST, j]:
        return bool(e.seq[LAST, i] < e.seq[LAST, j])
    return bool(e.seq[RANK, i] < e.seq[RANK, j])


@compiled
def _up(e: Engines, k: int, place: int, i: int) -> None:
    while place > 0 and _sooner(e, i, e.ends[k, (place - 1) // 2]):
        e.ends[k, place] = e.ends[k, (place - 1) // 2]
        place = (place - 1) // 2
    e.ends[k, place] = i


@compiled
def _down(e: Engines, k: int, place: int, i: int) -> None:
    size = e.state[k, DECODING]
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and _sooner(e, e.ends[k, child + 1], e.ends[k, child]):
            child += 1
        if not _sooner(e, e.ends[k, child], i):
            break
        e.ends[k, place] = e.ends[k, child]
        place = child
    e.ends[k, place] = i


@compiled
def preempt(e: Engines, k: int) -> int:
    """As `Queues.make_room` preempts the youngest; who it was."""
    i = int(e.state[k, YOUNGEST])
    for place in range(e.state[k, DECODING]):
        if e.ends[k, place] == i:
            end_decode(e, k, place)
            break
    leave(e, k, i)
    release(e, k, i)
    e.seq[CACHED, i] = 0
    wait(e, k, i, True)
    e.state[k, PREEMPTED] += 1
    return i

"""Arrays and memory of the compiled engine; see `servecap.engine.fast`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from servecap.engine.kv import BLOCK_TOKENS

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba
except ImportError:  # the extra is not installed
    COMPILED = False

    def compiled(function: F, *, kept: bool = False) -> F:  # noqa: ARG001
        """*function* as it is: numba is not installed."""
        return function

else:
    COMPILED = True
    _TEXTS = b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("k*.py")))
    _VERSION = hashlib.sha256(_TEXTS).hexdigest()[:12]

    def compiled(function: F, *, kept: bool = False) -> F:
        """*function* as machine code; *kept* on the disk between runs.

        Everything becomes one function, and arrays are not counted (`_nrt`: nothing here makes
        or keeps one): with calls, and counts for each access, it would be five times slower.
        """
        if kept:  # under a name that is another one when any file of the kernel has changed
            function.__qualname__ += f"_{_VERSION}"
        options: dict[str, Any] = {"forceinline": True, "_nrt": False, "cache": kept}
        if not kept:  # only other machine code calls it
            options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        return cast(F, numba.njit(**options)(function))


class Engines(NamedTuple):
    """All state, for k engines and n requests. Indices into the arrays are named below."""

    c: Any  # StepCoefficients, its `shape` last
    s: Any  # settings, by KIND and the rest
    state: Any  # [k, STATE]: whole numbers
    begins_s: Any  # [k]: when what is under way, a step or a run of steps, began
    ends_s: Any  # [k]: when it ends; infinite: nothing is
    phases: Any  # [k, 16]: decoding sequences by the step, modulo 16, at which a block is full
    ends: Any  # [k, m]: heap of decoding sequences, the first to end at the top
    seq: Any  # [SEQ, n]: whole numbers
    times: Any  # [4, n]
    sums: Any  # [5]: the prompts of one step, by `add_chunk`
    keys: Any  # keys of all prompts' leading blocks, and
    key_at: Any  # [n + 1] where each request's begin; empty without a prefix cache
    held: Any  # whether the request holds a block under that key
    holders: Any  # [k, keys]: how many hold it; -1: not in the pool
    order: Any  # [3, k, keys + 1]: the queue of free blocks, see `take`


# Settings.
(
    KIND, BUDGET, MAX_RUNNING, RATIO, MAX_WAITING, TOTAL, CONTEXT_MAX, BETWEEN, SPARED, AHEAD,
) = range(10)  # fmt: skip
CHUNKED, PREFILL_FIRST, VLLM_2023 = range(3)
SHAPE = 20  # in c: where the factors by tokens begin, if there are any

# State of one engine. OLDEST to YOUNGEST run, HEAD to TAIL wait, linked by NEXT and BEFORE; -1:
# nobody. DECODED counts steps in which those that decode advanced; CONTEXT are their tokens in
# the cache. PARTIAL: whose prompt is computed in part. PENDING, STEPS, OPEN: see kernel_policies.
# LATE: so many, the last of those that wait, came when the next step was planned already.
(
    FREE, HEAD, TAIL, WAITING, OLDEST, YOUNGEST, RUNNING, DECODING, DECODED, CONTEXT, PARTIAL,
    ADMITTED, WAITED, JOINED, PREEMPTED, PENDING, STEPS, OPEN, LOAD, PAGED, LATE, STATE,
) = range(22)  # fmt: skip

# Of a sequence. CACHED and GENERATED of one that decodes are as they were when DECODED was SINCE.
(
    CACHED, GENERATED, BLOCKS, PROMPT, OUTPUT, RESERVE, NEXT, BEFORE, SINCE, RANK, LAST, NAMED,
    USER, HIT, SEQ,
) = range(15)  # fmt: skip
PLANNED, STARTED, FIRST, END = range(4)
AFTER, NEXT_KEY, BEFORE_KEY = range(3)


@compiled
def blocks_for(tokens: int) -> int:
    """As `kv.blocks_for`."""
    return (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS


@compiled
def missing(e: Engines, i: int) -> int:
    """As `Sequence.missing`; not of one that decodes."""
    return int(e.seq[PROMPT, i] + e.seq[GENERATED, i] - e.seq[CACHED, i])


@compiled
def take(e: Engines, k: int, blocks: int) -> None:
    """As `BlockPool.take` where enough are free.

    The queue of free blocks is a ring of keys: NEXT_KEY and BEFORE_KEY, with the number of keys
    as its beginning; AFTER each stand so many blocks without a key.
    """
    e.state[k, FREE] -= blocks
    begin = e.order.shape[2] - 1
    if begin == 0:
        return
    while blocks > 0:
        plain = min(blocks, e.order[AFTER, k, begin])
        e.order[AFTER, k, begin] -= plain
        blocks -= plain
        if blocks > 0:
            key = e.order[NEXT_KEY, k, begin]
            _unqueue(e, k, key)
            e.holders[k, key] = -1
            blocks -= 1


@compiled
def _unqueue(e: Engines, k: int, key: int) -> None:
    """Takes a key out of the queue of free blocks; those after it now are after the one before."""
    before, after = e.order[BEFORE_KEY, k, key], e.order[NEXT_KEY, k, key]
    e.order[AFTER, k, before] += e.order[AFTER, k, key]
    e.order[NEXT_KEY, k, before] = after
    e.order[BEFORE_KEY, k, after] = before


@compiled
def release(e: Engines, k: int, i: int) -> None:
    """As `Queues.release`."""
    e.state[k, FREE] += e.seq[BLOCKS, i]
    begin = e.order.shape[2] - 1
    if begin > 0:
        plain = e.seq[BLOCKS, i]
        at = e.key_at[i]
        for j in range(at, at + e.seq[NAMED, i]):
            plain -= e.held[j]
        e.order[AFTER, k, e.order[BEFORE_KEY, k, begin]] += plain
        for j in range(at + e.seq[NAMED, i] - 1, at - 1, -1):
            if e.held[j] == 1:
                e.held[j] = 0
                _let_go(e, k, e.keys[j])
    e.seq[BLOCKS, i] = 0
    e.seq[NAMED, i] = 0


@compiled
def _let_go(e: Engines, k: int, key: int) -> None:
    e.holders[k, key] -= 1
    if e.holders[k, key] > 0:
        e.state[k, FREE] -= 1  # it was counted as free by the caller
        return
    begin = e.order.shape[2] - 1
    last = e.order[BEFORE_KEY, k, begin]
    e.order[AFTER, k, key] = 0
    e.order[NEXT_KEY, k, last], e.order[BEFORE_KEY, k, key] = key, last
    e.order[NEXT_KEY, k, key], e.order[BEFORE_KEY, k, begin] = begin, key


@compiled
def known(e: Engines, k: int, i: int) -> int:
    """As `Queues.known`."""
    if e.order.shape[2] == 1:
        return 0
    at, count = e.key_at[i], 0
    most = min(e.key_at[i + 1] - at, (missing(e, i) - 1) // BLOCK_TOKENS)
    while count < most and e.holders[k, e.keys[at + count]] >= 0:
        count += 1
    return count


@compiled
def needed(e: Engines, k: int, i: int, tokens: int) -> int:
    """As `Queues.needed`."""
    blocks = blocks_for(tokens)
    at = e.key_at[i] if e.order.shape[2] > 1 else 0
    for j in range(at, at + known(e, k, i)):
        if e.holders[k, e.keys[j]] > 0:
            blocks -= 1
    return blocks


@compiled
def admit(e: Engines, k: int) -> int:
    """As `Queues.admit` of the first that waits; who that is."""
    i = int(e.state[k, HEAD])
    count = known(e, k, i)
    e.state[k, HEAD] = e.seq[NEXT, i]
    e.state[k, WAITING] -= 1
    if e.state[k, WAITING] == 0:
        e.state[k, TAIL] = -1
    youngest = e.state[k, YOUNGEST]
    e.seq[BEFORE, i], e.seq[NEXT, i] = youngest, -1
    if youngest >= 0:
        e.seq[NEXT, youngest] = i
    else:
        e.state[k, OLDEST] = i
    e.state[k, YOUNGEST] = i
    e.state[k, RUNNING] += 1
    e.state[k, ADMITTED] += 1
    e.seq[RANK, i] = e.state[k, ADMITTED]
    for j in range(count):
        key = e.keys[e.key_at[i] + j]
        if e.holders[k, key] == 0:
            _unqueue(e, k, key)
            e.state[k, FREE] -= 1
        e.holders[k, key] += 1
        e.held[e.key_at[i] + j] = 1
    e.seq[NAMED, i] = e.seq[BLOCKS, i] = count
    e.seq[CACHED, i] = count * BLOCK_TOKENS
    if e.seq[HIT, i] < 0:
        e.seq[HIT, i] = count * BLOCK_TOKENS
    return i


@compiled
def hold(e: Engines, k: int, i: int, tokens: int) -> bool:
    """As `Queues.hold`."""
    more = blocks_for(tokens) - e.seq[BLOCKS, i]
    if more > 0:
        if more > e.state[k, FREE]:
            return False
        take(e, k, more)
        e.seq[BLOCKS, i] += more
    if e.order.shape[2] > 1:
        at = e.key_at[i]
        upto = min(e.key_at[i + 1] - at, tokens // BLOCK_TOKENS)
        for j in range(e.seq[NAMED, i], upto):
            key = e.keys[at + j]
            if e.holders[k, key] < 0:
                e.holders[k, key] = 1
                e.held[at + j] = 1
        e.seq[NAMED, i] = max(e.seq[NAMED, i], upto)
    return True


@compiled
def leave(e: Engines, k: int, i: int) -> None:
    """Takes a running sequence out of the order of those that run."""
    before, after = e.seq[BEFORE, i], e.seq[NEXT, i]
    if before >= 0:
        e.seq[NEXT, before] = after
    else:
        e.state[k, OLDEST] = after
    if after >= 0:
        e.seq[BEFORE, after] = before
    else:
        e.state[k, YOUNGEST] = before
    e.state[k, RUNNING] -= 1


@compiled
def wait(e: Engines, k: int, i: int, first: bool) -> None:
    """Queues a sequence, at the end or as the first."""
    e.state[k, WAITING] += 1
    if first:
        e.seq[NEXT, i] = e.state[k, HEAD] if e.state[k, WAITING] > 1 else -1
        e.state[k, HEAD] = i
        if e.state[k, WAITING] == 1:
            e.state[k, TAIL] = i
        return
    e.seq[NEXT, i] = -1
    if e.state[k, WAITING] == 1:
        e.state[k, HEAD] = i
    else:
        e.seq[NEXT, e.state[k, TAIL]] = i
    e.state[k, TAIL] = i

"""The engine in virtual time, compiled: the same times as `Engine` gives, a thousand times faster.

`Engine` is the reference and is what the emulator runs on; a property test holds the two against
each other. Here runs of decode steps in which nobody comes, goes or needs memory that is not
there are skipped in closed form, so that the work grows with requests and not with tokens.
With numba (`pip install "servecap[fast]"`) the loops are compiled; without it they run as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from servecap.engine.cost import StepCoefficients
from servecap.engine.kv import BLOCK_TOKENS
from servecap.engine.scheduler import ChunkedPrefill, Policy, PrefillFirst

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
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

    def compiled(function: F) -> F:
        """*function* as machine code, kept on disk between runs."""
        result: F = njit(cache=True, fastmath=False)(function)
        return result


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
    settings = _settings(policy, kv_tokens, max_context_tokens)
    preemptions = _serve(
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


def _settings(policy: Policy, kv_tokens: int, max_context_tokens: int) -> Floats:
    blocks = kv_tokens // BLOCK_TOKENS
    match policy:
        case ChunkedPrefill():
            own = (0.0, policy.step_tokens, policy.max_running, 0.0, 0.0)
        case PrefillFirst():
            own = (
                1.0,
                policy.max_batch_prefill_tokens,
                policy.max_running,
                policy.waiting_served_ratio,
                policy.max_waiting_tokens,
            )
    return np.array([*own, blocks, max_context_tokens], np.float64)


# Indices into the state that the compiled functions share.
FREE, HEAD, TAIL, RUNNING, WAITED, JOINED, PREEMPTED = range(7)
CACHED, GENERATED, BLOCKS, PROMPT, OUTPUT, RESERVE = range(6)
PLANNED, STARTED, FIRST, END = range(4)
_REFUSAL_S = 0.001


@compiled
def _blocks_for(tokens: int) -> int:
    return (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS


@compiled
def _step_s(
    c: Any, decodes: int, context: float, prefill: int, pairs: float, cached: float, sampled: int
) -> float:
    """As `StepCoefficients.step_s`."""
    tokens = decodes + prefill
    gpu = math.sqrt(c[3] * c[3] + (tokens * c[4]) ** 2)
    if sampled > 0:
        gpu += math.sqrt(c[5] * c[5] + (sampled * c[6]) ** 2)
    gpu += (context + cached) * c[7] + pairs * c[8] + c[9] + tokens * c[10]
    return float(c[0] + c[1] * sampled + max(c[2], gpu))


@compiled
def _run_s(c: Any, decodes: int, context: float, steps: int) -> float:
    """Seconds of so many decode steps in a row; *context* grows by *decodes* with each."""
    host = c[0] + c[1] * decodes
    gpu = math.sqrt(c[3] * c[3] + (decodes * c[4]) ** 2)
    gpu += math.sqrt(c[5] * c[5] + (decodes * c[6]) ** 2)
    gpu += context * c[7] + c[9] + decodes * c[10]
    more = decodes * c[7]  # that each step takes longer than the one before
    floored = 0
    if gpu < c[2]:
        floored = steps
        if more > 0:
            floored = min(steps, int(math.ceil((c[2] - gpu) / more)))
    rest = steps - floored
    first = gpu + floored * more
    total = steps * host + floored * c[2] + rest * first + more * (rest * (rest - 1) / 2)
    return float(total)


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
        blocks += _blocks_for(seq[CACHED, i] + steps) - seq[BLOCKS, i]
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
def _decode(
    c: Any, state: Any, seq: Any, running: Any, now_s: float, due_s: float, most: int, paged: bool
) -> float:
    """End of a run of decode steps of all that run: to the first end of an answer, the first step
    that begins after *due_s*, or as long as there is memory; -1 where that is not even one step."""
    count = state[RUNNING]
    context = count
    for r in range(count):
        i = running[r]
        context += seq[CACHED, i]
        most = min(most, seq[OUTPUT, i] - seq[GENERATED, i])
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
            blocks = _blocks_for(seq[CACHED, i])
            state[FREE] -= blocks - seq[BLOCKS, i]
            seq[BLOCKS, i] = blocks
    state[WAITED] += steps
    return now_s + _run_s(c, count, context, steps)


@compiled
def _hold(state: Any, seq: Any, i: int, tokens: int) -> bool:
    more = _blocks_for(tokens) - seq[BLOCKS, i]
    if more > 0:
        if more > state[FREE]:
            return False
        state[FREE] -= more
        seq[BLOCKS, i] += more
    return True


@compiled
def _preempt(state: Any, seq: Any, running: Any, waiting: Any) -> int:
    state[RUNNING] -= 1
    victim = running[state[RUNNING]]
    state[FREE] += seq[BLOCKS, victim]
    seq[BLOCKS, victim] = 0
    seq[CACHED, victim] = 0
    state[HEAD] -= 1
    waiting[state[HEAD]] = victim
    state[PREEMPTED] += 1
    return int(victim)


@compiled
def _missing(seq: Any, i: int) -> int:
    return int(seq[PROMPT, i] + seq[GENERATED, i] - seq[CACHED, i])


@compiled
def _chunk(seq: Any, times: Any, i: int, tokens: int, now_s: float, sums: Any) -> None:
    """Counts a chunk of a prompt into *sums*: tokens, pairs, cached, sampled."""
    if math.isnan(times[STARTED, i]):
        times[STARTED, i] = now_s
    sums[0] += tokens
    sums[1] += tokens * (seq[CACHED, i] + (tokens + 1) / 2)
    sums[2] += seq[CACHED, i]
    sums[3] += 1 if tokens == _missing(seq, i) else 0


@compiled
def _mixed_step(
    c: Any, s: Any, state: Any, seq: Any, running: Any, waiting: Any, times: Any, now_s: float
) -> float:
    """End of one step of chunked prefill, as `ChunkedPrefill.next_batch` composes it."""
    budget = int(s[1])
    start = state[PREEMPTED]
    sums = np.zeros(4)
    work = np.empty(state[RUNNING] + int(s[2]), np.int64)  # tokens of the r-th that runs
    decodes, context, r = 0, 0, 0
    while r < state[RUNNING] and budget > 0:
        i = running[r]
        tokens = min(_missing(seq, i), budget)
        lost = False
        while not _hold(state, seq, i, seq[CACHED, i] + tokens):
            if _preempt(state, seq, running, waiting) == i:
                lost = True
                break
        if lost:
            break
        if seq[GENERATED, i] > 0 and _missing(seq, i) == 1:
            decodes += 1
            context += seq[CACHED, i]
        else:
            _chunk(seq, times, i, tokens, now_s, sums)
        work[r] = tokens
        budget -= tokens
        r += 1
    while (
        state[PREEMPTED] == start
        and state[HEAD] < state[TAIL]
        and budget > 0
        and state[RUNNING] < s[2]
    ):
        i = waiting[state[HEAD]]
        tokens = min(_missing(seq, i), budget)
        if not _hold(state, seq, i, tokens):
            break
        state[HEAD] += 1
        running[state[RUNNING]] = i
        state[RUNNING] += 1
        _chunk(seq, times, i, tokens, now_s, sums)
        work[r] = tokens
        budget -= tokens
        r += 1
    sampled = decodes + int(sums[3])
    end_s = now_s + _step_s(c, decodes, context + decodes, int(sums[0]), sums[1], sums[2], sampled)
    for k in range(r):
        i = running[k]
        if _missing(seq, i) == work[k]:
            seq[GENERATED, i] += 1
            if seq[GENERATED, i] == 1:
                times[FIRST, i] = end_s
        seq[CACHED, i] += work[k]
    return end_s


@compiled
def _chunked(
    c: Any,
    s: Any,
    state: Any,
    seq: Any,
    running: Any,
    waiting: Any,
    times: Any,
    now_s: float,
    due_s: float,
) -> float:
    """End of the next step, or run of decode steps, of chunked prefill."""
    count = state[RUNNING]
    settled = 0 < count <= s[1]
    r = count - 1
    while settled and r >= 0:
        i = running[r]
        settled = seq[GENERATED, i] > 0 and _missing(seq, i) == 1
        r -= 1
    blocked = False  # whoever waits must wait until somebody ends, whoever else may come
    if settled and state[HEAD] < state[TAIL]:
        budget = int(s[1]) - count
        blocked = budget == 0 or count >= s[2]
        if not blocked:
            tokens = min(_missing(seq, waiting[state[HEAD]]), budget)
            blocked = _blocks_for(tokens) > state[FREE]
        settled = blocked
    if settled:
        due = math.inf if blocked else due_s
        end_s = _decode(c, state, seq, running, now_s, due, 1 << 40, True)
        if end_s >= 0:
            return float(end_s)
    return float(_mixed_step(c, s, state, seq, running, waiting, times, now_s))


@compiled
def _newcomers(s: Any, state: Any, seq: Any, waiting: Any) -> int:
    """How many join, as `PrefillFirstScheduler._newcomers`."""
    count = state[RUNNING]
    least = 1
    if count > 0 and state[WAITED] < s[4]:
        least = max(1, int(math.floor(count * s[3])))
    if state[TAIL] - state[HEAD] < least:
        return 0
    budget, blocks, room = s[1], state[FREE], int(s[2]) - count
    chosen = 0
    for w in range(state[HEAD], state[TAIL]):
        i = waiting[w]
        budget -= seq[PROMPT, i]
        blocks -= _blocks_for(seq[PROMPT, i] + seq[RESERVE, i])
        if budget < 0 or blocks < 0 or chosen == room:
            break
        chosen += 1
    return chosen if chosen >= least else 0


@compiled
def _prefill_first(
    c: Any,
    s: Any,
    state: Any,
    seq: Any,
    running: Any,
    waiting: Any,
    times: Any,
    now_s: float,
    due_s: float,
) -> float:
    """End of the next prefill, or run of decode steps, of TGI's policy."""
    count = state[RUNNING]
    chosen = 0 if state[JOINED] else _newcomers(s, state, seq, waiting)
    if chosen == 0 and count == 0:
        chosen = _newcomers(s, state, seq, waiting)
    if chosen == 0:
        once = state[JOINED] == 1
        state[JOINED] = 0
        most, due = 1 << 40, due_s
        if once:
            most = 1
        elif state[HEAD] < state[TAIL]:
            if state[WAITED] < s[4]:
                most = int(math.ceil(s[4])) - state[WAITED]
            else:
                due = math.inf  # the head of the queue does not fit: only an end can change that
        return float(_decode(c, state, seq, running, now_s, due, most, False))
    state[JOINED] = 1 if count > 0 else 0
    state[WAITED] = 1
    sums = np.zeros(4)
    for r in range(count, count + chosen):
        i = waiting[state[HEAD]]
        state[HEAD] += 1
        _hold(state, seq, i, seq[PROMPT, i] + seq[RESERVE, i])
        running[r] = i
        _chunk(seq, times, i, _missing(seq, i), now_s, sums)
    state[RUNNING] += chosen
    end_s = now_s + _step_s(c, 0, 0, int(sums[0]), sums[1], sums[2], chosen)
    for r in range(count, count + chosen):
        i = running[r]
        seq[CACHED, i] = seq[PROMPT, i]
        seq[GENERATED, i] = 1
        times[FIRST, i] = end_s
    return float(end_s)


@compiled
def _refused(s: Any, seq: Any, i: int) -> bool:
    total = seq[PROMPT, i] + seq[RESERVE, i]
    if total > s[6] or _blocks_for(total) > s[5]:
        return True
    return bool(s[0] == 1 and seq[PROMPT, i] > s[1])


@compiled
def _sift_up(heap_s: Any, heap_u: Any, size: int, due_s: float, user: int) -> None:
    """Adds a user who is due then to the heap of *size* users."""
    k = size
    while k > 0:
        parent = (k - 1) // 2
        if heap_s[parent] < due_s or (heap_s[parent] == due_s and heap_u[parent] < user):
            break
        heap_s[k], heap_u[k] = heap_s[parent], heap_u[parent]
        k = parent
    heap_s[k], heap_u[k] = due_s, user


@compiled
def _pop(heap_s: Any, heap_u: Any, size: int) -> None:
    """Takes the first off the heap of *size* users."""
    size -= 1
    due_s, user = heap_s[size], heap_u[size]
    k = 0
    while 2 * k + 1 < size:
        child = 2 * k + 1
        if child + 1 < size and (
            heap_s[child + 1] < heap_s[child]
            or (heap_s[child + 1] == heap_s[child] and heap_u[child + 1] < heap_u[child])
        ):
            child += 1
        if due_s < heap_s[child] or (due_s == heap_s[child] and user < heap_u[child]):
            break
        heap_s[k], heap_u[k] = heap_s[child], heap_u[child]
        k = child
    heap_s[k], heap_u[k] = due_s, user


@compiled
def _serve(
    c: Any,
    s: Any,
    start_s: Any,
    prompt: Any,
    output: Any,
    reserve: Any,
    think_s: Any,
    users: Any,
    times: Any,
) -> int:
    n, population = len(prompt), len(start_s)
    seq = np.zeros((6, n), np.int64)
    seq[PROMPT], seq[OUTPUT], seq[RESERVE] = prompt, output, reserve
    state = np.zeros(7, np.int64)
    state[FREE], state[HEAD], state[TAIL], state[WAITED] = int(s[5]), n, n, 1
    waiting = np.empty(2 * n + 1, np.int64)
    running = np.empty(max(1, min(n, int(s[2]))) + 1, np.int64)
    heap_s, heap_u = np.empty(population + 1), np.empty(population + 1, np.int64)
    size = 0
    for u in range(population):
        _sift_up(heap_s, heap_u, size, start_s[u], u)
        size += 1
    sent, now_s = 0, 0.0
    while True:
        while size > 0 and sent < n and heap_s[0] <= now_s:
            due_s, user = heap_s[0], heap_u[0]
            _pop(heap_s, heap_u, size)
            size -= 1
            users[sent], times[PLANNED, sent] = user, due_s
            if _refused(s, seq, sent):
                _sift_up(heap_s, heap_u, size, due_s + _REFUSAL_S + think_s[sent], user)
                size += 1
            else:
                waiting[state[TAIL]] = sent
                state[TAIL] += 1
            sent += 1
        due_s = heap_s[0] if size > 0 and sent < n else math.inf
        if state[RUNNING] == 0 and state[HEAD] == state[TAIL]:
            if due_s == math.inf:
                return int(state[PREEMPTED])
            now_s = due_s
            continue
        if s[0] == 1:
            now_s = _prefill_first(c, s, state, seq, running, waiting, times, now_s, due_s)
        else:
            now_s = _chunked(c, s, state, seq, running, waiting, times, now_s, due_s)
        kept = 0
        for r in range(state[RUNNING]):
            i = running[r]
            if seq[GENERATED, i] < seq[OUTPUT, i]:
                running[kept] = i
                kept += 1
                continue
            times[END, i] = now_s
            state[FREE] += seq[BLOCKS, i]
            _sift_up(heap_s, heap_u, size, now_s + think_s[i], users[i])
            size += 1
        state[RUNNING] = kept

"""Schedulers and clock of the compiled engine; see `servecap.engine.fast`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from servecap.engine.kernel_steps import (
    BLOCKS,
    CACHED,
    END,
    ENDED,
    FIRST,
    FREE,
    GENERATED,
    HEAD,
    JOINED,
    OUTPUT,
    PARTIAL,
    PLANNED,
    PREEMPTED,
    PROMPT,
    RESERVE,
    RUNNING,
    STARTED,
    TAIL,
    WAITED,
    blocks_for,
    compiled,
    decode,
    hold,
    preempt,
    step_s,
)  # fmt: skip

_REFUSAL_S = 0.001


@compiled
def _missing(seq: Any, i: int) -> int:
    return int(seq[PROMPT, i] + seq[GENERATED, i] - seq[CACHED, i])


@compiled
def _chunk(seq: Any, times: Any, i: int, tokens: int, now_s: float, sums: Any) -> None:
    """Counts a chunk of a prompt into *sums*: tokens, pairs, cached, sampled, prompts."""
    if math.isnan(times[STARTED, i]):
        times[STARTED, i] = now_s
    sums[0] += tokens
    sums[1] += tokens * (seq[CACHED, i] + (tokens + 1) / 2)
    sums[2] += seq[CACHED, i]
    sums[3] += 1 if tokens == _missing(seq, i) else 0
    sums[4] += 1


@compiled
def _mixed_step(
    c: Any, s: Any, state: Any, seq: Any, running: Any, waiting: Any, times: Any, now_s: float
) -> float:
    """End of one step of chunked prefill, as `ChunkedPrefill.next_batch` composes it."""
    budget = int(s[1])
    start = state[PREEMPTED]
    sums = np.zeros(5)
    work = np.empty(state[RUNNING] + int(s[2]), np.int64)  # tokens of the r-th that runs
    decodes, context, r = 0, 0, 0
    while r < state[RUNNING] and budget > 0:
        i = running[r]
        tokens = min(_missing(seq, i), budget)
        lost = False
        while not hold(state, seq, i, seq[CACHED, i] + tokens):
            if preempt(state, seq, running, waiting) == i:
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
        if blocks_for(_missing(seq, i)) > state[FREE]:
            break
        hold(state, seq, i, tokens)
        state[HEAD] += 1
        running[state[RUNNING]] = i
        state[RUNNING] += 1
        _chunk(seq, times, i, tokens, now_s, sums)
        work[r] = tokens
        budget -= tokens
        r += 1
    end_s = now_s + step_s(c, decodes, context + decodes, sums)
    for k in range(r):
        i = running[k]
        if _missing(seq, i) == work[k]:
            seq[GENERATED, i] += 1
            if seq[GENERATED, i] == 1:
                times[FIRST, i] = end_s
        seq[CACHED, i] += work[k]
    state[PARTIAL] = 0
    for k in range(state[RUNNING]):
        i = running[k]
        if seq[GENERATED, i] == 0 or _missing(seq, i) != 1:
            state[PARTIAL] += 1
    state[ENDED] = 1
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
    settled = 0 < count <= s[1] and state[PARTIAL] == 0
    blocked = False  # whoever waits must wait until somebody ends, whoever else may come
    if settled and state[HEAD] < state[TAIL]:
        budget = int(s[1]) - count
        blocked = budget == 0 or count >= s[2]
        if not blocked:
            blocked = blocks_for(_missing(seq, waiting[state[HEAD]])) > state[FREE]
        settled = blocked
    if settled:
        due = math.inf if blocked else due_s
        end_s = decode(c, state, seq, running, now_s, due, 1 << 40, True)
        if end_s >= 0:
            return float(end_s)
    return float(_mixed_step(c, s, state, seq, running, waiting, times, now_s))


@compiled
def _newcomers(s: Any, state: Any, seq: Any, waiting: Any) -> int:
    """How many join, as `PrefillFirstScheduler._newcomers`."""
    count = state[RUNNING]
    least = 1
    if count > 0 and state[WAITED] < s[4]:
        least = max(1, math.floor(count * s[3]))
    if state[TAIL] - state[HEAD] < least:
        return 0
    budget, blocks, room = s[1], state[FREE], int(s[2]) - count
    chosen = 0
    for w in range(state[HEAD], state[TAIL]):
        i = waiting[w]
        budget -= seq[PROMPT, i]
        blocks -= blocks_for(seq[PROMPT, i] + seq[RESERVE, i])
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
                most = math.ceil(s[4]) - state[WAITED]
            else:
                due = math.inf  # the head of the queue does not fit: only an end can change that
        return float(decode(c, state, seq, running, now_s, due, most, False))
    state[JOINED] = 1 if count > 0 and s[7] == 1 else 0
    state[WAITED] = 1
    sums = np.zeros(5)
    for r in range(count, count + chosen):
        i = waiting[state[HEAD]]
        state[HEAD] += 1
        hold(state, seq, i, seq[PROMPT, i] + seq[RESERVE, i])
        running[r] = i
        _chunk(seq, times, i, _missing(seq, i), now_s, sums)
    state[RUNNING] += chosen
    end_s = now_s + step_s(c, 0, 0, sums)
    for r in range(count, count + chosen):
        i = running[r]
        seq[CACHED, i] = seq[PROMPT, i]
        seq[GENERATED, i] = 1
        times[FIRST, i] = end_s
    state[ENDED] = 1
    return float(end_s)


@compiled
def next_end_s(
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
    """End of the engine's next step; of a run of them if none could let in who is due then."""
    if s[0] == 1:
        return float(_prefill_first(c, s, state, seq, running, waiting, times, now_s, due_s))
    return float(_chunked(c, s, state, seq, running, waiting, times, now_s, due_s))


@compiled
def refused(s: Any, seq: Any, i: int) -> bool:
    """Whether the request can never be served."""
    total = seq[PROMPT, i] + seq[RESERVE, i]
    if total > s[6] or blocks_for(total) > s[5]:
        return True
    return bool(s[0] == 1 and seq[PROMPT, i] > s[1])


@compiled
def sift_up(heap_s: Any, heap_u: Any, size: int, due_s: float, user: int) -> None:
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
def pop(heap_s: Any, heap_u: Any, size: int) -> None:
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
def _finish(
    state: Any,
    seq: Any,
    running: Any,
    times: Any,
    users: Any,
    think_s: Any,
    heap_s: Any,
    heap_u: Any,
    size: int,
    now_s: float,
) -> int:
    """Lets those go whose answers are whole; the heap's size with their users, who think now."""
    kept = 0
    for r in range(state[RUNNING]):
        i = running[r]
        if seq[GENERATED, i] < seq[OUTPUT, i]:
            running[kept] = i
            kept += 1
            continue
        times[END, i] = now_s
        state[FREE] += seq[BLOCKS, i]
        sift_up(heap_s, heap_u, size, now_s + think_s[i], users[i])
        size += 1
    state[RUNNING] = kept
    return size


@compiled
def serve_all(
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
    """Fills *users* and *times* with what became of each request; the number of preemptions."""
    n, population = len(prompt), len(start_s)
    seq = np.zeros((6, n), np.int64)
    seq[PROMPT], seq[OUTPUT], seq[RESERVE] = prompt, output, reserve
    state = np.zeros(9, np.int64)
    state[FREE], state[HEAD], state[TAIL], state[WAITED] = int(s[5]), n, n, 1
    waiting = np.empty(2 * n + 1, np.int64)
    running = np.empty(max(1, min(n, int(s[2]))) + 1, np.int64)
    heap_s, heap_u = np.empty(population + 1), np.empty(population + 1, np.int64)
    size = 0
    for u in range(population):
        sift_up(heap_s, heap_u, size, start_s[u], u)
        size += 1
    sent, now_s = 0, 0.0
    while True:
        while size > 0 and sent < n and heap_s[0] <= now_s:
            due_s, user = heap_s[0], heap_u[0]
            pop(heap_s, heap_u, size)
            size -= 1
            users[sent], times[PLANNED, sent] = user, due_s
            if refused(s, seq, sent):
                sift_up(heap_s, heap_u, size, due_s + _REFUSAL_S + think_s[sent], user)
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
        now_s = next_end_s(c, s, state, seq, running, waiting, times, now_s, due_s)
        if state[ENDED] == 1:
            size = _finish(state, seq, running, times, users, think_s, heap_s, heap_u, size, now_s)

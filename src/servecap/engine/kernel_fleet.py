"""Clock, router and counters of many compiled engines; see `servecap.engine.fleet`.

Every instance has its own rows of the arrays that `servecap.engine.kernel` works on: a sequence is
a slot there, free again when its answer has ended, so memory grows with users and not with time.

Numba's cache on disk looks at each file alone: after a change in kernel.py or kernel_steps.py,
change or touch this file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from servecap.engine.kernel import next_end_s, pop, refused, sift_up
from servecap.engine.kernel_steps import (
    BLOCKS,
    CACHED,
    END,
    ENDED,
    FIRST,
    FREE,
    GENERATED,
    HEAD,
    OUTPUT,
    PLANNED,
    PROMPT,
    RESERVE,
    RUNNING,
    STARTED,
    TAIL,
    WAITED,
    compiled,
)  # fmt: skip

REFUSAL_S = 0.001
BINS, BIN_LEAST_S, BINS_PER_E = 3684, 1e-4, 200.0  # up to 10,000 s, each bin 0.5% wide
LEAST_LOAD, RANDOM, STICKY = range(3)
ANSWERED, FAILED, LATER, PEAK, SENT = range(5)  # LATER: answers of more than one token
TTFT, TPOT, E2E = range(3)
_NO_ROOM, _REFUSED, _QUEUED = range(3)
INSTANCE, USER, DUE, GOT_FIRST, GOT_LAST = range(5)  # of the log, by request


@compiled
def _bin(seconds: float) -> int:
    if seconds <= BIN_LEAST_S:
        return 0
    return min(BINS - 1, int(math.log(seconds / BIN_LEAST_S) * BINS_PER_E) + 1)


@compiled
def _count(bins: Any, sums: Any, metric: int, seconds: float) -> None:
    sums[0, metric] += seconds
    sums[1, metric] = max(sums[1, metric], seconds)
    bins[metric, _bin(seconds)] += 1


@compiled
def _more(order: Any, place: Any, first: Any, load: Any, k: int) -> None:
    """One request more at instance k; *order* stays sorted by load: `first[l]` have less than l."""
    last = first[load[k] + 1] - 1
    other, at = order[last], place[k]
    order[at], order[last] = other, k
    place[other], place[k] = at, last
    first[load[k] + 1] -= 1
    load[k] += 1


@compiled
def _fewer(order: Any, place: Any, first: Any, load: Any, k: int) -> None:
    """One request fewer at instance k."""
    begin = first[load[k]]
    other, at = order[begin], place[k]
    order[at], order[begin] = other, k
    place[other], place[k] = at, begin
    first[load[k]] += 1
    load[k] -= 1


@compiled
def _centre(state: Any, waiting: Any, slots: int) -> None:
    """Moves who waits to the middle of *waiting*, if either end could be run over."""
    head, count = state[HEAD], state[TAIL] - state[HEAD]
    if slots <= head and state[TAIL] < 3 * slots:
        return
    if head > slots:
        for w in range(count):
            waiting[slots + w] = waiting[head + w]
    else:
        for w in range(count - 1, -1, -1):
            waiting[slots + w] = waiting[head + w]
    state[HEAD], state[TAIL] = slots, slots + count


@compiled
def _submit(rows: Any, slots: int, k: int, i: int, due_s: float) -> None:
    """Queues the request in slot i of instance k; its lengths are there already."""
    state, seq, times, waiting = rows[0][k], rows[1][k], rows[2][k], rows[3][k]
    seq[CACHED, i] = seq[GENERATED, i] = seq[BLOCKS, i] = 0
    times[PLANNED, i] = due_s
    times[STARTED, i] = times[FIRST, i] = times[END, i] = math.nan
    _centre(state, waiting, slots)
    waiting[state[TAIL]] = i
    state[TAIL] += 1


@compiled
def _told(seen: Any, times: Any, output: int, i: int, now_s: float) -> None:
    """Counts the answer in slot i, which ends now."""
    counts, sums, bins = seen[0], seen[1], seen[2]
    counts[ANSWERED] += 1
    due_s, first_s = times[PLANNED, i], times[FIRST, i]
    _count(bins, sums, TTFT, first_s - due_s)
    _count(bins, sums, E2E, now_s - due_s)
    if output > 1:
        counts[LATER] += 1
        _count(bins, sums, TPOT, (now_s - first_s) / (output - 1))


@compiled
def _answered(
    rows: Any, loads: Any, users: Any, think_s: Any, seen: Any, k: int, now_s: float, begin_s: float
) -> int:
    """Lets those of instance k go whose answers are whole; how many users think now."""
    state, seq, times, running = rows[0][k], rows[1][k], rows[2][k], rows[4][k]
    owner, free, left, log = rows[5][k], rows[6][k], rows[7], seen[3]
    thinking, kept = users[2], 0
    for r in range(state[RUNNING]):
        i = running[r]
        if seq[GENERATED, i] < seq[OUTPUT, i]:
            running[kept] = i
            kept += 1
            continue
        state[FREE] += seq[BLOCKS, i]
        if now_s >= begin_s:
            _told(seen, times, seq[OUTPUT, i], i, now_s)
        number = owner[1, i]
        if number < log.shape[1]:
            log[GOT_FIRST, number], log[GOT_LAST, number] = times[FIRST, i], now_s
        free[left[k]] = i
        left[k] += 1
        _fewer(loads[0], loads[1], loads[2], loads[3], k)
        sift_up(users[0], users[1], thinking, now_s + think_s[number % len(think_s)], owner[0, i])
        thinking += 1
    state[RUNNING] = kept
    return int(thinking)


@compiled
def _instance(order: Any, route: Any, routing: int, instances: int, user: int, sent: int) -> int:
    """Where the router sends the request."""
    if routing == LEAST_LOAD:
        return int(order[0])
    if routing == RANDOM:
        return int(route[sent % len(route)] * instances)
    return user % instances


@compiled
def _arrived(
    s: Any,
    rows: Any,
    loads: Any,
    asked: Any,
    seen: Any,
    k: int,
    user: int,
    sent: int,
    now_s: float,
    begin_s: float,
) -> int:
    """What becomes of a request that the router sends to instance k."""
    seq, owner, free, left = rows[1][k], rows[5][k], rows[6][k], rows[7]
    prompt, output, counts, log, load = asked[0], asked[1], seen[0], seen[3], loads[3]
    if left[k] == 0:
        return _NO_ROOM
    i = free[left[k] - 1]
    seq[PROMPT, i] = prompt[sent % len(prompt)]
    seq[OUTPUT, i] = seq[RESERVE, i] = output[sent % len(output)]
    owner[0, i], owner[1, i] = user, sent
    if sent < log.shape[1]:
        log[INSTANCE, sent], log[USER, sent], log[DUE, sent] = k, user, now_s
    if refused(s, seq, i):
        counts[FAILED] += 1 if now_s >= begin_s else 0
        return _REFUSED
    left[k] -= 1
    _submit(rows, seq.shape[1], k, i, now_s)
    _more(loads[0], loads[1], loads[2], load, k)
    if now_s >= begin_s:
        counts[PEAK] = max(counts[PEAK], load[k])
    return _QUEUED


@compiled
def _rows(s: Any, instances: int, slots: int) -> Any:
    """Every instance's arrays, empty: state, sequences, times, waiting, running, owners, free
    slots and how many there are."""
    state = np.zeros((instances, 9), np.int64)
    state[:, FREE], state[:, HEAD], state[:, TAIL], state[:, WAITED] = int(s[5]), slots, slots, 1
    free = np.zeros((instances, slots), np.int64)
    for k in range(instances):
        for i in range(slots):
            free[k, i] = slots - 1 - i
    return (
        state,
        np.zeros((instances, 6, slots), np.int64),
        np.zeros((instances, 4, slots)),
        np.zeros((instances, 3 * slots), np.int64),
        np.zeros((instances, min(slots, int(s[2])) + 1), np.int64),
        np.zeros((instances, 2, slots), np.int64),
        free,
        np.full(instances, slots, np.int64),
    )


@compiled
def serve_fleet(
    c: Any,
    s: Any,
    start_s: Any,
    asked: Any,
    routing: int,
    window: Any,
    instances: int,
    slots: int,
    seen: Any,
) -> bool:
    """Fills *seen* with what ends in the window; False: an instance had too few slots.

    The n-th request sent takes the n-th value of each series in *asked* (prompt, answer, think
    time, route), from the start again where one is over. *seen*: counts, sums, bins, and a log
    of as many first requests as it has columns.
    """
    think_s, route, counts = asked[2], asked[3], seen[0]
    begin_s, stop_s = window[0], window[1]
    rows = _rows(s, instances, slots)
    state, seq, times, waiting, running = rows[:5]
    first, load = np.full(slots + 2, instances, np.int64), np.zeros(instances, np.int64)
    first[0] = 0
    loads = (np.arange(instances), np.arange(instances), first, load)
    user_s, user_u = np.zeros(len(start_s) + 1), np.zeros(len(start_s) + 1, np.int64)
    step_s, step_k = np.zeros(instances + 1), np.zeros(instances + 1, np.int64)
    steps, thinking, sent = 0, 0, 0
    for u in range(len(start_s)):
        sift_up(user_s, user_u, thinking, start_s[u], u)
        thinking += 1
    while True:
        due_s = user_s[0] if thinking > 0 else math.inf
        end_s = step_s[0] if steps > 0 else math.inf
        now_s = min(due_s, end_s)
        if now_s > stop_s:
            counts[SENT] = sent
            return True
        if end_s < due_s:
            k = step_k[0]
            pop(step_s, step_k, steps)
            steps -= 1
            if state[k, ENDED] == 1:
                users = (user_s, user_u, thinking)
                thinking = _answered(rows, loads, users, think_s, seen, k, now_s, begin_s)
            if load[k] == 0:
                continue
        else:
            user = user_u[0]
            pop(user_s, user_u, thinking)
            thinking -= 1
            k = _instance(loads[0], route, routing, instances, user, sent)
            taken = _arrived(s, rows, loads, asked, seen, k, user, sent, now_s, begin_s)
            if taken == _NO_ROOM:
                return False
            sent += 1
            if taken == _REFUSED:
                again_s = now_s + REFUSAL_S + think_s[(sent - 1) % len(think_s)]
                sift_up(user_s, user_u, thinking, again_s, user)
                thinking += 1
                continue
            if load[k] > 1:  # a step is under way
                continue
        _centre(state[k], waiting[k], slots)
        end_s = next_end_s(c, s, state[k], seq[k], running[k], waiting[k], times[k], now_s, now_s)
        sift_up(step_s, step_k, steps, end_s, k)
        steps += 1

"""Clock, users and router of the compiled engine; see `servecap.engine.fast`."""

from __future__ import annotations

import math
from typing import Any

from servecap.engine.kernel_decode import decode, end_decode, run_s, steps_until
from servecap.engine.kernel_policies import NOTHING, RUN, begin
from servecap.engine.kernel_state import (
    AFTER,
    BEFORE_KEY,
    BUDGET,
    CONTEXT_MAX,
    DECODED,
    DECODING,
    END,
    FREE,
    HEAD,
    KIND,
    LAST,
    LOAD,
    NEXT_KEY,
    OLDEST,
    OPEN,
    PAGED,
    PARTIAL,
    PENDING,
    PLANNED,
    PREFILL_FIRST,
    PROMPT,
    RESERVE,
    STEPS,
    TAIL,
    TOTAL,
    USER,
    WAITED,
    WAITING,
    YOUNGEST,
    Engines,
    blocks_for,
    compiled,
    leave,
    release,
    wait,
)

LEAST_LOAD, ROUND_ROBIN, STICKY, GIVEN = range(4)
_REFUSAL_S = 0.001


@compiled
def _refused(e: Engines, i: int) -> bool:
    total = e.seq[PROMPT, i] + e.seq[RESERVE, i]
    if total > e.s[CONTEXT_MAX] or blocks_for(total) > e.s[TOTAL]:
        return True
    return bool(e.s[KIND] != 0 and e.seq[PROMPT, i] > e.s[BUDGET])


@compiled
def _sift_up(heap_s: Any, heap_u: Any, size: int, due_s: float, user: int) -> None:
    """Adds a user who is due then to the heap of *size* users."""
    at = size
    while at > 0:
        parent = (at - 1) // 2
        if heap_s[parent] < due_s or (heap_s[parent] == due_s and heap_u[parent] < user):
            break
        heap_s[at], heap_u[at] = heap_s[parent], heap_u[parent]
        at = parent
    heap_s[at], heap_u[at] = due_s, user


@compiled
def _pop(heap_s: Any, heap_u: Any, size: int) -> None:
    """Takes the first off the heap of *size* users."""
    size -= 1
    due_s, user = heap_s[size], heap_u[size]
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and (
            heap_s[child + 1] < heap_s[child]
            or (heap_s[child + 1] == heap_s[child] and heap_u[child + 1] < heap_u[child])
        ):
            child += 1
        if due_s < heap_s[child] or (due_s == heap_s[child] and user < heap_u[child]):
            break
        heap_s[at], heap_u[at] = heap_s[child], heap_u[child]
        at = child
    heap_s[at], heap_u[at] = due_s, user


@compiled
def _empty(e: Engines) -> None:
    """All engines idle, all memory free."""
    for k in range(len(e.state)):
        e.state[k, FREE] = int(e.s[TOTAL])
        e.state[k, WAITED] = 1
        for field in (HEAD, TAIL, OLDEST, YOUNGEST, PARTIAL):
            e.state[k, field] = -1
        e.state[k, PAGED] = 0 if e.s[KIND] == PREFILL_FIRST else 1
        e.clock[k, 1] = math.inf
        begin_key = e.order.shape[2] - 1
        e.order[AFTER, k, begin_key] = e.state[k, FREE]
        e.order[NEXT_KEY, k, begin_key] = e.order[BEFORE_KEY, k, begin_key] = begin_key


@compiled
def _routed(e: Engines, routing: int, picks: Any, i: int, user: int) -> int:
    """Which engine gets the request, as `Router._choice`."""
    count = len(e.state)
    if count == 1:
        return 0
    if routing == ROUND_ROBIN:
        return i % count
    if routing == STICKY:
        return user % count
    if routing == GIVEN:
        return int(picks[i])
    best = 0
    for k in range(1, count):
        if e.state[k, LOAD] < e.state[best, LOAD]:
            best = k
    return best


@compiled
def _arrive(e: Engines, k: int, i: int, due_s: float) -> None:
    """The request waits at that engine; a run that it may change is cut at its next step."""
    wait(e, k, i, False)
    e.state[k, LOAD] += 1
    if e.state[k, PENDING] == RUN and e.state[k, OPEN] == 1 and due_s < e.clock[k, 1]:
        begun_s = e.clock[k, 0]
        steps = steps_until(e, k, e.state[k, STEPS], due_s - begun_s)
        if steps < e.state[k, STEPS]:
            e.state[k, STEPS] = steps
            e.clock[k, 1] = begun_s + run_s(e, k, steps)


@compiled
def _end(e: Engines, k: int, think_s: Any, heap_s: Any, heap_u: Any, size: int) -> int:
    """Ends what is under way; lets those go whose answers are whole; the heap's new size."""
    if e.state[k, PENDING] == RUN:
        e.state[k, WAITED] += e.state[k, STEPS]
        decode(e, k, e.state[k, STEPS])
    now_s = e.clock[k, 1]
    e.state[k, PENDING] = NOTHING
    e.clock[k, 1] = math.inf
    while e.state[k, DECODING] > 0 and e.seq[LAST, e.ends[k, 0]] <= e.state[k, DECODED]:
        i = end_decode(e, k, 0)
        leave(e, k, i)
        release(e, k, i)
        e.state[k, LOAD] -= 1
        e.times[END, i] = now_s
        _sift_up(heap_s, heap_u, size, now_s + think_s[i], e.seq[USER, i])
        size += 1
    return size


def _serve(
    e: Engines, start_s: Any, think_s: Any, routing: int, picks: Any, heap_s: Any, heap_u: Any
) -> None:
    """Fills the times of all requests; *heap_s* and *heap_u* have a place for each user."""
    n, count = len(think_s), len(e.state)
    _empty(e)
    size = 0
    for u in range(len(start_s)):
        _sift_up(heap_s, heap_u, size, start_s[u], u)
        size += 1
    sent, accepted = 0, 0
    while True:
        now_s = heap_s[0] if size > 0 and sent < n else math.inf
        for k in range(count):
            now_s = min(now_s, e.clock[k, 1])
        if now_s == math.inf:
            return
        for k in range(count):
            if e.clock[k, 1] <= now_s:
                size = _end(e, k, think_s, heap_s, heap_u, size)
        while size > 0 and sent < n and heap_s[0] <= now_s:
            due_s, user = heap_s[0], heap_u[0]
            _pop(heap_s, heap_u, size)
            size -= 1
            e.seq[USER, sent], e.times[PLANNED, sent] = user, due_s
            if _refused(e, sent):
                _sift_up(heap_s, heap_u, size, due_s + _REFUSAL_S + think_s[sent], user)
                size += 1
            else:
                _arrive(e, _routed(e, routing, picks, accepted, user), sent, due_s)
                accepted += 1
            sent += 1
        for k in range(count):
            state = e.state
            if state[k, PENDING] == NOTHING and (
                state[k, WAITING] > 0 or state[k, DECODING] > 0 or state[k, PARTIAL] >= 0
            ):
                begin(e, k, now_s)


serve_all = compiled(_serve, kept=True)

"""Clock, users and router of the compiled engine; see `servecap.engine.fast`."""

from __future__ import annotations

import math
from typing import Any

from servecap.engine.kernel_policies import NOTHING, RUN, begin
from servecap.engine.kernel_state import (
    AFTER,
    AHEAD,
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
    LATE,
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
    YOUNGEST,
    Engines,
    blocks_for,
    compiled,
    leave,
    release,
    wait,
)
from servecap.engine.kernel_steps import decode, end_decode, run_s, steps_until

LEAST_LOAD, ROUND_ROBIN, STICKY, GIVEN = range(4)
REFUSAL_S = 0.001


@compiled
def refused(e: Engines, i: int) -> bool:
    """Whether the request can never be served."""
    total = e.seq[PROMPT, i] + e.seq[RESERVE, i]
    if total > e.s[CONTEXT_MAX] or blocks_for(total) > e.s[TOTAL]:
        return True
    return bool(e.s[KIND] != 0 and e.seq[PROMPT, i] > e.s[BUDGET])


@compiled
def sift_up(heap_s: Any, heap_u: Any, size: int, due_s: float, user: int) -> None:
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
def pop(heap_s: Any, heap_u: Any, size: int) -> None:
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
def empty(e: Engines) -> None:
    """All engines idle, all memory free."""
    for k in range(len(e.state)):
        e.state[k, FREE] = int(e.s[TOTAL])
        e.state[k, WAITED] = 1
        for field in (HEAD, TAIL, OLDEST, YOUNGEST, PARTIAL):
            e.state[k, field] = -1
        e.state[k, PAGED] = 0 if e.s[KIND] == PREFILL_FIRST else 1
        e.ends_s[k] = math.inf
        begin_key = e.order.shape[2] - 1
        e.order[AFTER, k, begin_key] = e.state[k, FREE]
        e.order[NEXT_KEY, k, begin_key] = e.order[BEFORE_KEY, k, begin_key] = begin_key


@compiled
def routed(e: Engines, routing: int, turn: int, user: int, pick: int) -> int:
    """Which engine gets the request, as `Router._choice`; *pick* is where a given route goes."""
    count = len(e.state)
    if count == 1:
        return 0
    if routing == ROUND_ROBIN:
        return turn % count
    if routing == STICKY:
        return user % count
    if routing == GIVEN:
        return pick
    best = 0
    for k in range(1, count):
        if e.state[k, LOAD] < e.state[best, LOAD]:
            best = k
    return best


@compiled
def arrive(e: Engines, k: int, i: int, due_s: float) -> None:
    """The request waits at that engine; a run that it may change is cut at its next step.

    Where steps are planned ahead, the next one is planned without it: the cut is one step later,
    and who comes in the last step of a run, or in any other step, is late for the next one.
    """
    wait(e, k, i, False)
    e.state[k, LOAD] += 1
    ahead, late = int(e.s[AHEAD]), True
    if e.state[k, PENDING] == RUN and due_s < e.ends_s[k]:
        since_s, most = due_s - e.begins_s[k], e.state[k, STEPS]
        if e.state[k, OPEN] == 1:
            steps = steps_until(e, k, most, since_s)
            late = steps == most
            if steps + ahead < most:
                e.state[k, STEPS] = steps + ahead
                e.ends_s[k] = e.begins_s[k] + run_s(e, k, steps + ahead)
        elif ahead == 1:
            late = most == 1 or since_s > run_s(e, k, most - 1)
    if late:
        e.state[k, LATE] += ahead


@compiled
def end(e: Engines, k: int) -> None:
    """Counts what was under way and ends now."""
    if e.state[k, PENDING] == RUN:
        e.state[k, WAITED] += e.state[k, STEPS]
        decode(e, k, e.state[k, STEPS])
    e.state[k, PENDING] = NOTHING
    e.ends_s[k] = math.inf


@compiled
def gone(e: Engines, k: int) -> int:
    """Lets the next one go whose answer is whole; who it is, or -1."""
    if e.state[k, DECODING] == 0 or e.seq[LAST, e.ends[k, 0]] > e.state[k, DECODED]:
        return -1
    i = end_decode(e, k, 0)
    leave(e, k, i)
    release(e, k, i)
    e.state[k, LOAD] -= 1
    return i


@compiled
def next_end_s(e: Engines) -> float:
    """When the first of the engines ends what it does; infinite where none does anything."""
    found = math.inf
    for k in range(len(e.ends_s)):
        found = min(found, e.ends_s[k])
    return found


@compiled
def begin_all(e: Engines, now_s: float) -> None:
    """Every engine that has work and does nothing begins."""
    for k in range(len(e.state)):
        if e.state[k, PENDING] == NOTHING and e.state[k, LOAD] > 0:
            begin(e, k, now_s)


def _serve(
    e: Engines, start_s: Any, think_s: Any, routing: int, picks: Any, heap_s: Any, heap_u: Any
) -> None:
    """Fills the times of all requests; *heap_s* and *heap_u* have a place for each user."""
    n, count = len(think_s), len(e.state)
    empty(e)
    size = 0
    for u in range(len(start_s)):
        sift_up(heap_s, heap_u, size, start_s[u], u)
        size += 1
    sent, accepted = 0, 0
    while True:
        now_s = heap_s[0] if size > 0 and sent < n else math.inf
        now_s = min(now_s, next_end_s(e))
        if now_s == math.inf:
            return
        for k in range(count):
            if e.ends_s[k] <= now_s:
                end(e, k)
                i = gone(e, k)
                while i >= 0:
                    e.times[END, i] = now_s
                    sift_up(heap_s, heap_u, size, now_s + think_s[i], e.seq[USER, i])
                    size += 1
                    i = gone(e, k)
        while size > 0 and sent < n and heap_s[0] <= now_s:
            due_s, user = heap_s[0], heap_u[0]
            pop(heap_s, heap_u, size)
            size -= 1
            e.seq[USER, sent], e.times[PLANNED, sent] = user, due_s
            if refused(e, sent):
                sift_up(heap_s, heap_u, size, due_s + REFUSAL_S + think_s[sent], user)
                size += 1
            else:
                pick = picks[accepted] if routing == GIVEN else 0
                arrive(e, routed(e, routing, accepted, user, pick), sent, due_s)
                accepted += 1
            sent += 1
        begin_all(e, now_s)


serve_all = compiled(_serve, kept=True)

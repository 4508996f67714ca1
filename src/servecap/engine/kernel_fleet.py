"""Users and counters of many compiled engines; see `servecap.engine.fleet`.

A user has one request at a time, so the user's number is the request's: memory grows with users
and not with time.
"""

from __future__ import annotations

import math
from typing import Any

from servecap.engine.kernel import (
    GIVEN,
    LEAST_LOAD,
    REFUSAL_S,
    STICKY,
    arrive,
    begin_all,
    empty,
    end,
    gone,
    next_end_s,
    pop,
    refused,
    routed,
    sift_up,
)
from servecap.engine.kernel_state import (
    CACHED,
    FIRST,
    GENERATED,
    HIT,
    LOAD,
    NAMED,
    OUTPUT,
    PLANNED,
    PROMPT,
    RESERVE,
    STARTED,
    USER,
    Engines,
    compiled,
)

BINS, BIN_LEAST_S, BINS_PER_E = 3684, 1e-4, 200.0  # up to 10,000 s, each bin 0.5% wide
ANSWERED, FAILED, LATER, PEAK, SENT = range(5)  # LATER: answers of more than one token
TTFT, TPOT, E2E = range(3)
INSTANCE, OWNER, DUE, GOT_FIRST, GOT_LAST = range(5)  # of the log, by request
ROUTING = {"least-load": LEAST_LOAD, "random": GIVEN, "sticky": STICKY}


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
def _told(e: Engines, seen: Any, i: int, number: int, now_s: float, begin_s: float) -> None:
    """Counts the user's answer, which ends now, and logs it."""
    counts, sums, bins, log = seen
    if number < log.shape[1]:
        log[GOT_FIRST, number], log[GOT_LAST, number] = e.times[FIRST, i], now_s
    if now_s < begin_s:
        return
    counts[ANSWERED] += 1
    due_s, first_s, output = e.times[PLANNED, i], e.times[FIRST, i], e.seq[OUTPUT, i]
    _count(bins, sums, TTFT, first_s - due_s)
    _count(bins, sums, E2E, now_s - due_s)
    if output > 1:
        counts[LATER] += 1
        _count(bins, sums, TPOT, (now_s - first_s) / (output - 1))


@compiled
def _ask(e: Engines, i: int, prompt: int, output: int, due_s: float) -> None:
    """The user's next request."""
    e.seq[PROMPT, i], e.seq[OUTPUT, i], e.seq[RESERVE, i] = prompt, output, output
    e.seq[USER, i], e.seq[HIT, i] = i, -1
    e.seq[CACHED, i] = e.seq[GENERATED, i] = e.seq[NAMED, i] = 0
    e.times[PLANNED, i] = due_s
    e.times[STARTED, i] = e.times[FIRST, i] = math.nan


def _serve_fleet(
    e: Engines,
    start_s: Any,
    asked: Any,
    routing: int,
    window: Any,
    seen: Any,
    numbers: Any,
    heap_s: Any,
    heap_u: Any,
) -> None:
    """Fills *seen* (counts, sums, bins, log) with what ends in the window, and what comes first.

    The n-th request sent takes the n-th value of each series in *asked* (prompt, answer, think
    time, route), from the start again where one is over. *numbers*, *heap_s* and *heap_u* have a
    place for each user, and one more.
    """
    prompt, output, think_s, route = asked
    counts, _, _, log = seen
    begin_s, stop_s = window[0], window[1]
    empty(e)
    size, sent, instances = 0, 0, len(e.state)
    for u in range(len(start_s)):
        sift_up(heap_s, heap_u, size, start_s[u], u)
        size += 1
    while True:
        now_s = min(heap_s[0] if size > 0 else math.inf, next_end_s(e))
        if now_s > stop_s:
            counts[SENT] = sent
            return
        for k in range(instances):
            if e.ends_s[k] <= now_s:
                end(e, k)
                i = gone(e, k)
                while i >= 0:
                    _told(e, seen, i, numbers[i], now_s, begin_s)
                    sift_up(heap_s, heap_u, size, now_s + think_s[numbers[i] % len(think_s)], i)
                    size += 1
                    i = gone(e, k)
        while size > 0 and heap_s[0] <= now_s:
            due_s, user = heap_s[0], heap_u[0]
            pop(heap_s, heap_u, size)
            size -= 1
            _ask(e, user, prompt[sent % len(prompt)], output[sent % len(output)], due_s)
            numbers[user] = sent
            pick = int(route[sent % len(route)] * instances)
            k = routed(e, routing, sent, user, pick)
            if sent < log.shape[1]:
                log[INSTANCE, sent], log[OWNER, sent], log[DUE, sent] = k, user, due_s
            if refused(e, user):
                counts[FAILED] += 1 if due_s >= begin_s else 0
                again_s = due_s + REFUSAL_S + think_s[sent % len(think_s)]
                sift_up(heap_s, heap_u, size, again_s, user)
                size += 1
            else:
                arrive(e, k, user, due_s)
                if due_s >= begin_s:
                    counts[PEAK] = max(counts[PEAK], e.state[k, LOAD])
            sent += 1
        begin_all(e, now_s)


serve_fleet = compiled(_serve_fleet, kept=True)

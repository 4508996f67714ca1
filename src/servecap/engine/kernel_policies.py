"""What an engine does next, by policy, in the compiled engine; see `servecap.engine.fast`.

What is under way is PENDING until the engine's clock says that it ends. A RUN of steps in which
all that run decode is counted when it ends, so that an arrival can cut it short (where it is
OPEN: the newcomer may change what is done next); any other STEP is counted when it begins.
"""

from __future__ import annotations

import math

from servecap.engine.kernel_state import (
    BETWEEN,
    BUDGET,
    CACHED,
    CHUNKED,
    CONTEXT,
    DECODED,
    DECODING,
    FIRST,
    FREE,
    GENERATED,
    HEAD,
    JOINED,
    KIND,
    LAST,
    LATE,
    MAX_RUNNING,
    MAX_WAITING,
    NEXT,
    OLDEST,
    OPEN,
    PARTIAL,
    PENDING,
    PREEMPTED,
    PROMPT,
    RATIO,
    RESERVE,
    RUNNING,
    SINCE,
    SPARED,
    STEPS,
    VLLM_2023,
    WAITED,
    WAITING,
    Engines,
    admit,
    compiled,
    hold,
    known,
    missing,
    needed,
    take,
)
from servecap.engine.kernel_steps import (
    add_chunk,
    advance,
    affordable,
    begin_decode,
    blocks_of_run,
    preempt,
    run_s,
    step_s,
)
from servecap.engine.kv import BLOCK_TOKENS

NOTHING, STEP, RUN = range(3)
_ENDLESS = 1 << 40  # steps


@compiled
def begin(e: Engines, k: int, now_s: float) -> None:
    """Starts what the idle engine does next; it has work."""
    e.begins_s[k] = now_s
    if e.state[k, RUNNING] == 0:  # no step was planned
        e.state[k, LATE] = 0
    if e.s[KIND] == CHUNKED:
        _chunked(e, k, now_s)
    elif e.s[KIND] == VLLM_2023:
        _vllm_2023(e, k, now_s)
    else:
        _prefill_first(e, k, now_s)
    e.state[k, LATE] = 0


@compiled
def _run(e: Engines, k: int, now_s: float, most: int, opened: bool) -> None:
    """Starts a run of steps until somebody ends, *most* at the most."""
    steps = min(most, e.seq[LAST, e.ends[k, 0]] - e.state[k, DECODED])
    e.state[k, PENDING], e.state[k, STEPS] = RUN, steps
    e.state[k, OPEN] = 1 if opened else 0
    e.ends_s[k] = now_s + run_s(e, k, steps)


@compiled
def _paged_run(e: Engines, k: int, now_s: float, most: int, opened: bool) -> bool:
    """Starts a run as long as there is memory; False where that is not even one step."""
    most = affordable(e, k, min(most, e.seq[LAST, e.ends[k, 0]] - e.state[k, DECODED]))
    if most == 0:
        return False
    _run(e, k, now_s, most, opened)
    return True


@compiled
def _step(e: Engines, k: int, end_s: float) -> None:
    e.state[k, PENDING] = STEP
    e.ends_s[k] = end_s


@compiled
def _computed(e: Engines, k: int, i: int, tokens: int, end_s: float) -> bool:
    """Counts a chunk; whether the prompt is whole, so that the sequence decodes from now on."""
    if missing(e, i) == tokens:
        e.seq[GENERATED, i] += 1
        if e.seq[GENERATED, i] == 1:
            e.times[FIRST, i] = end_s
    e.seq[CACHED, i] += tokens
    if e.seq[GENERATED, i] > 0 and missing(e, i) == 1:
        begin_decode(e, k, i)
        return True
    return False


@compiled
def _room_to_decode(e: Engines, k: int) -> bool:
    """Takes the blocks of one step for those that decode, oldest first; False: some lost theirs.

    As `Queues.make_room` for each. Those who are not preempted advance by one token.
    """
    need = blocks_of_run(e, k, 1)
    if need <= e.state[k, FREE]:
        take(e, k, need)
        return True
    i = e.state[k, OLDEST]
    while i >= 0:
        cached = e.seq[CACHED, i]
        if i != e.state[k, PARTIAL]:
            cached += e.state[k, DECODED] - e.seq[SINCE, i]
            if cached % BLOCK_TOKENS == 0:
                lost = False
                while e.state[k, FREE] == 0 and not lost:
                    victim = preempt(e, k)
                    if victim == e.state[k, PARTIAL]:
                        e.state[k, PARTIAL] = -1
                    lost = victim == i
                if lost:
                    return False
                take(e, k, 1)
        i = e.seq[NEXT, i]
    return False


@compiled
def _chunked(e: Engines, k: int, now_s: float) -> None:
    """As `ChunkedPrefill.next_batch`."""
    state = e.state
    count, late = state[k, RUNNING], state[k, LATE]
    if count > 0 and state[k, PARTIAL] < 0:
        blocked = False  # whoever waits must wait until somebody ends, whoever else may come
        if state[k, WAITING] > late:
            blocked = count >= e.s[BUDGET] or count >= e.s[MAX_RUNNING]
            if not blocked:
                head = state[k, HEAD]
                blocked = needed(e, k, head, missing(e, head)) > state[k, FREE]
        if blocked or state[k, WAITING] == late:
            most = 1 if late > 0 and not blocked else _ENDLESS
            if _paged_run(e, k, now_s, most, not blocked):
                return
    before = state[k, PREEMPTED]
    e.sums[:] = 0.0
    budget = int(e.s[BUDGET])
    if state[k, DECODING] > 0:
        _room_to_decode(e, k)
    decodes, context = state[k, DECODING], state[k, CONTEXT]
    budget -= decodes
    partial, tokens = state[k, PARTIAL], 0
    if partial >= 0:
        tokens = min(missing(e, partial), budget)
        if hold(e, k, partial, e.seq[CACHED, partial] + tokens):
            add_chunk(e, partial, tokens, now_s)
            budget -= tokens
        else:
            preempt(e, k)
            partial = state[k, PARTIAL] = -1
    newest, last = -1, 0  # the first who is let in, and the tokens of the last
    while (
        state[k, PREEMPTED] == before
        and state[k, WAITING] > late
        and budget > 0
        and state[k, RUNNING] < e.s[MAX_RUNNING]
    ):
        head = state[k, HEAD]
        if needed(e, k, head, missing(e, head)) > state[k, FREE]:
            break
        i = admit(e, k)
        last = min(missing(e, i), budget)
        hold(e, k, i, e.seq[CACHED, i] + last)
        add_chunk(e, i, last, now_s)
        budget -= last
        newest = i if newest < 0 else newest
    end_s = now_s + step_s(e, decodes, context)
    advance(e, k, 1)
    if partial >= 0 and _computed(e, k, partial, tokens, end_s):
        state[k, PARTIAL] = -1
    while newest >= 0:
        after = e.seq[NEXT, newest]
        tokens = missing(e, newest) if after >= 0 else last
        if not _computed(e, k, newest, tokens, end_s):
            state[k, PARTIAL] = newest
        newest = after
    _step(e, k, end_s)


@compiled
def _vllm_2023(e: Engines, k: int, now_s: float) -> None:
    """As `Vllm2023.next_batch`."""
    state = e.state
    budget, newest = e.s[BUDGET], -1
    e.sums[:] = 0.0
    while state[k, WAITING] > 0 and state[k, RUNNING] < e.s[MAX_RUNNING]:
        head = state[k, HEAD]
        left = state[k, FREE] - needed(e, k, head, missing(e, head))
        if left < (e.s[SPARED] if state[k, RUNNING] > 0 else 0):
            break
        tokens = missing(e, head) - known(e, k, head) * BLOCK_TOKENS
        if tokens > budget and newest >= 0:
            break
        i = admit(e, k)
        hold(e, k, i, e.seq[CACHED, i] + tokens)
        add_chunk(e, i, tokens, now_s)
        budget -= tokens
        newest = i if newest < 0 else newest
    if newest >= 0:
        _prefilled(e, k, newest, now_s + step_s(e, 0, 0))
        return
    if _paged_run(e, k, now_s, _ENDLESS, state[k, WAITING] == 0):
        return
    _room_to_decode(e, k)
    end_s = now_s + step_s(e, state[k, DECODING], state[k, CONTEXT])
    advance(e, k, 1)
    _step(e, k, end_s)


@compiled
def _prefilled(e: Engines, k: int, newest: int, end_s: float) -> None:
    """Counts whole prompts, from that one to the youngest; nobody else advances."""
    while newest >= 0:
        _computed(e, k, newest, missing(e, newest), end_s)
        newest = e.seq[NEXT, newest]
    _step(e, k, end_s)


@compiled
def _newcomers(e: Engines, k: int) -> int:
    """How many join, as `PrefillFirstScheduler._newcomers`."""
    count = e.state[k, RUNNING]
    least = 1
    if count > 0 and e.state[k, WAITED] < e.s[MAX_WAITING]:
        least = max(1, math.floor(count * e.s[RATIO]))
    waiting = e.state[k, WAITING] - e.state[k, LATE]
    if waiting < least:
        return 0
    budget, blocks = e.s[BUDGET], e.state[k, FREE]
    room = int(e.s[MAX_RUNNING]) - count
    chosen, i = 0, e.state[k, HEAD]
    for _ in range(waiting):
        budget -= missing(e, i) - known(e, k, i) * BLOCK_TOKENS
        blocks -= needed(e, k, i, e.seq[PROMPT, i] + e.seq[RESERVE, i])
        if budget < 0 or blocks < 0 or chosen == room:
            break
        chosen += 1
        i = e.seq[NEXT, i]
    return chosen if chosen >= least else 0


@compiled
def _prefill_first(e: Engines, k: int, now_s: float) -> None:
    """As `PrefillFirstScheduler.next_batch`."""
    state = e.state
    count = state[k, RUNNING]
    joined = state[k, JOINED] == 1
    chosen = 0 if joined else _newcomers(e, k)
    if chosen == 0 and count == 0:
        chosen = _newcomers(e, k)
    if chosen == 0:
        state[k, JOINED] = 0
        most, opened = _ENDLESS, True
        if joined or state[k, LATE] > 0:
            most = 1
        elif state[k, WAITING] > 0:
            if state[k, WAITED] < e.s[MAX_WAITING]:
                most = math.ceil(e.s[MAX_WAITING]) - state[k, WAITED]
            else:
                opened = False  # the head of the queue does not fit: only an end can change that
        _run(e, k, now_s, most, opened)
        return
    state[k, JOINED] = 1 if count > 0 and e.s[BETWEEN] == 1 else 0
    state[k, WAITED] = 1
    e.sums[:] = 0.0
    newest = state[k, HEAD]
    for _ in range(chosen):
        i = admit(e, k)
        hold(e, k, i, e.seq[PROMPT, i] + e.seq[RESERVE, i])
        add_chunk(e, i, missing(e, i), now_s)
    _prefilled(e, k, newest, now_s + step_s(e, 0, 0))

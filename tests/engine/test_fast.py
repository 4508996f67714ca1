"""The compiled engine against the reference: the same times for every request."""

from __future__ import annotations

import heapq
import math
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servecap.engine import fast
from servecap.engine.cost import StepCoefficients
from servecap.engine.engine import Engine, EngineRequest
from servecap.engine.fast import Answers, Prefixes, Traffic
from servecap.engine.router import Router, Routing
from servecap.engine.scheduler import (
    ChunkedPrefill,
    Policy,
    PrefillFirst,
    Vllm2023,
    static_batching,
)

KV_TOKENS = 40 * 16
CONTEXT = 480
# A floor that some steps reach and some do not, and no two durations alike.
COST = StepCoefficients(
    0.00131,
    0.00017,
    0.0213,
    0.0101,
    0.00013,
    0.0023,
    0.00011,
    3.7e-5,
    1.3e-8,
    0.00071,
    1.1e-5,
    0.0017,
    elementwise_token_s=0.7e-5,
    elementwise_s=0.00113,
    joint=1.7,
)

# The same with layers that see 90 tokens back, and experts of which few tokens touch but a few.
SPARSE = StepCoefficients(
    **{f: getattr(COST, f) for f in StepCoefficients.__struct_fields__[:12]},
    window_tokens=90,
    window_kv_token_s=2.9e-5,
    window_pair_s=1.7e-8,
    experts_read_s=0.0171,
    unused_log=math.log1p(-1 / 8),
    elementwise_token_s=0.7e-5,
    elementwise_s=0.00113,
)

policies = st.one_of(
    st.builds(
        ChunkedPrefill,
        step_tokens=st.integers(1, 300),
        max_running=st.integers(1, 8),
        plans_ahead=st.booleans(),
    ),
    st.builds(
        Vllm2023,
        step_tokens=st.integers(250, 600),
        max_running=st.integers(1, 8),
        watermark_share=st.floats(0, 0.2),
    ),
    st.builds(
        PrefillFirst,
        waiting_served_ratio=st.floats(0, 2),
        max_waiting_tokens=st.integers(0, 20),
        max_batch_prefill_tokens=st.integers(250, 600),
        max_running=st.integers(1, 8),
        decode_between=st.booleans(),
        plans_ahead=st.booleans(),
    ),
    st.builds(static_batching, max_running=st.integers(1, 8), step_tokens=st.integers(250, 600)),
)
# The same, where few tokens take longer than a roofline has it and many take less.
BENT = msgspec.structs.replace(SPARSE, shape=(0.7, 1.9, 2.3, 1.6, 1.0, 0.8))
costs = st.sampled_from([COST, SPARSE, BENT])
routings = st.sampled_from(["least-load", "round-robin", "random", "sticky"])
# To the microsecond: closer to each other than rounding errors, arrivals have no order.
moments = st.floats(0, 3).map(lambda s: round(s, 6))
# prompt, answer, reserved beyond the answer, think time
requests = st.lists(
    st.tuples(st.integers(1, 300), st.integers(1, 120), st.integers(0, 60), moments),
    min_size=1,
    max_size=40,
)


def reference(
    cost: StepCoefficients,
    policy: Policy,
    traffic: Traffic,
    *,
    instances: int = 1,
    routing: Routing = "least-load",
) -> Answers:
    """The same traffic on a `Router` with engines, step by step."""
    cached = traffic.prefixes is not None
    engines = [
        Engine(cost, policy, kv_tokens=KV_TOKENS, max_context_tokens=CONTEXT, prefix_cache=cached)
        for _ in range(instances)
    ]
    router = Router(engines, routing, seed=5)
    n = len(traffic.prompt_tokens)
    times, hits = np.full((4, n), np.nan), np.zeros(n, np.int64)
    users = np.zeros(n, np.int64)
    due = [(float(s), u) for u, s in enumerate(traffic.start_s)]
    heapq.heapify(due)
    sent = 0
    while True:
        ahead = [] if router.next_s is None else [router.next_s]
        if due and sent < n:
            ahead.append(due[0][0])
        if not ahead:
            preemptions = sum(engine.preemptions for engine in engines)
            return Answers(users, times[0], times[1], times[2], times[3], hits, preemptions)
        now_s = min(ahead)
        for step in router.ended(now_s):
            times[1, list(step.started)] = step.start_s
            times[2, list(step.first)] = now_s
            for i, tokens in step.hits.items():
                hits[i] = tokens
            for i in step.finished:
                times[3, i] = now_s
                heapq.heappush(due, (now_s + float(traffic.think_s[i]), int(users[i])))
        while due and sent < n and due[0][0] <= now_s:
            due_s, users[sent] = heapq.heappop(due)
            times[0, sent] = due_s
            if router.submit(request_of(traffic, sent), int(users[sent])) is not None:
                again_s = due_s + 0.001 + float(traffic.think_s[sent])
                heapq.heappush(due, (again_s, int(users[sent])))
            sent += 1
        router.start(now_s)


def request_of(traffic: Traffic, i: int) -> EngineRequest:
    keys: tuple[int, ...] = ()
    if traffic.prefixes is not None:
        at = traffic.prefixes.at
        keys = tuple(traffic.prefixes.keys[at[i] : at[i + 1]].tolist())
    return EngineRequest(
        i,
        int(traffic.prompt_tokens[i]),
        int(traffic.output_tokens[i]),
        int(traffic.reserve_tokens[i]),
        keys,
    )


def traffic_of(
    starts: list[float],
    rows: list[tuple[int, int, int, float]],
    prefixes: Prefixes | None = None,
) -> Traffic:
    prompt, answer, spare, think_s = (np.array(column) for column in zip(*rows, strict=True))
    # No two users are due at the same moment: which is first would be a matter of rounding.
    think_s = think_s + 0.0137 * np.sqrt(np.arange(1, len(rows) + 1))
    return Traffic(np.array(starts), prompt, answer, answer + spare, think_s, prefixes)


def shared(groups: list[tuple[int, int]]) -> Prefixes:
    """Each request begins like the others of its group, for so many blocks."""
    keys = [[group * 20 + block for block in range(blocks)] for group, blocks in groups]
    at = np.cumsum([0, *(len(own) for own in keys)])
    return Prefixes(np.array([k for own in keys for k in own], np.int64), at, 60)


def held_together(compiled: Answers, expected: Answers) -> None:
    assert compiled.preemptions == expected.preemptions
    for name in ("user", "planned_s", "started_s", "first_s", "end_s", "hit_tokens"):
        np.testing.assert_allclose(
            getattr(compiled, name), getattr(expected, name), rtol=1e-9, atol=1e-9, err_msg=name
        )


@settings(max_examples=300)
@given(costs, policies, st.lists(moments, min_size=1, max_size=20), requests)
def test_every_request_has_the_times_of_the_reference(
    cost: StepCoefficients,
    policy: Policy,
    starts: list[float],
    rows: list[tuple[int, int, int, float]],
) -> None:
    traffic = traffic_of(starts, rows)
    compiled = fast.serve(cost, policy, traffic, kv_tokens=KV_TOKENS, max_context_tokens=CONTEXT)
    held_together(compiled, reference(cost, policy, traffic))


@settings(max_examples=200)
@given(
    costs, policies, st.lists(moments, min_size=1, max_size=20), requests, st.integers(1, 3),
    routings, st.data(),
)  # fmt: skip
def test_so_it_has_with_a_prefix_cache_and_behind_a_router(
    cost: StepCoefficients,
    policy: Policy,
    starts: list[float],
    rows: list[tuple[int, int, int, float]],
    instances: int,
    routing: Routing,
    data: st.DataObject,
) -> None:
    groups = [data.draw(st.tuples(st.integers(0, 2), st.integers(0, 20))) for _ in rows]
    traffic = traffic_of(starts, rows, shared(groups))
    compiled = fast.serve(
        cost, policy, traffic, kv_tokens=KV_TOKENS, max_context_tokens=CONTEXT,
        instances=instances, routing=routing, seed=5,
    )  # fmt: skip
    held_together(compiled, reference(cost, policy, traffic, instances=instances, routing=routing))


@pytest.mark.parametrize("policy", [ChunkedPrefill(), Vllm2023(), PrefillFirst()])
def test_memory_that_is_short_delays_but_loses_nobody(policy: Policy) -> None:
    rows = [(100, 100, 0, 0.5)] * 200
    answers = fast.serve(
        COST,
        policy,
        traffic_of([0.0] * 20, rows),
        kv_tokens=KV_TOKENS,
        max_context_tokens=CONTEXT,
    )
    assert np.all(answers.end_s >= answers.first_s)
    assert np.all(answers.first_s > answers.planned_s)
    assert (answers.preemptions > 0) == (not isinstance(policy, PrefillFirst))


def test_what_can_never_be_served_is_refused() -> None:
    answers = fast.serve(
        COST,
        PrefillFirst(max_batch_prefill_tokens=50),
        traffic_of([0.0], [(51, 5, 0, 1.0), (50, 5, 0, 1.0), (10, 700, 0, 1.0)]),
        kv_tokens=KV_TOKENS,
        max_context_tokens=CONTEXT,
    )
    assert [math.isnan(end_s) for end_s in answers.end_s] == [True, False, True]
    assert answers.planned_s[1] == pytest.approx(1.0147)


WITHOUT = """
import sys
sys.modules["numba"] = None  # its import fails
from servecap.engine import fast
assert not fast.COMPILED
sys.path.insert(0, {tests!r})
import numpy as np
import test_fast as t
rows = [(20 + 37 * k % 200, 3 + k % 50, 0, 0.1) for k in range(25)]
traffic = t.traffic_of([0.0, 0.3, 0.7], rows)
static = t.static_batching(max_running=4)
for policy in (t.ChunkedPrefill(), t.Vllm2023(), t.PrefillFirst(), static):
    found = fast.serve(t.COST, policy, traffic, kv_tokens=640, max_context_tokens=480)
    t.held_together(found, t.reference(t.COST, policy, traffic))
print("same")
"""


def test_without_numba_it_is_the_same_only_slower() -> None:
    code = WITHOUT.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr

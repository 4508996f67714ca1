"""The engine as a machine: what must hold whatever is asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.engine.cost import StepWork
from servecap.engine.engine import Engine, EngineRequest, Step
from servecap.engine.kv import BlockPool
from servecap.engine.scheduler import (
    ChunkedPrefill,
    Policy,
    PrefillFirst,
    Vllm2023,
    plans_ahead,
    static_batching,
)
from servecap.engine.spec import EngineKind, EngineSpec, build, default_policy
from servecap.errors import UsageError
from servecap.predict.harness import Harness

SMALL_POOL = 40 * 16  # tokens; the requests below need up to 30 blocks each


class Linear:
    """A step of 10 ms + 1 ms per token computed."""

    def step_s(self, work: StepWork) -> float:
        return 0.01 + 0.001 * work.tokens


def engine(policy: Policy, *, kv_tokens: int = SMALL_POOL, prefix_cache: bool = False) -> Engine:
    return Engine(
        Linear(), policy, kv_tokens=kv_tokens, max_context_tokens=480, prefix_cache=prefix_cache
    )


policies = st.one_of(
    st.builds(
        ChunkedPrefill,
        step_tokens=st.integers(1, 300),
        max_running=st.integers(1, 8),
        plans_ahead=st.booleans(),
    ),
    st.builds(
        PrefillFirst,
        waiting_served_ratio=st.floats(0, 2),
        max_waiting_tokens=st.integers(0, 20),
        max_batch_prefill_tokens=st.integers(300, 600),
        max_running=st.integers(1, 8),
        plans_ahead=st.booleans(),
    ),
    st.builds(Vllm2023, step_tokens=st.integers(300, 600), max_running=st.integers(1, 8)),
    st.builds(static_batching, max_running=st.integers(1, 8)),
)

# (gap to the one before in seconds, prompt, answer, reserved beyond the answer)
jobs = st.lists(
    st.tuples(
        st.floats(0, 2), st.integers(1, 300), st.integers(1, 120), st.integers(0, 60)
    ),
    min_size=1,
    max_size=25,
)  # fmt: skip
Jobs = list[tuple[float, int, int, int]]


def arrivals(todo: Jobs) -> Iterator[tuple[float, EngineRequest]]:
    now_s = 0.0
    for number, (gap_s, prompt, answer, spare) in enumerate(todo):
        now_s += gap_s
        yield now_s, EngineRequest(number, prompt, answer, answer + spare)


def drive(
    machine: Engine, due: Iterable[tuple[float, EngineRequest]], *, now_s: float = 0.0
) -> Iterator[Step]:
    """All steps from *now_s*, with requests submitted as the clock passes them."""
    queue = list(due)
    while True:
        while queue and queue[0][0] <= now_s:
            assert machine.submit(queue.pop(0)[1]) is None
        step = machine.step(now_s)
        if step is not None:
            yield step
            now_s = step.end_s
        elif queue:
            now_s = queue[0][0]
        else:
            return


@given(policies, jobs)
def test_every_request_ends_once_with_exactly_its_tokens(policy: Policy, todo: Jobs) -> None:
    machine = engine(policy)
    tokens: dict[int, int] = {}
    finished: list[int] = []
    first: list[int] = []
    started: list[int] = []
    for step in drive(machine, arrivals(todo)):
        for request_id, count in step.tokens.items():
            assert request_id not in finished
            tokens[request_id] = tokens.get(request_id, 0) + count
        started += step.started
        first += step.first
        finished += step.finished
    everybody = list(range(len(todo)))
    assert sorted(finished) == sorted(first) == sorted(started) == everybody
    assert tokens == {number: answer for number, (_, _, answer, _) in enumerate(todo)}
    assert machine.idle


@given(policies, jobs)
def test_kv_blocks_are_conserved(policy: Policy, todo: Jobs) -> None:
    machine = engine(policy)
    queues = machine._queues
    for _ in drive(machine, arrivals(todo)):
        held = sum(sequence.blocks for sequence in queues.running)
        assert all(sequence.blocks == 0 for sequence in queues.waiting)
        assert held + queues.pool.free == queues.pool.total
        assert 0 <= machine.kv_used_share <= 1
        for sequence in queues.running:
            assert sequence.cached <= sequence.blocks * 16
    assert queues.pool.free == queues.pool.total


@given(policies, jobs)
def test_time_never_goes_backwards_and_the_batch_keeps_its_bounds(
    policy: Policy, todo: Jobs
) -> None:
    machine = engine(policy)
    last_s = 0.0
    for step in drive(machine, arrivals(todo)):
        assert last_s <= step.start_s < step.end_s
        last_s = step.end_s
        assert machine.running <= policy.max_running
        assert len(step.tokens) <= policy.max_running


@given(policies, jobs)
def test_the_same_requests_give_the_same_steps(policy: Policy, todo: Jobs) -> None:
    first = list(drive(engine(policy), arrivals(todo)))
    second = list(drive(engine(policy), arrivals(todo)))
    assert first == second


@given(st.integers(1, 300), st.integers(1, 8), jobs)
def test_first_tokens_come_in_order_of_arrival_where_memory_suffices(
    step_tokens: int, max_running: int, todo: Jobs
) -> None:
    policy = ChunkedPrefill(step_tokens=step_tokens, max_running=max_running)
    machine = engine(policy, kv_tokens=100_000)
    first = [i for step in drive(machine, arrivals(todo)) for i in step.first]
    assert first == sorted(first)
    assert machine.preemptions == 0


@given(policies, jobs, st.data())
def test_cancelling_frees_everything(policy: Policy, todo: Jobs, data: st.DataObject) -> None:
    machine = engine(policy)
    gone: set[int] = set()
    delivered: set[int] = set()
    for step in drive(machine, arrivals(todo)):
        assert not gone & step.tokens.keys()
        delivered.update(step.finished)
        victim = data.draw(st.integers(0, len(todo) - 1))
        if victim in machine._sequences:
            assert machine.cancel(victim)
            gone.add(victim)
        assert not machine.cancel(-1)
    assert delivered | gone == set(range(len(todo)))
    assert machine._queues.pool.free == machine._queues.pool.total
    assert machine.running == machine.waiting == 0


def test_the_youngest_is_preempted_and_computed_again() -> None:
    machine = engine(ChunkedPrefill(), kv_tokens=20 * 16)
    assert machine.submit(EngineRequest(0, 150, 100)) is None
    assert machine.submit(EngineRequest(1, 150, 100)) is None
    steps = list(drive(machine, []))
    preempted = [i for step in steps for i in step.preempted]
    assert preempted
    assert set(preempted) == {1}
    assert machine.preemptions == len(preempted)
    ends = {i: step.end_s for step in steps for i in step.finished}
    assert ends[0] < ends[1]
    # Recomputing shows as a gap in its stream that no decode step explains.
    times = [step.end_s for step in steps if 1 in step.tokens]
    assert max(b - a for a, b in pairwise(times)) > 0.15


def test_chunked_prefill_keeps_decodes_going_and_prefill_first_stalls_them() -> None:
    def longest_gap(policy: Policy) -> float:
        machine = engine(policy, kv_tokens=100_000)
        machine.submit(EngineRequest(0, 10, 100))
        due = [(0.5, EngineRequest(number, 300, 5)) for number in range(1, 9)]
        times = [step.end_s for step in drive(machine, due) if 0 in step.tokens]
        return max(b - a for a, b in pairwise(times))

    chunked = longest_gap(ChunkedPrefill(step_tokens=100))
    whole = longest_gap(PrefillFirst(max_batch_prefill_tokens=2400, waiting_served_ratio=0))
    assert chunked == pytest.approx(0.01 + 0.001 * 100)
    assert whole > 2.4


@pytest.mark.parametrize("policy", [ChunkedPrefill, PrefillFirst])
def test_who_comes_during_a_step_joins_the_next_but_one_where_steps_are_planned_ahead(
    policy: type[ChunkedPrefill | PrefillFirst],
) -> None:
    for ahead in (False, True):
        machine = engine(policy(plans_ahead=ahead), kv_tokens=10_000)
        machine.submit(EngineRequest(0, 10, 3))
        first = machine.step(0.0)  # nobody ran: nothing was planned without it
        assert first is not None
        assert first.started == (0,)
        machine.submit(EngineRequest(1, 10, 1))
        machine.submit(EngineRequest(2, 10, 1))
        assert machine.waiting == 2
        assert machine.cancel(2)
        second, third = list(drive(machine, [], now_s=first.end_s))[:2]
        assert (second.started, third.started) == (((), (1,)) if ahead else ((1,), ()))


@pytest.mark.parametrize(
    ("kind", "ahead"),
    [("vllm", True), ("sglang", True), ("vllm-2025", False), ("vllm-2023", False), ("tgi", False),
     ("llama.cpp", False), ("static", False)],
)  # fmt: skip
def test_which_engines_plan_a_step_while_the_one_before_is_computed(
    kind: EngineKind, ahead: bool
) -> None:
    spec = EngineSpec(model="llama-3.1-8b", gpu="a100-80gb", engine=kind)
    assert plans_ahead(default_policy(spec)) is ahead
    assert plans_ahead(Harness(engine=kind).policy) is ahead


def test_newcomers_of_tgi_wait_for_their_ratio_or_for_the_decode_steps() -> None:
    machine = engine(PrefillFirst(max_waiting_tokens=5, waiting_served_ratio=1.0), kv_tokens=10_000)
    machine.submit(EngineRequest(0, 10, 100))
    machine.submit(EngineRequest(1, 10, 100))
    prefill = machine.step(0.0)
    assert prefill is not None
    machine.submit(EngineRequest(2, 10, 100))  # one is fewer than the two that run
    steps = []
    for step in drive(machine, [], now_s=prefill.end_s):
        steps.append(step)
        if step.started:
            break
    assert [bool(step.started) for step in steps] == [False] * 4 + [True]
    machine.submit(EngineRequest(3, 10, 100))
    machine.submit(EngineRequest(4, 10, 100))
    machine.submit(EngineRequest(5, 10, 100))  # three are as many as run
    now_s = steps[-1].end_s
    decode = machine.step(now_s)
    assert decode is not None
    assert not decode.started  # one decode step always follows a joined prefill
    joined = machine.step(decode.end_s)
    assert joined is not None
    assert joined.started == (3, 4, 5)


def test_tgi_reserves_the_longest_answer() -> None:
    machine = engine(PrefillFirst(), kv_tokens=40 * 16)
    machine.submit(EngineRequest(0, 16, 2, 300))
    machine.submit(EngineRequest(1, 16, 2, 400))
    machine.step(0.0)
    assert machine.running == 1
    assert machine.kv_used_share == pytest.approx(20 / 40)


@pytest.mark.parametrize(
    ("policy", "request_", "reason"),
    [
        (ChunkedPrefill(), EngineRequest(0, 470, 11), "more than the model's context of 480"),
        (ChunkedPrefill(), EngineRequest(0, 300, 150), "more than the 320 that fit into the KV"),
        (ChunkedPrefill(), EngineRequest(0, 10, 20, 440), "more than the 320"),
        (PrefillFirst(max_batch_prefill_tokens=99), EngineRequest(0, 100, 5), "prefill_tokens 99"),
    ],
)
def test_what_can_never_be_served_is_refused_with_the_reason(
    policy: Policy, request_: EngineRequest, reason: str
) -> None:
    machine = engine(policy, kv_tokens=320)
    told = machine.submit(request_)
    assert told is not None
    assert reason in told
    assert machine.idle


def test_misuse_is_an_error() -> None:
    machine = engine(ChunkedPrefill())
    assert machine.step(0.0) is None
    machine.submit(EngineRequest(0, 10, 10))
    with pytest.raises(ValueError, match="already in the engine"):
        machine.submit(EngineRequest(0, 10, 10))
    step = machine.step(1.0)
    assert step is not None
    with pytest.raises(ValueError, match="the last one ends"):
        machine.step(step.end_s - 0.001)
    with pytest.raises(ValueError, match="at least one token"):
        EngineRequest(1, 0, 1)
    with pytest.raises(ValueError, match="longer than what is reserved"):
        EngineRequest(1, 1, 10, 5)
    with pytest.raises(ValueError, match="less than one block"):
        engine(ChunkedPrefill(), kv_tokens=15)
    pool = BlockPool(160)
    assert pool.take(10)
    assert not pool.take(1)
    with pytest.raises(ValueError, match="given back"):
        pool.give(11)


def test_an_engine_is_built_from_names() -> None:
    machine = build(EngineSpec(model="llama-13b", gpu="a100-40gb", tp=4))
    assert machine.kv_tokens > 100_000
    assert machine.max_context_tokens == 2048
    small = build(EngineSpec(model="llama-13b", gpu="A100", gpu_memory_gb=40, engine="tgi"))
    assert small.kv_tokens < machine.kv_tokens / 4
    with pytest.raises(UsageError, match="does not fit"):
        build(EngineSpec(model="llama-65b", gpu="a30"))
    with pytest.raises(UsageError, match="max_running is 0"):
        build(EngineSpec(model="llama-13b", gpu="a100-40gb", max_running=0))


def test_the_engine_of_2023_does_prompts_or_decodes_but_never_both() -> None:
    machine = engine(Vllm2023(step_tokens=300), kv_tokens=10_000)
    due = [(0.5 * n, EngineRequest(n, 200, 40)) for n in range(8)]
    for step in drive(machine, due):
        assert not step.first or set(step.first) == set(step.tokens)
        assert len(step.first) <= 1  # two prompts are more than the budget


def test_its_watermark_stays_free_when_somebody_is_let_in_but_not_for_decode() -> None:
    machine = engine(Vllm2023(watermark_share=0.25), kv_tokens=SMALL_POOL)
    least = 1.0
    for step in drive(machine, [(0.0, EngineRequest(n, 150, 100)) for n in range(6)]):
        free = 1 - machine.kv_used_share
        if step.first and len(step.first) > 1:
            assert free >= 0.25
        least = min(least, free)
    assert least < 0.25


def test_a_static_batch_lets_nobody_in_before_its_last_answer_is_whole() -> None:
    machine = engine(static_batching(max_running=4), kv_tokens=10_000)
    due = [(0.0, EngineRequest(n, 50, 10 + 30 * n)) for n in range(4)]
    due += [(0.1, EngineRequest(n, 50, 5)) for n in range(4, 7)]
    steps = list(drive(machine, due))
    ends = {i: step.end_s for step in steps for i in step.finished}
    starts = {i: step.start_s for step in steps for i in step.started}
    assert ends[0] < ends[1] < ends[2] < ends[3]
    assert [starts[n] for n in (4, 5, 6)] == [ends[3]] * 3


def keyed(number: int, group: int, prompt: int, answer: int, blocks: int) -> EngineRequest:
    keys = tuple(100 * group + block for block in range(blocks))
    return EngineRequest(number, prompt, answer, answer, keys)


shared = st.lists(
    st.tuples(
        st.floats(0, 2), st.integers(0, 2), st.integers(1, 300), st.integers(1, 120),
        st.integers(0, 20),
    ),
    min_size=1,
    max_size=25,
)  # fmt: skip


@given(policies, shared)
def test_shared_blocks_are_conserved_and_held_by_those_who_say_so(
    policy: Policy, todo: list[tuple[float, int, int, int, int]]
) -> None:
    machine = engine(policy, prefix_cache=True)
    now_s, due = 0.0, []
    for number, (gap_s, group, prompt, answer, blocks) in enumerate(todo):
        now_s += gap_s
        due.append((now_s, keyed(number, group, prompt, answer, blocks)))
    pool = machine._queues.pool
    finished: list[int] = []
    for step in drive(machine, due):
        running = machine._queues.running
        plain = sum(s.blocks - len(s.held_keys) for s in running)
        held = {key for s in running for key in s.held_keys}
        assert plain + len(held) + pool.free == pool.total
        for key, holders in pool._holders.items():
            assert holders == sum(key in s.held_keys for s in running)
        assert all(tokens % 16 == 0 for tokens in step.hits.values())
        finished += step.finished
    assert sorted(finished) == list(range(len(todo)))
    assert pool.free == pool.total


def test_what_is_known_of_a_prompt_is_not_computed_again() -> None:
    machine = engine(ChunkedPrefill(), kv_tokens=10_000, prefix_cache=True)
    first, second = drive(machine, [(0.0, keyed(0, 1, 200, 1, 12)), (1.0, keyed(1, 1, 200, 1, 12))])
    assert first.end_s - first.start_s == pytest.approx(0.01 + 0.2)
    assert second.end_s - second.start_s == pytest.approx(0.01 + 0.008)  # 12 blocks of 16 are known
    assert (first.hits, second.hits) == ({}, {1: 192})


def test_what_was_let_go_first_is_forgotten_first() -> None:
    machine = engine(ChunkedPrefill(), kv_tokens=20 * 16, prefix_cache=True)
    groups = [0, 1, 2, 0, 2]  # 8 blocks each: the third takes blocks of the first
    steps = list(drive(machine, [(n, keyed(n, g, 128, 1, 8)) for n, g in enumerate(groups)]))
    hits = {i: tokens for step in steps for i, tokens in step.hits.items()}
    assert 3 not in hits or hits[3] < 112
    assert hits[4] == 112  # all blocks but the one with the last token

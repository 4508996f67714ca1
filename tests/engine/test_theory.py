"""The engine against queueing theory: laws that hold whatever the numbers are."""

from __future__ import annotations

import heapq
import random

import pytest

from servecap.engine.cost import StepWork
from servecap.engine.engine import Engine, EngineRequest
from servecap.engine.scheduler import ChunkedPrefill, PrefillFirst
from servecap.engine.spec import EngineSpec, build


class Constant:
    """Every step takes one second."""

    def step_s(self, work: StepWork) -> float:  # noqa: ARG002
        return 1.0


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("policy", [ChunkedPrefill(max_running=1), PrefillFirst(max_running=1)])
def test_one_slot_with_poisson_arrivals_waits_as_m_d_1_does(
    policy: ChunkedPrefill | PrefillFirst, utilisation: float
) -> None:
    """Pollaczek-Khinchine for constant service: W = rho / (2 (1 - rho)) service times."""
    machine = Engine(Constant(), policy, kv_tokens=1_000_000, max_context_tokens=1000)
    random_ = random.Random(7)
    count = 60_000
    arrival_s: list[float] = []
    now_s = 0.0
    for _ in range(count):
        now_s += random_.expovariate(utilisation)
        arrival_s.append(now_s)
    waits: list[float] = []
    sent, now_s = 0, 0.0
    while len(waits) < count:
        while sent < count and arrival_s[sent] <= now_s:
            machine.submit(EngineRequest(sent, 10, 1))
            sent += 1
        step = machine.step(now_s)
        if step is None:
            now_s = arrival_s[sent]
            continue
        waits += [step.start_s - arrival_s[i] for i in step.started]
        now_s = step.end_s
    expected = utilisation / (2 * (1 - utilisation))
    assert sum(waits) / count == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", ["vllm", "tgi"])
@pytest.mark.parametrize("users", [1, 20, 150])
def test_littles_law_in_a_closed_loop(kind: str, users: int) -> None:
    """users = throughput x (response + think) over a long window."""
    machine = build(
        EngineSpec(
            model="llama-13b", gpu="a100-40gb", tp=4, engine="tgi" if kind == "tgi" else "vllm"
        )
    )
    random_ = random.Random(3)
    due = [(random_.uniform(0, 5), user) for user in range(users)]
    heapq.heapify(due)
    sent_s: dict[int, float] = {}
    thinks: list[float] = []
    ended: list[tuple[float, float]] = []
    now_s, horizon_s = 0.0, 400.0
    while now_s < horizon_s:
        while due and due[0][0] <= now_s:
            sent_s[due[0][1]] = due[0][0]
            machine.submit(EngineRequest(heapq.heappop(due)[1], 200, random_.randint(50, 250)))
        step = machine.step(now_s)
        if step is None:
            now_s = due[0][0]
            continue
        now_s = step.end_s
        for user in step.finished:
            ended.append((now_s, now_s - sent_s[user]))
            thinks.append(random_.uniform(1, 3))
            heapq.heappush(due, (now_s + thinks[-1], user))
    counted = [response for end_s, response in ended if end_s > 50]
    rate = len(counted) / (now_s - 50)
    cycle = sum(counted) / len(counted) + sum(thinks) / len(thinks)
    assert rate * cycle == pytest.approx(users, rel=0.04)

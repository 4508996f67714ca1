"""Several engines behind a router, step by step and as a target of the simulator."""

from __future__ import annotations

from itertools import count

import pytest

from servecap.engine.cost import StepWork
from servecap.engine.engine import Engine, EngineRequest
from servecap.engine.router import Router, Routing
from servecap.engine.scheduler import ChunkedPrefill
from servecap.engine.spec import EngineSpec
from servecap.record import Message, Request
from servecap.run import Run
from servecap.scenario import ClosedLoop, Scenario, StopRule
from servecap.simulate import simulate
from servecap.summarize import summarize


class Second:
    """Every step takes one second."""

    def step_s(self, work: StepWork) -> float:  # noqa: ARG002
        return 1.0


def router(routing: Routing, engines: int = 3) -> Router:
    return Router(
        [
            Engine(Second(), ChunkedPrefill(), kv_tokens=10_000, max_context_tokens=1000)
            for _ in range(engines)
        ],
        routing,
    )


def where(routing: Routing, users: list[int]) -> list[int]:
    """To which engine each of the requests goes, in the order in which engines end."""
    machine = router(routing)
    for number, user in enumerate(users):
        assert machine.submit(EngineRequest(number, 10, 1), user) is None
    machine.start(0.0)
    placed: dict[int, int] = {}
    for k, step in enumerate(machine.ended(1.0)):
        placed |= dict.fromkeys(step.finished, k)
    return [placed[number] for number in range(len(users))]


def test_round_robin_and_least_load_go_round_and_sticky_keeps_users() -> None:
    assert where("round-robin", [0] * 6) == [0, 1, 2, 0, 1, 2]
    assert where("least-load", [0] * 6) == [0, 1, 2, 0, 1, 2]
    assert where("sticky", [4, 0, 2, 4, 0, 2]) == [1, 0, 2, 1, 0, 2]


def test_least_load_goes_where_an_answer_has_ended() -> None:
    machine = router("least-load")
    for number, tokens in enumerate([9, 1, 9]):
        machine.submit(EngineRequest(number, 10, tokens))
    machine.start(0.0)
    assert [step.finished for step in machine.ended(1.0)] == [(), (1,), ()]
    machine.submit(EngineRequest(3, 10, 1))
    machine.start(1.0)
    third = [step for step in machine.ended(2.0) if 3 in step.first]
    assert [step.started for step in third] == [(3,)]  # alone in its engine


def test_what_is_cancelled_no_longer_loads_its_engine() -> None:
    machine = router("least-load", engines=2)
    for number in range(2):
        machine.submit(EngineRequest(number, 10, 50))
    machine.start(0.0)
    assert machine.cancel(0)
    assert not machine.cancel(0)
    machine.submit(EngineRequest(2, 10, 50))
    machine.ended(1.0)
    machine.start(1.0)
    assert [len(step.tokens) for step in machine.ended(2.0)] == [1, 1]


def test_a_request_that_nobody_takes_is_refused_and_takes_no_turn() -> None:
    machine = router("round-robin")
    assert "more than the model's context" in (machine.submit(EngineRequest(0, 2000, 1)) or "")
    machine.submit(EngineRequest(1, 10, 1))
    machine.start(0.0)
    assert machine.next_s == 1.0
    assert len(machine.ended(1.0)) == 1
    assert machine.next_s is None


def run(users: int, instances: int, routing: Routing = "least-load") -> Run:
    requests = (
        Request(
            request_id=n, messages=(Message("user", "x"),), prompt_tokens=300,
            max_output_tokens=100, exact_output=True,
        )
        for n in count()
    )  # fmt: skip
    scenario = Scenario(load=ClosedLoop(users=users), stop=StopRule(requests=300))
    spec = EngineSpec(model="llama-13b", gpu="a30", tp=2)
    return simulate(scenario, spec, requests, instances=instances, routing=routing)


@pytest.mark.parametrize("routing", ["least-load", "round-robin", "random", "sticky"])
def test_twice_the_instances_carry_twice_the_users_about_as_fast(routing: Routing) -> None:
    one, two, crowded = (
        summarize(r) for r in (run(40, 1), run(80, 2, routing), run(80, 1))
    )  # fmt: skip
    assert two.invalid_reasons == ()
    assert two.qps == pytest.approx(2 * one.qps, rel=0.1)
    assert two.client["tpot"].mean == pytest.approx(one.client["tpot"].mean, rel=0.15)
    assert crowded.client["tpot"].mean > 1.2 * two.client["tpot"].mean

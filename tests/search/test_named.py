"""The number that a search names was measured itself, and its figures keep the SLO."""

from __future__ import annotations

import msgspec
import pytest

from servecap import slo
from servecap.engine.spec import EngineSpec
from servecap.run import Run
from servecap.scenario import ClosedLoop, Scenario
from servecap.search import SearchResult, find
from servecap.search.evidence import Mean
from servecap.search.machine import Search
from servecap.simulate import simulated
from servecap.workload.source import load

SPEC = EngineSpec(model="llama-13b", gpu="a10", tp=2)
ASKED = Scenario(load=ClosedLoop(users=1))


def holds(found: SearchResult) -> bool:
    level = found.at_capacity
    assert level is not None
    return level.users == found.capacity.users and all(
        check.value_s is not None and check.value_s <= check.limit.at_most_s
        for check in level.summary.checks
    )


@pytest.mark.parametrize(
    ("limits", "start"), [("ttft.mean<3s,tpot.mean<100ms", 8), ("ttft.p95<2s", 100)]
)
def test_the_named_number_was_measured_and_keeps_the_slo(limits: str, start: int) -> None:
    asked = msgspec.structs.replace(ASKED, slo=slo.parse(limits))
    found = find(simulated(SPEC, load(asked.workload).requests(0)), asked, start=start)
    assert found.capacity.users_high is not None
    assert 0 < found.capacity.users <= found.capacity.users_high <= found.capacity.users * 1.15 + 2
    assert holds(found)


def test_all_levels_but_the_first_and_those_after_an_overload_go_on() -> None:
    found = find(simulated(SPEC, load(ASKED.workload).requests(0)), ASKED)
    loads = [x.summary for x in found.levels]
    cold = [
        x for x in loads if "hand-over" not in x.window.rule and "given up" not in x.window.rule
    ]
    given_up = [x for x in loads if "given up" in x.window.rule]
    assert len(cold) <= 1 + len(given_up)
    assert len(loads) > 4


def test_a_short_budget_ends_with_a_level_that_can_be_named() -> None:
    probe = simulated(SPEC, load(ASKED.workload).requests(0))
    spent: list[float] = []

    def counted(asked: Scenario) -> Run:
        run = probe(asked)
        spent.append(run.header.load_end_s or 0.0)
        return run

    found = find(counted, ASKED, budget_s=150.0)
    assert "budget" in found.stop_reason
    assert sum(spent) <= 150.5
    assert found.capacity.users > 0
    assert holds(found)


def test_a_load_that_breaks_a_limit_by_chance_is_not_named() -> None:
    """At the interval's lower end the figure lies past its limit: the next lower load is taken."""
    search = Search(start=50, most=1000, precision=0.1)
    for place, (load_, value) in enumerate(
        ((50.0, -0.5), (70.0, 0.3), (60.0, 0.003), (62.0, 0.03))
    ):
        search.tell(load_, [Mean(limit="x", value=value, error=0.03, requests=300 + place)], 300)
    seen = []
    while (asked := search.ask()) is not None:
        seen.append(asked.load)
        unlucky = len(seen) == 1
        value = 0.004 if unlucky else 4 * (asked.load / 61.5 - 1)
        search.tell(asked.load, [Mean(limit="x", value=value, error=0.02, requests=500)], 500)
    found = search.estimate()
    assert found is not None
    assert found.named is not None
    assert found.named != seen[0]
    assert found.named in {50.0, 60.0, *seen}

"""Levels of one simulated load against runs that start anew: the same figures, at less cost."""

from __future__ import annotations

from collections import Counter

import pytest

from servecap.engine.spec import EngineSpec
from servecap.record import Outcome
from servecap.run import Run
from servecap.scenario import ClosedLoop, Load, OpenLoop, Scenario, StopRule
from servecap.simulate import simulate, simulated
from servecap.steady import GIVEN_UP
from servecap.summarize import summarize
from servecap.workload.source import load

SPEC = EngineSpec(model="llama-13b", gpu="a100-40gb", tp=4)
REQUESTS = load(Scenario(load=ClosedLoop(users=1)).workload).requests


def asked(what: Load, *, requests: int = 1000, decide: bool = False) -> Scenario:
    return Scenario(load=what, stop=StopRule(requests=requests, decide=decide))


def levels(*loads: Load, requests: int = 1000) -> list[Run]:
    probe = simulated(SPEC, REQUESTS(0))
    return [probe(asked(what, requests=requests)) for what in loads]


@pytest.mark.parametrize(("before", "after"), [(40, 160), (160, 150), (320, 160), (160, 160)])
def test_a_level_that_goes_on_has_the_figures_of_one_that_starts_anew(
    before: int, after: int
) -> None:
    cold = summarize(simulate(asked(ClosedLoop(users=after)), SPEC, REQUESTS(7)))
    _, level = levels(ClosedLoop(users=before), ClosedLoop(users=after))
    found = summarize(level)
    assert found.invalid_reasons == ()
    for metric, allowed in (("ttft", 0.10), ("tpot", 0.03), ("e2e", 0.06)):
        assert found.client[metric].mean == pytest.approx(cold.client[metric].mean, rel=allowed)
    assert found.qps == pytest.approx(cold.qps, rel=0.05)
    assert found.window.start_s < cold.window.start_s or before > after


def test_each_answer_is_in_one_level() -> None:
    runs = levels(*(ClosedLoop(users=n) for n in (20, 60, 30, 90)), requests=200)
    ended = Counter(r.request_id for run in runs for r in run.records if r.ok)
    cut = {r.request_id for run in runs[:-1] for r in run.records if not r.ok}
    assert set(ended.values()) == {1}
    assert cut <= set(ended) | {r.request_id for r in runs[-1].records}
    assert {r.outcome for run in runs for r in run.records} == {Outcome.OK, Outcome.CENSORED}


def test_rates_go_on_too() -> None:
    runs = levels(OpenLoop(rate_rps=5.0), OpenLoop(rate_rps=15.0), OpenLoop(rate_rps=8.0))
    for run, rate in zip(runs, (5, 15, 8), strict=True):
        summary = summarize(run)
        assert summary.invalid_reasons == ()
        assert summary.qps == pytest.approx(rate, rel=0.1)


def test_after_a_level_that_was_given_up_the_load_starts_anew() -> None:
    probe = simulated(SPEC, REQUESTS(0))
    first = probe(asked(ClosedLoop(users=40), requests=60))
    over = probe(asked(ClosedLoop(users=1500), decide=True))
    after = probe(asked(ClosedLoop(users=50), requests=60))
    assert (over.header.stop_reason or "").startswith(GIVEN_UP)
    assert summarize(over).verdict == "fail"
    before = [x.scenario.load.users_before for x in (first, over, after)]  # type: ignore[union-attr]
    assert before == [None, 40, None]
    assert summarize(after).verdict == "pass"

"""Over-saturation is told from slowness: on queues of the textbooks, in virtual time."""

from __future__ import annotations

import msgspec
import pytest
from queues import Live, Queue

from servecap import flow, slo
from servecap.metrics import Flow, Summary, Verdict
from servecap.run import Run
from servecap.scenario import OpenLoop, Scenario, StopRule
from servecap.schedule import Ramp
from servecap.steady import GROWING, UNSETTLED
from servecap.summarize import summarize

SLOTS = Queue(slots=40, service_s=1.0, cv=0.7)  # answers 40/s at most
FILLING = Queue(slots=10**6, service_s=2.0, cv=0.3, slowing=0.02)  # a batch without an end: 25/s


def level(
    server: Queue, rate: float, *, seed: int = 0, requests: int = 150, most_s: float = 900.0
) -> tuple[Run, Summary, Flow]:
    asked = Scenario(
        load=OpenLoop(rate_rps=rate),
        slo=slo.parse("tpot.mean<10s"),
        stop=StopRule(requests=requests, decide=True, max_duration_s=most_s),
        seed=seed,
    )
    run = Live(server, seed)(asked)
    summary = summarize(run)
    assert summary.flow is not None
    return run, summary, summary.flow


def test_a_queue_that_grows_is_seen_and_tells_what_the_server_answers() -> None:
    run, summary, found = level(SLOTS, 60, requests=600)
    assert run.header.stop_reason == GROWING
    assert found.state == "growing"
    assert found.tells_rate
    assert found.answered_rps == pytest.approx(40, rel=4 * found.answered_error)
    assert found.answered_error < 0.08
    assert found.grew_by == pytest.approx(20 * (found.end_s - found.start_s), rel=0.3)
    assert summary.verdict is Verdict.FAIL, "though the limit on TPOT is kept"
    assert summary.valid
    said = next(w for w in summary.warnings if w.startswith("over-saturated"))
    assert "the queue grows without bound" in said


@pytest.mark.parametrize("rate", [10, 30, 36])
def test_below_what_it_answers_no_queue_is_said_to_grow(rate: float) -> None:
    states = [level(SLOTS, rate, seed=seed)[2].state for seed in range(6)]
    assert set(states) == {"settled"}


@pytest.mark.parametrize("rate", [15, 20])
def test_a_batch_that_fills_slowly_is_no_queue_that_grows(rate: float) -> None:
    """Its answers/s lag behind for long, and the requests in flight rise all that time."""
    for seed in range(3):
        run, _, found = level(FILLING, rate, seed=seed, most_s=60)
        assert found.state != "growing"
        if found.state == "unclear":
            assert (run.header.stop_reason or "").startswith(UNSETTLED)


def test_failures_are_no_answers() -> None:
    found = level(SLOTS, 60)[2]
    assert not msgspec.structs.replace(found, failed_share=0.2).tells_rate


def test_only_requests_at_one_rate_are_watched() -> None:
    assert flow.watched(Scenario(load=OpenLoop(rate_rps=1)))
    for load in (
        OpenLoop(rate_rps=1, schedule=Ramp(2, 60)),
        OpenLoop(rate_rps=1, arrivals="trace"),
        OpenLoop(rate_rps=1, think_s=(1, 3)),
    ):
        assert not flow.watched(Scenario(load=load))


def test_arrivals_vary_as_they_are_asked_to() -> None:
    loads = (
        OpenLoop(rate_rps=1, arrivals="constant"),
        OpenLoop(rate_rps=1),
        OpenLoop(rate_rps=1, arrivals="gamma", cv=2.0),
    )
    assert [flow.arrivals_cv2(x) for x in loads] == [0.0, 1.0, 4.0]

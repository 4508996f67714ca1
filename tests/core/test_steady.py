"""The measured window, stationarity, and when a run may stop."""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np
import pytest
from made import record, records, run, scenario

from servecap import steady
from servecap.columns import Columns
from servecap.metrics import Window
from servecap.record import Outcome, Record
from servecap.scenario import ClosedLoop, OpenLoop, StopRule
from servecap.summarize import in_flight, summarize


def loop(
    users: int,
    *,
    response_s: float = 2.0,
    end_s: float = 200.0,
    warm_s: float = 0.0,
    refused_share: float = 0.0,
) -> list[Record]:
    """N users, think 1 to 3 s, ramped over one cycle; answers three times as slow while warming.

    A refused request ends at once, and its user thinks again.
    """
    random = np.random.default_rng(0)
    due = [(u * (response_s + 2) / users, u) for u in range(users)]
    found: list[Record] = []
    for number in count():
        planned_s, user = heapq.heappop(due)
        if planned_s >= end_s:
            break
        e2e_s = float(response_s * random.uniform(0.9, 1.1)) * (3 if planned_s < warm_s else 1)
        refused = refused_share > 0 and random.random() < refused_share
        e2e_s = 0.005 if refused else e2e_s
        over = planned_s + e2e_s > end_s
        outcome = Outcome.HTTP_ERROR if refused else Outcome.OK
        found.append(
            record(
                min(end_s, planned_s + e2e_s),
                e2e_s=min(e2e_s, end_s - planned_s),
                user=user,
                number=number,
                outcome=Outcome.CENSORED if over else outcome,
            )
        )
        heapq.heappush(due, (planned_s + e2e_s + float(random.uniform(1, 3)), user))
    return sorted(found, key=lambda r: r.end_s)


def test_window_leaves_out_ramp_one_cycle_and_drain() -> None:
    found = loop(20)
    window = steady.window_of(Columns(found), scenario(load=ClosedLoop(users=20)), 200.0)
    assert 3.8 + 3.9 < window.start_s < 60
    assert window.end_s == 200.0
    inside = steady.counted(Columns(found), window)
    assert len(inside)
    assert inside.ok.all()


def test_window_gives_the_true_rate() -> None:
    found = loop(40)
    asked = scenario(load=ClosedLoop(users=40), stop=StopRule(duration_s=200))
    summary = summarize(run(found, asked, end_s=200.0))
    assert summary.qps == pytest.approx(40 / 4, rel=0.03)
    assert summary.in_flight_mean == pytest.approx(20, rel=0.05)
    assert summary.client["e2e"].mean == pytest.approx(2.0, rel=0.02)
    assert summary.valid


def test_slow_warm_up_is_left_out() -> None:
    found = loop(40, warm_s=30.0)
    window = steady.window_of(Columns(found), scenario(load=ClosedLoop(users=40)), 200.0)
    assert window.start_s > 28
    assert "MSER-5" in window.rule
    assert np.mean(steady.counted(Columns(found), window).e2e_s) == pytest.approx(2.0, rel=0.05)


def test_request_that_is_left_out_as_warm_up_is_not_counted() -> None:
    """One that ends at the very start would make the rate too high."""
    found = [record(10 + i, e2e_s=9.0 if i < 20 else 1.0, number=i) for i in range(200)]
    window = steady.window_of(Columns(found), scenario(load=OpenLoop(rate_rps=1.0)), 209.0)
    inside = steady.counted(Columns(found), window)
    assert window.start_s > 20
    assert len(inside) / (window.end_s - window.start_s) == pytest.approx(1.0, abs=1e-6)


def test_classic_runs_are_measured_whole() -> None:
    found = [record(float(i + 1), number=i) for i in range(10)]
    for load in (ClosedLoop(users=2, queue=10), ClosedLoop(users=2, each=5)):
        window = steady.window_of(Columns(found), scenario(load=load), 12.0)
        assert (window.start_s, window.end_s) == (0.0, 10.0)
        assert len(steady.counted(Columns(found), window)) == 10


def test_nothing_ended_or_nothing_succeeded() -> None:
    asked = scenario(load=ClosedLoop(users=2))
    assert steady.window_of(Columns([]), asked, 5.0).end_s == 5.0
    failed = [record(float(i), e2e_s=0.1, outcome=Outcome.REFUSED) for i in range(1, 4)]
    window = steady.window_of(Columns(failed), asked, 5.0)
    assert len(steady.counted(Columns(failed), window)) == 3, (
        "a dead server's failures are all counted"
    )


def test_drift_is_large_and_significant() -> None:
    random = np.random.default_rng(1)
    noise = 0.1 * random.standard_normal(400)
    flat = (1 + noise).tolist()
    assert steady.drift(flat) is None
    assert steady.drift((np.linspace(1, 1.1, 400) + noise).tolist()) is None, "small"
    rising = steady.drift((np.linspace(1, 2, 400) + noise).tolist())
    assert rising == pytest.approx(0.33, abs=0.05)
    falling = steady.drift((np.linspace(2, 1, 400) + noise).tolist())
    assert falling == pytest.approx(-0.33, abs=0.05)
    assert steady.drift([1.0] * 20 + [9.0] * 19) is None, "too few to tell"
    assert steady.drift([1.0] * 20 + [2.0] * 20) is not None


def test_drift_seldom_cries_wolf_on_correlated_noise() -> None:
    random = np.random.default_rng(2)
    false = 0
    for _ in range(200):
        series = np.empty(400)
        series[0] = 0.0
        for i in range(1, 400):
            series[i] = 0.8 * series[i - 1] + random.standard_normal()
        false += steady.drift((5 + series).tolist()) is not None
    assert false <= 6


def told(asked_requests: int, found: list[Record], **rule: float) -> tuple[str | None, int]:
    """What stops the run, and after how many records."""
    stop = StopRule(requests=asked_requests, **rule)  # type: ignore[arg-type]
    enough = steady.Enough(scenario(load=ClosedLoop(users=20), stop=stop))
    for number, one in enumerate(found, start=1):
        enough.note(one)
        if (reason := enough.reason(one.end_s)) is not None:
            return reason, number
    return None, len(found)


def test_run_stops_when_there_is_enough() -> None:
    found = [r for r in loop(20) if r.ok]
    reason, number = told(100, found)
    assert reason is not None
    assert "stationary window" in reason
    seen = Columns(found[:number])
    window = steady.window_of(seen, scenario(load=ClosedLoop(users=20)), found[number - 1].end_s)
    assert len(steady.counted(seen, window)) >= 100
    assert number < 400


def test_run_with_many_refusals_stops_too() -> None:
    """Refused at once, a user's cycle is short: Little's law holds over all requests only."""
    found = [r for r in loop(20, refused_share=0.7) if r.outcome is not Outcome.CENSORED]
    reason, number = told(100, found)
    assert reason is not None
    assert "stationary window" in reason
    assert number < 500


def test_run_stops_by_time() -> None:
    found = [r for r in loop(20) if r.ok]
    reason, number = told(100_000, found, duration_s=50.0)
    assert reason == "50 s passed"
    assert found[number - 1].end_s == pytest.approx(50, abs=1)
    reason, _ = told(100_000, found, max_duration_s=60.0)
    assert reason is not None
    assert "longest time" in reason


def test_run_gives_up_when_all_fail_at_first_or_for_long() -> None:
    failed = [record(i / 100 + 1, outcome=Outcome.REFUSED) for i in range(3000)]
    reason, number = told(100, failed)
    assert number == steady.HOPELESS
    assert reason is not None
    assert "none of the first" in reason
    dying = [record(1.0), *failed]
    reason, number = told(100_000, dying)
    assert number == steady.DEAD + 1
    assert reason is not None
    assert "all failed" in reason


def test_classic_run_goes_on_until_its_count_or_the_longest_time() -> None:
    load = ClosedLoop(users=2, queue=50)
    enough = steady.Enough(scenario(load=load, stop=StopRule(requests=1, max_duration_s=99)))
    for one in records([0.1] * 40):
        enough.note(one)
        assert enough.reason(one.end_s) is None
    assert enough.reason(99.0) is not None


def test_in_flight_counts_what_overlaps_the_window() -> None:
    found = [record(2.0, e2e_s=2.0), record(3.0, e2e_s=2.0), record(9.0, e2e_s=1.0)]
    mean, most = in_flight(Columns(found), Window(start_s=1.0, end_s=5.0, rule=""))
    assert mean == pytest.approx((1 + 2) / 4)
    assert most == 2
    back_to_back = [record(1.0, e2e_s=1.0), record(2.0, e2e_s=1.0)]
    assert in_flight(Columns(back_to_back), Window(start_s=0.0, end_s=2.0, rule="")) == (1.0, 1)

"""Sessions in open loop: who comes does not ask how the server does; later turns wait for it."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest
from playback import play, record_of

from servecap.engine.spec import EngineSpec
from servecap.level import turned_away
from servecap.load import OpenArrivals, OpenSessions, feed_for
from servecap.record import Arrival, Outcome
from servecap.report.words import load_phrase
from servecap.scenario import OpenLoop, Scenario, StopRule, WorkloadSpec
from servecap.schedule import Ramp
from servecap.simulate import simulate
from servecap.summarize import summarize
from servecap.workload import source

LOAD = OpenLoop(rate_rps=4, think_s=(1, 2))


def feed(load: OpenLoop = LOAD, workload: str = "sessions:3x5/4") -> OpenSessions:
    made = feed_for(
        Scenario(load=load),
        source.load(WorkloadSpec(source=workload)).requests(0),
        response_guess_s=1,
    )
    assert isinstance(made, OpenSessions)
    return made


def by_user(arrivals: list[Arrival]) -> dict[int, list[Arrival]]:
    found = defaultdict(list)
    for arrival in arrivals:
        found[arrival.user].append(arrival)
    return found


@pytest.mark.parametrize("response_s", [0.01, 7.0])
def test_sessions_start_as_requests_would_and_turns_follow_answers(response_s: float) -> None:
    """However slow the server is."""
    arrivals, records = play(feed(), lambda a: response_s + 0.1 * (a.user % 3), until_s=60)
    ends = {r.request_id: r.end_s for r in records}
    users = by_user(arrivals)
    assert list(users) == list(range(len(users)))
    for sent in users.values():
        assert [a.request.turn for a in sent] == list(range(len(sent)))
        assert len({a.request.session for a in sent}) == 1
        for one, two in pairwise(sent):
            assert 1 <= two.planned_s - ends[one.request.request_id] <= 2
    plain = OpenArrivals(OpenLoop(rate_rps=4), iter([a.request for a in arrivals]), seed=0)
    expected, _ = play(plain, lambda _: 0.0, most=len(users))
    assert [sent[0].planned_s for sent in users.values()] == [
        a.planned_s for a in expected[: len(users)]
    ]
    whole = [sent for sent in users.values() if sent[0].planned_s < 60 - 3 * response_s - 6]
    assert len(whole) > 50
    assert {len(sent) for sent in whole} == {3}


def test_failed_turn_is_followed_by_the_next() -> None:
    made = feed()
    first = made.take(5.0)[0]
    made.done(record_of(first, 6.0, Outcome.TIMEOUT))
    later = [a for a in made.take(8.0) if a.user == first.user]
    assert [a.request.turn for a in later] == [1]


def test_ends_when_sessions_run_out_and_all_have_left() -> None:
    requests = source.load(WorkloadSpec(source="sessions:2x5/4")).requests(0)
    made = OpenSessions(LOAD, iter([next(requests) for _ in range(10)]), seed=0)
    arrivals, _ = play(made, lambda _: 1.0)
    assert len(arrivals) == 10
    assert made.finished


def test_turn_that_is_not_sent_is_known_as_one() -> None:
    """Or it would count as a session that came."""
    made = feed()
    first = made.take(5.0)[0]
    made.done(record_of(first, 6.0))
    later = next(a for a in made.take(8.0) if a.user == first.user)
    record = turned_away(later, 8.0, 1)
    assert (record.session, record.turn) == (first.request.session, 1)


def test_mixed_with_single_requests() -> None:
    arrivals, _ = play(
        feed(workload="mix:50%sessions:3x5/4,50%fixed:5/4"), lambda _: 0.1, until_s=60
    )
    lengths = [len(sent) for sent in by_user(arrivals).values()]
    assert 0.3 < lengths.count(1) / len(lengths) < 0.7
    assert len({a.request.request_id for a in arrivals}) == len(arrivals)


def test_rates_are_of_sessions_and_the_window_waits_for_later_turns() -> None:
    """Simulated: every third request begins a session once the first ones are through."""
    load = OpenLoop(rate_rps=2, think_s=(1, 1))
    asked = Scenario(load=load, stop=StopRule(duration_s=200))
    requests = source.load(WorkloadSpec(source="sessions:3x50/40")).requests(0)
    run = simulate(asked, EngineSpec(model="llama-13b", gpu="a100-40gb", tp=4), requests)
    summary = summarize(run)
    assert summary.valid, summary.invalid_reasons
    assert summary.rate_of == "sessions"
    assert summary.rate_rps == 2
    assert summary.scheduled_rps == summary.achieved_rps == pytest.approx(2, rel=0.15)
    assert summary.qps == pytest.approx(6, rel=0.15)
    response_s = summary.client["e2e"].mean
    assert summary.window.start_s >= 3 * (0.9 * response_s + 1)
    assert "2 sessions/s (poisson arrivals; think 1 s between turns)" in load_phrase(load)


def test_ramp_of_sessions() -> None:
    arrivals, _ = play(
        feed(OpenLoop(rate_rps=1, schedule=Ramp(9, 40), think_s=(0, 0))), lambda _: 0.1, until_s=40
    )
    starts = [a.planned_s for a in arrivals if a.request.turn == 0]
    assert len(starts) == pytest.approx(200, rel=0.15)
    assert sum(t < 20 for t in starts) == pytest.approx(60, rel=0.3)

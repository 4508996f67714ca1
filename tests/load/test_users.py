"""The closed loop: N users, each with one slot."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playback import play, record_of, requests

from servecap.load import Users, feed_for
from servecap.record import Arrival
from servecap.scenario import ClosedLoop, Scenario


def users(load: ClosedLoop, *, seed: int = 0, response_guess_s: float = 1.0) -> Users:
    return Users(load, requests(), seed=seed, response_guess_s=response_guess_s)


LOADS = st.builds(
    ClosedLoop,
    users=st.integers(1, 12),
    think_s=st.sampled_from([(0.0, 0.0), (0.0, 1.0), (1.0, 3.0), (2.0, 2.0)]),
    queue=st.none() | st.integers(1, 40),
    ramp_s=st.none() | st.floats(0, 10),
)


@given(LOADS, st.integers(0, 3))
def test_user_never_has_two_requests_in_flight(load: ClosedLoop, seed: int) -> None:
    responses = {n: ((n * 7919 + seed) % 97) / 20 for n in range(400)}
    arrivals, records = play(
        users(load, seed=seed), lambda a: responses[a.request.request_id], most=300
    )
    ends = {r.request_id: r.end_s for r in records}
    of_user: dict[int, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        of_user[arrival.user].append(arrival)
    low, high = load.think_s
    for sent in of_user.values():
        for before, after in pairwise(sent):
            think_s = after.planned_s - ends[before.request.request_id]
            assert low - 1e-9 <= think_s <= high + 1e-9


@given(st.integers(1, 12), st.integers(1, 60), st.floats(0.01, 5))
def test_queue_sends_exactly_so_many(number: int, queue: int, response_s: float) -> None:
    feed = users(ClosedLoop(users=number, queue=queue))
    arrivals, records = play(feed, lambda _: response_s)
    assert len(arrivals) == len(records) == queue
    assert [a.request.request_id for a in arrivals] == list(range(queue))
    assert feed.finished
    assert feed.next_s() is None or not feed.take(1e9)
    assert all(a.planned_s == 0 for a in arrivals[: min(number, queue)]), "all start at once"


@given(st.integers(1, 12), st.integers(1, 5))
def test_each_user_sends_exactly_so_many(number: int, each: int) -> None:
    feed = users(ClosedLoop(users=number, each=each))
    arrivals, _ = play(feed, lambda a: 0.1 + a.user)
    assert Counter(a.user for a in arrivals) == dict.fromkeys(range(number), each)
    assert feed.finished


def test_users_start_evenly_over_one_cycle() -> None:
    feed = users(ClosedLoop(users=8, think_s=(1, 3)), response_guess_s=6.0)
    first = [a.planned_s for a in feed.take(100.0)]
    assert first == [float(n) for n in range(8)], "6 s response + 2 s think, over 8 users"
    assert [a.planned_s for a in users(ClosedLoop(users=4, ramp_s=2.0)).take(9)] == [0, 0.5, 1, 1.5]
    assert {a.planned_s for a in users(ClosedLoop(users=4, ramp_s=0.0)).take(0)} == {0.0}


def think_times(order: list[int]) -> dict[int, list[float]]:
    """Think times of three users whose answers arrive in that order, again and again."""
    feed = users(ClosedLoop(users=3, ramp_s=0.0), seed=5)
    in_flight = {a.user: a for a in feed.take(0.0)}
    found: dict[int, list[float]] = defaultdict(list)
    now_s = 0.0
    for _ in range(20):
        for user in order:
            now_s += 10.0
            feed.done(record_of(in_flight[user], now_s))
            due_s = feed.next_s()
            assert due_s is not None
            (again,) = feed.take(due_s)
            assert again.user == user
            in_flight[user] = again
            found[user].append(round(due_s - now_s, 9))
    return found


def test_think_times_do_not_depend_on_the_order_of_answers() -> None:
    assert think_times([0, 1, 2]) == think_times([2, 0, 1])


def test_seeds_differ_and_repeat() -> None:
    def planned(seed: int) -> list[float]:
        feed = users(ClosedLoop(users=5), seed=seed)
        return [a.planned_s for a in play(feed, lambda _: 0.5, most=60)[0]]

    assert planned(0) == planned(0)
    assert planned(0) != planned(1)


def test_closed_loop_keeps_littles_law() -> None:
    """X = N / (R + Z), and X R in flight, for a server with a fixed response time."""
    feed = users(ClosedLoop(users=40, think_s=(1, 3)))
    _, records = play(feed, lambda _: 2.0, until_s=500.0, most=10**6)
    steady = [r for r in records if 100 < r.end_s <= 500]
    assert len(steady) / 400 == pytest.approx(40 / (2.0 + 2.0), rel=0.02)
    assert sum(r.e2e_s for r in steady) / 400 == pytest.approx(20, rel=0.02)


def test_requests_that_run_out_end_the_load() -> None:
    load = ClosedLoop(users=3, ramp_s=0.0)
    feed = Users(load, islice(requests(), 4), seed=0, response_guess_s=1)
    arrivals, records = play(feed, lambda _: 1.0)
    assert len(arrivals) == len(records) == 4
    assert feed.finished


def test_scenario_gets_its_feed() -> None:
    feed = feed_for(Scenario(load=ClosedLoop(users=2)), requests(), response_guess_s=1)
    assert isinstance(feed, Users)

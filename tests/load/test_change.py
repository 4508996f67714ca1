"""A load that is changed while it lives: users come and leave, rates rise and fall."""

from __future__ import annotations

import heapq
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playback import record_of, requests

from servecap.load import Feed, OpenArrivals, TraceArrivals, Users, change
from servecap.record import Arrival
from servecap.scenario import ClosedLoop, OpenLoop


class Played:
    """A feed at a server of a fixed response time; `until` lets it live on."""

    def __init__(self, feed: Feed, response_s: float) -> None:
        self.feed, self.response_s = feed, response_s
        self.arrivals: list[Arrival] = []
        self.ends: list[tuple[float, int, Arrival]] = []
        self.now_s = 0.0

    def until(self, end_s: float) -> None:
        while True:
            due_s = self.feed.next_s()
            times = [t for t in (due_s, self.ends[0][0] if self.ends else None) if t is not None]
            if not times or min(times) > end_s:
                break
            self.now_s = min(times)
            while self.ends and self.ends[0][0] <= self.now_s:
                ended_s, _, arrival = heapq.heappop(self.ends)
                self.feed.done(record_of(arrival, ended_s))
            for arrival in self.feed.take(self.now_s):
                self.arrivals.append(arrival)
                end = (self.now_s + self.response_s, arrival.request.request_id, arrival)
                heapq.heappush(self.ends, end)
        self.now_s = end_s

    def users_after(self, start_s: float) -> set[int]:
        return {a.user for a in self.arrivals if a.planned_s >= start_s}


def population(users: int, response_s: float = 1.0) -> Played:
    load = ClosedLoop(users=users, think_s=(1, 3))
    feed = Users(load, requests(), seed=3, response_guess_s=response_s)
    return Played(feed, response_s)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.floats(0.1, 8.0))
def test_after_each_change_there_are_so_many_users_and_none_sends_twice(
    sizes: list[int], stay_s: float
) -> None:
    played = population(sizes[0])
    for size in sizes[1:]:
        played.until(played.now_s + stay_s)
        change(played.feed, ClosedLoop(users=size, think_s=(1, 3)), played.now_s)
    settled_s = played.now_s + 3.0 + 1.0  # ramp-in over a cycle, or the last answer of who leaves
    played.until(settled_s + 4.0)
    assert played.users_after(settled_s) == set(range(sizes[-1]))
    of_user = defaultdict(list)
    for arrival in played.arrivals:
        of_user[arrival.user].append(arrival.planned_s)
    for planned in of_user.values():
        assert all(b - a >= 1.0 - 1e-9 for a, b in pairwise(sorted(planned)))


def test_those_who_are_there_go_on_as_if_nothing_had_changed() -> None:
    alone, grown = population(10), population(10)
    alone.until(60.0)
    grown.until(30.0)
    change(grown.feed, ClosedLoop(users=25, think_s=(1, 3)), 30.0)
    grown.until(60.0)

    def old(played: Played) -> list[tuple[int, float]]:
        return sorted((a.user, round(a.planned_s, 6)) for a in played.arrivals if a.user < 10)

    assert old(alone) == old(grown)


def test_requests_come_at_the_new_rate_from_the_change_on() -> None:
    """X = N / (R + Z), also in the cycle in which the newcomers ramp in or the others leave."""
    for before, after in ((200, 400), (400, 200), (300, 330)):
        played = population(before)
        played.until(60.0)
        change(played.feed, ClosedLoop(users=after, think_s=(1, 3)), 60.0)
        played.until(63.0)
        sent = sum(60.0 <= a.planned_s < 63.0 for a in played.arrivals)
        assert sent == pytest.approx(after, rel=0.08)


def test_who_left_and_comes_back_at_once_never_was_away() -> None:
    played = population(12)
    played.until(20.0)
    busy = {arrival.user for _, _, arrival in played.ends}
    assert busy
    change(played.feed, ClosedLoop(users=1, think_s=(1, 3)), 20.0)
    change(played.feed, ClosedLoop(users=12, think_s=(1, 3)), 20.0)
    played.until(40.0)
    for user in range(12):
        planned = sorted(a.planned_s for a in played.arrivals if a.user == user)
        assert all(b - a >= 1.0 for a, b in pairwise(planned))


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_a_rate_changes_at_once(arrivals: str) -> None:
    load = OpenLoop(rate_rps=20, arrivals=arrivals)  # type: ignore[arg-type]
    played = Played(OpenArrivals(load, requests(), seed=1), 0.5)
    played.until(50.0)
    change(played.feed, OpenLoop(rate_rps=60), 50.0)
    played.until(100.0)
    change(played.feed, OpenLoop(rate_rps=5), 100.0)
    played.until(200.0)
    counts = [
        sum(a <= r.planned_s < b for r in played.arrivals)
        for a, b in ((0, 50), (50, 100), (100, 200))
    ]
    allowed = 0.002 if arrivals == "constant" else 0.1
    assert counts == [pytest.approx(n, rel=allowed) for n in (1000, 3000, 500)]
    planned = [a.planned_s for a in played.arrivals]
    assert planned == sorted(planned)


def test_a_trace_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="cannot go on"):
        change(TraceArrivals(iter(())), OpenLoop(rate_rps=1), 1.0)
    with pytest.raises(TypeError, match="cannot go on"):
        change(population(1).feed, OpenLoop(rate_rps=1), 1.0)

"""Users: held through all turns of a session, thinking as they were told."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from itertools import pairwise

import pytest
from playback import play

from servecap.load import Users
from servecap.load.think import think_s
from servecap.scenario import ClosedLoop, Exponential, Lognormal, Measured, Think, WorkloadSpec
from servecap.workload import source


def test_user_is_held_through_all_turns() -> None:
    requests = source.load(WorkloadSpec(source="sessions:3x5/4")).requests(0)
    load = ClosedLoop(users=4, think_s=(1, 2))
    feed = Users(load, requests, seed=0, response_guess_s=1)
    arrivals, records = play(feed, lambda a: 0.1 + 0.3 * (a.user % 3), most=120)
    by_user = defaultdict(list)
    for arrival in arrivals:
        by_user[arrival.user].append(arrival)
    ends = {r.request_id: r.end_s for r in records}
    for sent in by_user.values():
        assert [a.request.turn for a in sent] == [i % 3 for i in range(len(sent))]
        for one, two in pairwise(sent):
            if two.request.turn:
                assert two.request.session == one.request.session
            assert 1 <= two.planned_s - ends[one.request.request_id] <= 2
    assert len({a.request.request_id for a in arrivals}) == len(arrivals)


def test_queue_counts_every_turn() -> None:
    requests = source.load(WorkloadSpec(source="sessions:4x5/4")).requests(0)
    feed = Users(
        ClosedLoop(users=3, think_s=(0, 0), queue=10), requests, seed=0, response_guess_s=1
    )
    arrivals, _ = play(feed, lambda _: 1.0)
    assert len(arrivals) == 10
    assert feed.finished


@pytest.mark.parametrize(
    ("think", "mean_s", "cv"),
    [
        (None, 2.0, 1 / math.sqrt(12)),
        (Exponential(3.0), 3.0, 1.0),
        (Lognormal(2.0, 1.5), 2.0, 1.5),
        (Measured((1.0, 4.0)), 2.5, 0.6),
        (Exponential(0.0), 0.0, 0.0),
    ],
)
def test_think_times_have_their_mean_and_spread(
    think: Think | None, mean_s: float, cv: float
) -> None:
    load = ClosedLoop(users=1, think_s=(1, 3), think=think)
    rng = random.Random(0)
    values = [think_s(load, rng) for _ in range(20_000)]
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    assert load.think_mean_s == mean_s
    assert mean == pytest.approx(mean_s, rel=0.04)
    if mean_s and think is not None:
        assert spread / mean == pytest.approx(cv, rel=0.15)

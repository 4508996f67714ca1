"""`find` against services whose capacity is known."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count

import msgspec
import pytest
from made import record, run, scenario

from servecap import rand
from servecap.errors import InvalidRun, UsageError
from servecap.metrics import Verdict
from servecap.record import Outcome, Record
from servecap.run import Run, Status
from servecap.scenario import ClosedLoop, Scenario
from servecap.search import SearchResult, find

SLOWEST_S = 5.0


class Service:
    """Holds its SLO (TTFT below 1 s) for exactly so many users: TTFT = (users / capacity)^2."""

    def __init__(self, capacity: float, *, noise: float = 0.1) -> None:
        self.capacity = capacity
        self.noise = noise
        self.asked: list[int] = []
        self.seeds: list[int] = []

    def __call__(self, asked: Scenario) -> Run:
        users = asked.users
        assert users is not None
        self.asked.append(users)
        self.seeds.append(asked.seed)
        ttft_s = ((users + 0.5) / (self.capacity + 1)) ** 2 if self.capacity else 1 + users
        ttft_s = min(ttft_s, SLOWEST_S)
        end_s = max(60.0, 500 * (ttft_s + 3) / users)
        found = _loop(users, ttft_s, self.noise, asked.seed, end_s)
        return run(found, asked, end_s=end_s, source="simulated")


def _loop(users: int, ttft_s: float, noise: float, seed: int, end_s: float) -> list[Record]:
    rng = random.Random(rand.derive(seed, "service"))
    due = [(user * (ttft_s + 3) / users, user) for user in range(users)]
    found: list[Record] = []
    for number in count():
        planned_s, user = heapq.heappop(due)
        if planned_s >= end_s:
            return found
        first_s = ttft_s * rng.uniform(1 - noise, 1 + noise)
        ended_s = planned_s + first_s + 1.0
        outcome = Outcome.OK if ended_s <= end_s else Outcome.CENSORED
        found.append(
            record(ended_s, e2e_s=first_s + 1.0, ttft_s=first_s, user=user, number=number,
                   outcome=outcome)
        )  # fmt: skip
        heapq.heappush(due, (ended_s + rng.uniform(1, 3), user))
    raise AssertionError


ASKED = scenario("ttft.mean<1s", load=ClosedLoop(users=1))


def searched(
    probe: Callable[[Scenario], Run], *, start: int = 8, max_users: int = 2000
) -> SearchResult:
    return find(probe, ASKED, start=start, max_users=max_users, precision=0.05)


@pytest.mark.parametrize(("capacity", "start"), [(3, 1), (21, 8), (57, 64)])
def test_capacity_lies_within_what_is_found(capacity: int, start: int) -> None:
    service = Service(capacity)
    found = searched(service, start=start)
    assert found.capacity.users_high is not None
    slack = max(1.0, 0.06 * capacity)
    assert capacity - slack <= found.capacity.users_high
    assert found.capacity.users <= capacity + slack
    assert found.capacity.users_high - found.capacity.users <= max(2, 0.15 * capacity)
    assert found.capacity.limited_by == "ttft.mean<1s"
    assert not found.interrupted
    assert len(service.asked) <= 20
    assert len(set(service.seeds)) == len(service.seeds), "every level has prompts of its own"


def test_nobody_can_be_served() -> None:
    found = searched(Service(0), start=1, max_users=64)
    assert (found.capacity.users, found.capacity.users_high) == (0, 0)
    assert found.at_capacity is None
    assert 1 in [level.users for level in found.levels]


def test_nothing_fails_up_to_the_most_users() -> None:
    found = searched(Service(10_000), max_users=40)
    assert (found.capacity.users, found.capacity.users_high) == (40, None)
    assert "40" in found.stop_reason


def test_noise_widens_the_answer_but_does_not_move_it() -> None:
    found = searched(Service(40, noise=0.9))
    assert found.capacity.users_high is not None
    assert found.capacity.users <= 43
    assert found.capacity.users_high >= 37
    assert len(found.levels) <= 30


def test_levels_that_cannot_be_believed_are_tried_again_and_then_end_it() -> None:
    service = Service(50)

    def too_slow_a_client(asked: Scenario) -> Run:
        measured = service(asked)
        assert asked.users is not None
        if asked.users < 20:
            return measured
        late = [msgspec.structs.replace(r, sent_s=r.planned_s + 0.1) for r in measured.records]
        header = msgspec.structs.replace(measured.header, source="measured")
        return msgspec.structs.replace(measured, header=header, records=late)

    found = searched(too_slow_a_client)
    assert 8 <= found.capacity.users < 20
    assert found.capacity.users_high is None, "no level was seen to fail"
    invalid = [level for level in found.levels if not level.valid]
    assert len(invalid) >= 2
    assert "cannot be measured" in found.stop_reason or "valid" in found.stop_reason
    with pytest.raises(InvalidRun):
        searched(too_slow_a_client, start=64)


def test_interrupted_level_does_not_count() -> None:
    service = Service(50)

    def interrupted(asked: Scenario) -> Run:
        measured = service(asked)
        if len(service.asked) < 3:
            return measured
        header = msgspec.structs.replace(measured.header, status=Status.INTERRUPTED)
        return msgspec.structs.replace(measured, header=header)

    found = searched(interrupted)
    assert found.interrupted
    assert "Ctrl-C" in found.stop_reason
    assert [level.users for level in found.levels] == service.asked[:2]
    assert found.levels[0].verdict is Verdict.PASS
    assert found.capacity.users >= 8


def test_what_makes_no_sense_is_refused() -> None:
    service = Service(9)
    for bad in ({"start": 0}, {"start": 9, "max_users": 8}, {"precision": 0.0}, {"precision": 1.0}):
        with pytest.raises(UsageError):
            find(service, ASKED, **bad)
    assert not service.asked

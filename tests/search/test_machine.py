"""The search machine against servers made of formulas, whose capacity is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from servecap.errors import UsageError
from servecap.search.evidence import Mean, of_values
from servecap.search.machine import Search
from servecap.slo import Limit

MEAN, P95 = Limit("ttft", "mean", 3.0), Limit("ttft", "p95", 3.0)
SIGMA = 0.6  # of the logarithm of a value
P95_OVER_MEAN = math.exp(1.6449 * SIGMA - SIGMA**2 / 2)

Curve = Callable[[float], float]


def gentle(knee: float) -> Curve:
    return lambda users: 0.4 * (1 + users / knee)


def cliff(edge: float) -> Curve:
    return lambda users: 0.3 + 60 * max(0.0, users / edge - 1)


def capacity(mean_s: Curve, limit: Limit) -> int:
    factor = 1.0 if limit.quantile is None else P95_OVER_MEAN
    users = 0
    while mean_s(users + 1) * factor <= limit.at_most_s:
        users += 1
    return users


def searched(
    mean_s: Curve, limit: Limit, *, seed: int, precision: float = 0.05, most: int = 4000
) -> Search:
    rng = np.random.default_rng(seed)
    search = Search(start=8, most=most, precision=precision, seed=seed)
    while (asked := search.ask()) is not None:
        assert asked.load == round(asked.load)
        assert 1 <= asked.load <= most
        count = max(asked.requests, int(2 * asked.load))
        values = mean_s(asked.load) * np.exp(SIGMA * rng.standard_normal(count) - SIGMA**2 / 2)
        margin = of_values(limit, values.tolist())
        search.tell(asked.load, [] if margin is None else [margin], count)
    return search


@pytest.mark.parametrize("limit", [MEAN, P95], ids=str)
@pytest.mark.parametrize("shape", [gentle, cliff])
def test_the_interval_holds_the_capacity_and_is_narrow(
    shape: Callable[[float], Curve], limit: Limit
) -> None:
    held, widths = 0, []
    sizes = (30, 75, 160, 420)
    for seed, size in enumerate(sizes):
        found = searched(shape(size), limit, seed=seed).estimate()
        truth = capacity(shape(size), limit)
        assert found is not None
        assert found.high is not None
        assert found.limited_by == str(limit)
        held += found.low <= truth <= found.high
        assert found.best == pytest.approx(truth, abs=max(1.0, 0.06 * truth))
        widths.append((found.high - found.low) / truth)
    assert held >= len(sizes) - 1
    assert np.median(widths) <= 0.1


def test_no_level_is_measured_twice() -> None:
    search = Search(start=8, most=4000, precision=0.05)
    rng = np.random.default_rng(1)
    loads: list[float] = []
    while (asked := search.ask()) is not None:
        loads.append(asked.load)
        values = gentle(60)(asked.load) * np.exp(SIGMA * rng.standard_normal(300))
        margin = of_values(MEAN, values.tolist())
        assert margin is not None
        search.tell(asked.load, [margin], 300)
    assert len(loads) == len(set(loads)) <= 25


def test_without_a_limit_there_is_no_upper_end() -> None:
    search = searched(lambda _: 0.5, MEAN, seed=0, most=300)
    found = search.estimate()
    assert found is not None
    assert (found.low, found.high, found.limited_by) == (300, None, None)
    assert "300" in search.stop_reason
    assert search.unsure() == "no upper end was found"


def test_the_price_of_certainty_is_told() -> None:
    search = Search(start=8, most=1000, precision=0.02)
    for load, value in ((8.0, -1.0), (64.0, 0.5), (40.0, -0.1)):
        search.tell(load, [Mean(limit="x", value=value, error=0.1, requests=100)], 100)
    said = search.unsure()
    assert said is not None
    assert "UNSURE" in said
    assert "more requests" in said


def test_one_failed_level_is_no_ground_for_a_count_of_requests() -> None:
    """A search that its budget ended after one level once asked for 2e24 more requests."""
    search = Search(start=8, most=1000, precision=0.05)
    search.tell(8, [Mean(limit="x", value=2.0, error=0.1, requests=100)], 100)
    said = search.unsure()
    assert said is not None
    assert "%" not in said
    assert said.endswith("the capacity lies within 0 and 7; more levels are needed")


def test_what_cannot_be_measured_bounds_the_search_without_breaking_a_limit() -> None:
    search = Search(start=8, most=1000, precision=0.05)
    while (asked := search.ask()) is not None:
        if asked.load >= 50:
            search.bar(asked.load)
        else:
            search.tell(asked.load, [Mean(limit="x", value=-1, error=0.05, requests=99)], 99)
    found = search.estimate()
    assert found is not None
    assert found.high is None
    assert 40 <= found.low < 50
    assert "cannot be measured" in search.stop_reason


@pytest.mark.parametrize("barred", range(20, 72, 3))
def test_a_load_that_cannot_be_measured_is_not_asked_for_again(barred: int) -> None:
    """A slope that pointed to 58.8 users, rounded to the barred 59, once went on for ever."""
    search = Search(start=8, most=1000, precision=0.05)
    loads: list[float] = []
    while (asked := search.ask()) is not None:
        loads.append(asked.load)
        assert len(loads) <= 20
        if asked.load >= barred:
            search.bar(asked.load)
        else:
            value = math.log((asked.load + 1) / 59.8)
            margin = Mean(limit="x", value=value, error=0.01, requests=99)
            search.tell(asked.load, [margin], 99)
    assert len(loads) == len(set(loads))


def test_rates_need_not_be_whole() -> None:
    search = Search(start=0.5, most=100, precision=0.05, whole=False)
    while (asked := search.ask()) is not None:
        margin = Mean(limit="x", value=2 * math.log(asked.load / 3.3), error=0.02, requests=500)
        search.tell(asked.load, [margin], 500)
    found = search.estimate()
    assert found is not None
    assert found.high is not None
    assert found.low <= 3.3 <= found.high
    assert found.high - found.low < 0.3


@pytest.mark.parametrize(
    "bad", [{"start": 0}, {"start": 11}, {"precision": 0}, {"precision": 1}, {"confidence": 0.4}]
)
def test_what_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    given = {"start": 8.0, "most": 10.0, "precision": 0.05, **bad}
    with pytest.raises(UsageError):
        Search(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize("shape", [gentle, cliff])
def test_a_guess_that_is_ten_times_off_ends_right(
    shape: Callable[[float], Curve], factor: float
) -> None:
    truth = capacity(shape(120), MEAN)
    rng = np.random.default_rng(2)
    search = Search(start=round(factor * truth), most=20_000, precision=0.05)
    levels = 0
    while (asked := search.ask()) is not None:
        levels += 1
        values = shape(120)(asked.load) * np.exp(SIGMA * rng.standard_normal(400) - SIGMA**2 / 2)
        margin = of_values(MEAN, values.tolist())
        assert margin is not None
        search.tell(asked.load, [margin], 400)
    found = search.estimate()
    assert found is not None
    assert found.high is not None
    assert found.low - 0.01 * truth <= truth <= found.high + 0.01 * truth
    assert found.high - found.low <= 0.06 * truth + 1
    assert levels <= 20

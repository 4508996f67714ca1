"""Schedules: rates that change with time, and gaps of a chosen burstiness."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playback import play, requests

from servecap import schedule
from servecap.load import OpenArrivals
from servecap.scenario import OpenLoop
from servecap.schedule import Day, Ramp, Schedule, Steps

RATES = st.floats(0.1, 100)
SPANS = st.floats(0.5, 500)
SCHEDULES = st.one_of(
    st.none(),
    st.builds(Ramp, st.floats(0, 100), SPANS),
    st.builds(Steps, st.lists(st.floats(0, 100), min_size=1, max_size=5).map(tuple), SPANS),
    st.builds(Day, st.lists(RATES, min_size=1, max_size=24).map(tuple), SPANS),
)


def times(load: OpenLoop, number: int, seed: int = 0) -> list[float]:
    sent, _ = play(OpenArrivals(load, requests(), seed=seed), lambda _: 0.0, most=number)
    return [a.planned_s for a in sent[:number]]


@given(RATES, SCHEDULES, st.floats(0.001, 1000))
def test_time_of_is_the_inverse_of_arrivals_by(
    rate: float, plan: Schedule | None, count: float
) -> None:
    course = schedule.course(rate, plan)
    t_s = course.time_of(count)
    if t_s is not None:
        assert course.arrivals_by(t_s) == pytest.approx(count, rel=1e-6, abs=1e-6)
    else:
        assert course.arrivals_by(1e6) < count + 1e-6


@given(RATES, SCHEDULES, st.lists(st.floats(0, 1000), min_size=2, max_size=5).map(sorted))
def test_expected_arrivals_never_fall(
    rate: float, plan: Schedule | None, at_s: list[float]
) -> None:
    course = schedule.course(rate, plan)
    counts = [course.arrivals_by(t) for t in at_s]
    assert all(b >= a - 1e-6 for a, b in pairwise(counts))


def test_ramp_gets_steeper_evenly() -> None:
    load = OpenLoop(rate_rps=10, arrivals="constant", schedule=Ramp(30, 10))
    sent = [t for t in times(load, 600) if t < 20]
    counts = [sum(s <= t < s + 5 for t in sent) for s in (0, 5, 10, 15)]
    assert counts == pytest.approx([75, 125, 150, 150], abs=1)


def test_steps_hold_their_rates_and_a_pause_is_silent() -> None:
    load = OpenLoop(rate_rps=20, arrivals="constant", schedule=Steps((20, 0, 40), 2.0))
    sent = times(load, 200)
    counts = [sum(s <= t < s + 2 for t in sent) for s in (0, 2, 4)]
    assert counts == pytest.approx([40, 0, 80], abs=1)


def test_steps_that_end_at_zero_end_the_load() -> None:
    feed = OpenArrivals(
        OpenLoop(rate_rps=5, arrivals="constant", schedule=Steps((5, 0), 2.0)), requests(), seed=0
    )
    sent, _ = play(feed, lambda _: 0.0)
    assert len(sent) == pytest.approx(10, abs=1)
    assert feed.finished


def test_day_has_the_asked_mean_and_its_own_shape_again_and_again() -> None:
    load = OpenLoop(rate_rps=50, schedule=Day((1, 3), 10.0))
    sent = [t for t in times(load, 9000) if t < 160]
    assert len(sent) == pytest.approx(50 * 160, rel=0.03)
    busy = sum(t % 10 >= 5 for t in sent)
    assert busy / len(sent) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
def test_gamma_gaps_have_the_asked_rate_variance_and_shape(cv: float) -> None:
    """Mean, coefficient of variation and Kolmogorov-Smirnov distance at a fixed seed."""
    rate_rps, n = 40.0, 20_000
    sent = times(OpenLoop(rate_rps=rate_rps, arrivals="gamma", cv=cv), n)
    gaps = sorted((b - a) * rate_rps for a, b in pairwise([0.0, *sent]))
    mean = sum(gaps) / n
    deviation = math.sqrt(sum((g - mean) ** 2 for g in gaps) / (n - 1))
    assert mean == pytest.approx(1, abs=4 * cv / math.sqrt(n))
    assert deviation / mean == pytest.approx(cv, rel=0.05)
    shape = cv**-2
    places = [_gamma_cdf(shape, gap * shape) for gap in gaps]
    # Gaps below a nanosecond are lost between two times of 500 s.
    distance = max(
        max((i + 1) / n - p, p - i / n)
        for i, (p, gap) in enumerate(zip(places, gaps, strict=True))
        if gap > 1e-8
    )
    assert distance < 1.36 / math.sqrt(n), "95% bound of the Kolmogorov-Smirnov test"


def _gamma_cdf(shape: float, x: float) -> float:
    """The regularised lower incomplete gamma function, by its series."""
    if x <= 0:
        return 0.0
    term = total = 1 / shape
    k = shape
    while term > total * 1e-12:
        k += 1
        term *= x / k
        total += term
    return min(1.0, total * math.exp(-x + shape * math.log(x) - math.lgamma(shape)))


def test_cv_zero_is_a_constant_rate() -> None:
    assert times(OpenLoop(rate_rps=4, arrivals="gamma", cv=0), 5) == [k / 4 for k in range(5)]

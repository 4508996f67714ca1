"""The open loop: arrivals that do not ask how the server does."""

from __future__ import annotations

import math
from itertools import islice, pairwise
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playback import play, requests

from servecap.load import OpenArrivals, feed_for
from servecap.scenario import OpenLoop, Scenario


def arrivals(
    rate_rps: float, number: int, *, kind: Literal["poisson", "constant"] = "poisson", seed: int = 0
) -> list[float]:
    feed = OpenArrivals(OpenLoop(rate_rps=rate_rps, arrivals=kind), requests(), seed=seed)
    sent, _ = play(feed, lambda _: 0.0, most=number)
    assert [a.user for a in sent] == list(range(len(sent))), "each is a user of its own"
    return [a.planned_s for a in sent[:number]]


@given(st.floats(0.01, 5000), st.integers(1, 200))
def test_constant_arrivals_are_exact(rate_rps: float, number: int) -> None:
    assert arrivals(rate_rps, number, kind="constant") == [k / rate_rps for k in range(number)]


def test_poisson_gaps_are_exponential() -> None:
    """Mean and Kolmogorov-Smirnov distance of 20,000 gaps at a fixed seed."""
    rate_rps = 50.0
    times = arrivals(rate_rps, 20_000)
    gaps = sorted(b - a for a, b in pairwise([0.0, *times]))
    assert sum(gaps) / len(gaps) == pytest.approx(1 / rate_rps, rel=0.02)
    distance = max(
        abs((i + 1) / len(gaps) - (1 - math.exp(-rate_rps * gap))) for i, gap in enumerate(gaps)
    )
    assert distance < 1.36 / math.sqrt(len(gaps)), "95% bound of the Kolmogorov-Smirnov test"


def test_poisson_counts_have_the_variance_of_their_mean() -> None:
    counts = [0] * 400
    for time_s in arrivals(20.0, 9000):
        if time_s < len(counts):
            counts[int(time_s)] += 1
    mean = sum(counts) / len(counts)
    variance = sum((c - mean) ** 2 for c in counts) / (len(counts) - 1)
    assert mean == pytest.approx(20, rel=0.05)
    assert variance / mean == pytest.approx(1, abs=0.2)


def test_late_driver_gets_all_that_is_due_with_the_times_it_was_due_at() -> None:
    feed = OpenArrivals(OpenLoop(rate_rps=10, arrivals="constant"), requests(), seed=0)
    assert [a.planned_s for a in feed.take(0.95)] == [k / 10 for k in range(10)]
    assert feed.take(0.95) == []


def test_seeds_differ_and_repeat() -> None:
    assert arrivals(5, 50, seed=0) == arrivals(5, 50, seed=0)
    assert arrivals(5, 50, seed=0) != arrivals(5, 50, seed=1)


def test_requests_that_run_out_end_the_load() -> None:
    feed = OpenArrivals(OpenLoop(rate_rps=10), islice(requests(), 3), seed=0)
    sent, ended = play(feed, lambda _: 100.0)
    assert len(sent) == len(ended) == 3
    assert feed.finished


def test_scenario_gets_its_feed() -> None:
    feed = feed_for(Scenario(load=OpenLoop(rate_rps=2)), requests(), response_guess_s=1)
    assert isinstance(feed, OpenArrivals)

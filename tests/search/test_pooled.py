"""Errors shared between levels, held against means and shares whose truth is known."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean

import numpy as np
import pytest

from servecap.search.evidence import Margin, Mean, Share, at_least, of_share, of_values
from servecap.search.known import Known
from servecap.search.pooled import pooled
from servecap.slo import Limit
from servecap.stats import Floats

SIGMA = 1.2  # of the logarithm: heavy tails
MEAN = Limit("ttft", "mean", 1.0)


def heavy(count: int, rng: np.random.Generator) -> Floats:
    """Log-normal values of mean 1 whose neighbours are alike over 20 requests."""
    noise = rng.standard_normal(count)
    slow = np.empty(count)
    last = rng.standard_normal()
    rho = math.exp(-1 / 20)
    for place in range(count):
        last = rho * last + math.sqrt(1 - rho**2) * noise[place]
        slow[place] = last
    both = math.sqrt(0.3) * slow + math.sqrt(0.7) * rng.standard_normal(count)
    values: Floats = np.exp(SIGMA * both - SIGMA**2 / 2)
    return values


def levels(count: int, seed: int) -> list[Margin]:
    rng = np.random.default_rng(seed)
    found = [of_values(MEAN, heavy(300, rng).tolist()) for _ in range(count)]
    return [m for m in found if m is not None]


def weighted(margins: list[Margin]) -> float:
    weights = [1 / m.error**2 for m in margins]
    return sum(w * m.value for w, m in zip(weights, margins, strict=True)) / sum(weights)


def test_heavy_tails_do_not_make_the_levels_that_came_out_low_count_more() -> None:
    alone = levels(150, 3)
    together = pooled([100.0] * len(alone), alone)
    assert weighted(alone) < -0.07, "what this is about"
    assert abs(weighted(together)) < 0.03
    scores = [m.value / m.error for m in together]
    assert 0.6 < float(np.std(scores)) < 1.2


def test_a_percentile_of_correlated_requests_comes_out_low_by_little() -> None:
    """Levels share it, so that it does not average out: each one more would be as far off."""
    rng, p99 = np.random.default_rng(5), Limit("ttft", "p99", 1.0)
    true = SIGMA * NormalDist().inv_cdf(0.99) - SIGMA**2 / 2
    found = [of_values(p99, heavy(300, rng).tolist()) for _ in range(150)]
    off = fmean(m.value - true for m in found if m is not None)
    assert abs(off) < 0.1, "it was 0.17 where the prior of few independent requests moved it"


def test_far_loads_and_far_margins_keep_their_own_errors() -> None:
    near = Mean(limit="x", value=0.1, error=0.1, requests=200)
    other = Mean(limit="x", value=0.1, error=0.4, requests=200)
    far = at_least(Mean(limit="x", value=2.0, error=0.3, requests=80))
    first, second, third = pooled([10.0, 1000.0, 1010.0], [near, other, far])
    assert first.error == pytest.approx(0.1)
    assert second.error == pytest.approx(0.4)
    assert third == far
    assert pooled([], []) == []


def test_shares_have_the_number_of_independent_requests_in_common() -> None:
    bursts = ([True] * 10 + [False] * 40) * 6
    spread = ([True] + [False] * 4) * 60
    margins = [of_share("p90", over, 0.1) for over in (bursts, spread)]
    assert margins[0].worth < margins[1].worth
    one, other = pooled([50.0, 51.0], margins)
    assert isinstance(one, Share)
    assert isinstance(other, Share)
    assert one.worth == pytest.approx(other.worth, rel=0.1)


def test_a_share_of_none_says_little_of_how_far_off_the_limit_is() -> None:
    none, one = (of_share("p99", [i < bad for i in range(300)], 0.01) for bad in (0, 1))
    assert none.value < -2 * one.error + one.value
    assert none.error > 1.5 * one.error
    assert none.value + 2 * none.error > one.value - one.error


def test_an_edge_is_told_within_what_is_proven_and_never_as_a_point_at_its_end() -> None:
    """A curve that is bent wrongly once put all of the edge on the level that surely holds."""
    known = Known(most=4000, confidence=0.95, whole=True, seed=0)

    def share(load: float, bad: int, count: int) -> None:
        over = [i % (count // bad) == 0 for i in range(count)] if bad else [False] * count
        known.add(load, [of_share("p99", over, 0.01)], count)

    for load, bad, count in ((128, 0, 300), (1024, 80, 80), (612, 300, 1200), (551, 0, 1100),
                             (596, 50, 1200), (602, 164, 1200), (593, 0, 1200)):  # fmt: skip
        share(load, bad, count)
    found = known.estimate()
    assert found is not None
    assert found.high is not None
    assert 593 <= found.low < found.high <= 602

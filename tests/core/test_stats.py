"""Statistics against published tables, brute force and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap import stats

FINITE = st.floats(-1e6, 1e6)


@given(st.lists(FINITE, min_size=1, max_size=60), st.floats(0.001, 1))
def test_percentile_is_the_smallest_value_with_that_share_at_or_below(
    values: list[float], share: float
) -> None:
    ordered = np.sort(np.asarray(values))
    found = stats.percentile(ordered, share)
    assert found in values
    need = share * len(values) - 1e-6
    assert sum(v <= found for v in values) >= need
    assert found == ordered[0] or sum(v < found for v in values) < need + 2e-6


def test_percentiles_of_known_samples() -> None:
    found = stats.describe([float(n) for n in range(1, 101)])
    assert found is not None
    assert (found.p50, found.p90, found.p95, found.p99, found.max) == (50, 90, 95, 99, 100)
    assert found.mean == 50.5
    one = stats.describe([7.0])
    assert one is not None
    assert one.p50 == one.p99 == one.statistic("max") == 7.0
    assert stats.describe([]) is None


@pytest.mark.parametrize(
    ("quantile", "confidence", "wanted"),
    [
        (0.99, 0.95, {0: 299, 1: 473, 2: 628, 5: 1049, 10: 1693}),
        (0.99, 0.99, {0: 459, 1: 662, 2: 838, 5: 1307, 10: 2010}),
        (0.95, 0.95, {0: 59, 1: 93, 2: 124, 5: 208, 10: 336}),
        (0.90, 0.95, {0: 29, 1: 46, 2: 61, 5: 103, 10: 167}),
    ],
)
def test_requests_needed_as_in_the_early_stopping_tables(
    quantile: float, confidence: float, wanted: dict[int, int]
) -> None:
    found = {t: stats.requests_needed(t, quantile=quantile, confidence=confidence) for t in wanted}
    assert found == wanted


@pytest.mark.parametrize(
    "bad", [(-1, 0.9, 0.95), (0, 0.0, 0.95), (0, 1.0, 0.95), (0, 0.9, 0.0), (0, 0.9, 1.0)]
)
def test_requests_needed_refuses_what_makes_no_sense(bad: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError):
        stats.requests_needed(bad[0], quantile=bad[1], confidence=bad[2])


@given(st.integers(0, 40), st.integers(1, 40), st.floats(0.01, 0.99))
def test_binomial_against_direct_sums(k: int, n: int, p: float) -> None:
    direct = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(min(k, n) + 1))
    assert stats.binomial_cdf(k, n, p) == pytest.approx(min(1, direct), abs=1e-9)


def test_binomial_at_its_edges() -> None:
    assert stats.binomial_cdf(-1, 5, 0.5) == 0
    assert stats.binomial_cdf(5, 5, 0.5) == 1
    assert stats.binomial_cdf(0, 5, 0.0) == 1
    assert stats.binomial_cdf(4, 5, 1.0) == 0
    assert 0 < stats.binomial_cdf(900, 100_000, 0.01) < 0.01


@given(st.integers(1, 300), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_quantile_ranks_hold_their_confidence(n: int, quantile: float) -> None:
    """P(X_(low) > q) <= 2.5% and P(X_(high) < q) <= 2.5%, and no narrower ranks would do."""
    low, high = stats.quantile_ranks(n, quantile=quantile, confidence=0.95)
    tail = 0.025 + 1e-9
    if low is not None:
        assert stats.binomial_cdf(low - 1, n, quantile) <= tail
    assert stats.binomial_cdf(low or 0, n, quantile) > tail - 2e-9 or low == n
    if high is not None:
        assert 1 - stats.binomial_cdf(high - 1, n, quantile) <= tail
        assert high == 1 or 1 - stats.binomial_cdf(high - 2, n, quantile) > tail - 2e-9
    else:
        assert 1 - stats.binomial_cdf(n - 1, n, quantile) > tail - 2e-9


@pytest.mark.parametrize(
    ("p", "degrees", "table"),
    [
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776),
        (0.975, 9, 2.262), (0.975, 19, 2.093), (0.9995, 9, 4.781), (0.95, 5, 2.015),
        (0.995, 19, 2.861), (0.025, 9, -2.262),
    ],
)  # fmt: skip
def test_t_quantiles_as_in_the_tables(p: float, degrees: int, table: float) -> None:
    assert stats.t_quantile(p, degrees) == pytest.approx(table, abs=2e-3)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 19, 39])
@pytest.mark.parametrize("p", [0.6, 0.9, 0.975, 0.98, 0.99167, 0.9995])
def test_t_quantiles_against_the_integral_of_the_density(p: float, degrees: int) -> None:
    x = np.linspace(0, stats.t_quantile(p, degrees), 100_001)
    lead = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    density = lead / math.sqrt(degrees * math.pi) * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    area = float(((density[1:] + density[:-1]) / 2).sum() * (x[1] - x[0]))
    assert 0.5 + area == pytest.approx(p, abs=2e-4 * (1 - p) + 2e-5)


def test_t_quantile_refuses_what_makes_no_sense() -> None:
    for p, degrees in ((0.0, 3), (1.0, 3), (0.5, 0)):
        with pytest.raises(ValueError):
            stats.t_quantile(p, degrees)


def test_batch_means_cover_the_truth_of_correlated_samples() -> None:
    """An AR(1) series: a textbook interval would cover far less than it says."""
    random = np.random.default_rng(1)
    covered = textbook = 0
    for _ in range(300):
        noise = random.standard_normal(1000)
        series = np.empty(1000)
        series[0] = noise[0]
        for i in range(1, 1000):
            series[i] = 0.7 * series[i - 1] + noise[i]
        found = stats.batch_means(series + 10)
        assert found is not None
        covered += found.low <= 10 <= found.high
        half = 1.96 * series.std() / math.sqrt(1000)
        textbook += abs(series.mean()) <= half
    assert covered / 300 > 0.89
    assert textbook / 300 < 0.75


def test_batch_means_need_four_batches_of_finite_values() -> None:
    assert stats.batch_means([1.0] * 31) is None
    assert stats.batch_means([1.0] * 31 + [math.inf]) is None
    found = stats.batch_means([1.0] * 32)
    assert found is not None
    assert (found.low, found.value, found.high) == (1, 1, 1)


def test_quantile_interval_takes_failures_as_infinite() -> None:
    found = stats.quantile_interval([1.0] * 90 + [math.inf] * 10, 0.99)
    assert found is not None
    assert found.value == math.inf
    assert found.high == math.inf
    median = stats.quantile_interval([1.0] * 90 + [math.inf] * 10, 0.5)
    assert median is not None
    assert (median.low, median.value, median.high) == (1, 1, 1)
    assert stats.quantile_interval([], 0.5) is None
    small = stats.quantile_interval([1.0, 2.0], 0.5)
    assert small is not None
    assert (small.low, small.high) == (-math.inf, math.inf)
    top = stats.quantile_interval([1.0, 2.0], 1.0)
    assert top is not None
    assert (top.value, top.high) == (2.0, math.inf)


def test_quantile_interval_covers_the_truth() -> None:
    random = np.random.default_rng(2)
    truth = math.log(10)  # p90 of a unit exponential
    covered = 0
    for _ in range(400):
        found = stats.quantile_interval(random.exponential(size=300), 0.9)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert 0.925 < covered / 400 <= 1


def test_mser_finds_the_end_of_a_transient() -> None:
    random = np.random.default_rng(3)
    level = np.concatenate([np.linspace(5, 1, 100), np.ones(900)])
    cut = stats.mser5(level + 0.05 * random.standard_normal(1000))
    assert 80 <= cut <= 130
    assert cut % 5 == 0


def test_mser_drops_little_of_what_is_steady_and_never_more_than_half() -> None:
    random = np.random.default_rng(4)
    cuts = [stats.mser5(1 + 0.3 * random.standard_normal(400)) for _ in range(50)]
    assert sorted(cuts)[25] <= 60
    assert max(cuts) < 200
    assert stats.mser5(np.linspace(0, 1, 400)) < 200
    assert stats.mser5([3.0, 1.0, 1.0]) == 0


@given(st.lists(st.floats(0, 100), min_size=20, max_size=120))
def test_mser_is_where_brute_force_finds_it(values: list[float]) -> None:
    batches = np.asarray(values[: len(values) // 5 * 5]).reshape(-1, 5).mean(axis=1)
    half = len(batches) // 2
    errors = [((batches[d:] - batches[d:].mean()) ** 2).sum() / (len(batches) - d) ** 2
              for d in range(half)]  # fmt: skip
    found = stats.mser5(values) // 5
    assert errors[found] == pytest.approx(min(errors), abs=1e-6)

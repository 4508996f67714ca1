"""Curves through margins: where they cross 0, how sure that is, and that they never fall."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servecap.search import curve
from servecap.search.evidence import Mean

LOADS = np.exp(np.linspace(math.log(20), math.log(200), 61))


def told(pairs: Sequence[tuple[float, float]], error: float) -> curve.Points:
    margins = [Mean(limit="x", value=v, error=error, requests=100) for _, v in pairs]
    return curve.points([load for load, _ in pairs], margins)


def edges(pairs: Sequence[tuple[float, float]], error: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return curve.crossings(curve.rising(told(pairs, error), np.log(LOADS), 600, rng), LOADS)


def test_a_straight_line_is_crossed_where_it_is_0() -> None:
    line = [(load, 2 * math.log(load / 80)) for load in (25, 50, 100, 190)]
    found = edges(line, 0.01)
    assert np.median(found) == pytest.approx(80, rel=0.02)
    assert np.quantile(found, 0.975) - np.quantile(found, 0.025) < 8


def test_larger_errors_make_wider_answers() -> None:
    line = [(load, 2 * math.log(load / 80)) for load in (25, 50, 100, 190)]
    widths = [np.ptp(np.quantile(edges(line, error), [0.1, 0.9])) for error in (0.01, 0.1, 0.3)]
    assert widths[0] < widths[1] < widths[2]


def test_a_jump_is_placed_between_the_levels_around_it() -> None:
    cliff = [(25, -2.0), (50, -1.95), (80, -1.9), (100, 1.5), (190, 2.5)]
    found = edges(cliff, 0.05)
    assert np.mean((found > 78) & (found < 103)) > 0.93


def test_two_levels_far_from_the_limit_hold_the_edge_between_them() -> None:
    """Nothing is known of the bends below 32: they must not move the edge past it."""
    loads = np.exp(np.linspace(0.0, math.log(10_000), 81))
    rng = np.random.default_rng(0)
    for margins in ((-1.6, 1.0), (-0.55, 1.0), (-1.6, 0.5)):
        points = told(list(zip((32, 64), margins, strict=True)), 0.13)
        found = curve.crossings(curve.rising(points, np.log(loads), 1000, rng), loads)
        assert np.quantile(found, 0.0125) >= 32
        assert np.quantile(found, 0.9875) <= 64


def pooled_adjacent_violators(values: list[float], weights: list[float]) -> list[float]:
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            v, w, n = blocks.pop()
            both = w + block[1]
            block = ((v * w + block[0] * block[1]) / both, both, n + block[2])
        blocks.append(block)
    return [value for value, _, count in blocks for _ in range(count)]


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 100)), min_size=1, max_size=12))
@settings(max_examples=100)
def test_isotonic_rows_are_those_of_pooled_adjacent_violators(
    pairs: list[tuple[float, float]],
) -> None:
    values, weights = [v for v, _ in pairs], [w for _, w in pairs]
    found = curve.isotonic(np.array([values, values]), np.array(weights))
    assert np.allclose(found, pooled_adjacent_violators(values, weights), atol=1e-9)


def test_nothing_above_0_is_never_crossed_and_all_above_at_once() -> None:
    below, above = np.full((3, 5), -1.0), np.full((3, 5), 1.0)
    loads = np.arange(1.0, 6.0)
    assert np.isinf(curve.crossings(below, loads)).all()
    assert (curve.crossings(above, loads) == 0).all()


@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=20))
@settings(max_examples=50)
def test_projected_curves_never_fall_and_keep_those_that_do_not(rows: list[list[float]]) -> None:
    curves = np.array(rows)
    projected = curve.monotone(curves)
    assert (np.diff(projected, axis=1) >= 0).all()
    rising = np.sort(curves, axis=1)
    assert np.allclose(curve.monotone(rising), rising)

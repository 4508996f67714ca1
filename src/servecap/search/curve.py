"""Where a limit is crossed, from its margins at a few loads: a smooth curve with its uncertainty.

A margin over x = log(load) is modelled as a straight line plus an integrated Wiener process: the
prior whose best estimate is the cubic smoothing spline. It shares what is measured between
neighbouring loads and claims less the farther away they are. How bent the curve is, and how much
levels scatter beyond what their own errors say, is not chosen but averaged over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from servecap.search.evidence import Margin
from servecap.stats import Floats

SLOPE_MEAN, SLOPE_SPREAD = 2.0, 6.0  # of a margin per log(load): queueing curves, prior
OFFSET_SPREAD = 30.0
BENDS = tuple(10.0 ** (k / 2) for k in range(-2, 10))  # variance of the slope per log(load)
SCATTERS = (0.0, 0.01, 0.03, 0.10)  # of a level's margin beyond its own error
SCATTER_WEIGHTS = (0.5, 0.25, 0.15, 0.10)
_SOME = 0.01  # of a level's margin, added to its error where levels are weighed
_LEAST = 1e-3  # combinations with less weight than this are left out


class Points(msgspec.Struct, frozen=True, kw_only=True):
    """One limit's margins at several loads, as arrays of one length."""

    x: Floats  # log(load)
    value: Floats
    error: Floats
    order: Floats  # in which they were measured


def points(
    loads: Sequence[float], margins: Sequence[Margin], order: Sequence[float] | None = None
) -> Points:
    """The points of one limit, one per level, measured in that order (as they stand if None)."""
    return Points(
        x=np.log(np.asarray(loads, dtype=np.float64)),
        value=np.array([m.value for m in margins]),
        error=np.array([m.error for m in margins]),
        order=np.asarray(range(len(loads)) if order is None else order, dtype=np.float64),
    )


def paths(told: Points, x: Floats, count: int, rng: np.random.Generator) -> Floats:
    """*count* curves over *x* (ascending) as likely as the points make them; shape (count, x).

    Source:
        Wahba, Improper priors, spline smoothing and the problem of guarding against model errors
        in regression, J. R. Stat. Soc. B 40 (1978). Drawn by kriging of unconditional paths:
        Journel & Huijbregts, Mining geostatistics (1978), section VII.A.
    """
    start = min(float(x[0]), float(told.x.min()))
    at, to = told.x - start, x - start
    explained = list(_explained(told, at))
    log_weight = [found.log_weight for found in explained]
    weight = np.exp(np.array(log_weight) - max(log_weight))
    weight[weight < _LEAST * weight.max()] = 0.0
    shares = rng.multinomial(count, weight / weight.sum())
    lines, wiener, cross_line, cross_bent = _prior(at, to, count, rng)
    drawn, first = [], 0
    for (_, root, bend, scatter), n in zip(explained, shares, strict=True):
        if n == 0:
            continue
        part = slice(first, first + n)
        first += n
        free = lines[part] + math.sqrt(bend) * wiener[part]
        noise = rng.standard_normal((n, len(at))) * np.sqrt(told.error**2 + scatter**2)
        missed = told.value - free[:, : len(at)] - noise
        weights = np.linalg.solve(root.T, np.linalg.solve(root, missed.T))
        drawn.append(free[:, len(at) :] + ((cross_line + bend * cross_bent) @ weights).T)
    return np.concatenate(drawn)


class Explained(NamedTuple):
    """How well the points are explained by curves so bent and levels that scatter so much."""

    log_weight: float
    root: Floats  # of the points' covariance
    bend: float
    scatter: float


def explained(told: Points) -> Iterator[Explained]:
    """Every combination of bend and scatter, with what the points say of it."""
    yield from _explained(told, told.x - float(told.x.min()))


def off(told: Points) -> Floats:
    """The points' values less what is expected of them before anything is told."""
    return told.value - SLOPE_MEAN * (told.x - float(told.x.min()))


def _explained(told: Points, at: Floats) -> Iterator[Explained]:
    line, bent, missed = _line(at, at), _bent(at, at), told.value - SLOPE_MEAN * at
    for bend in BENDS:
        for scatter, share in zip(SCATTERS, SCATTER_WEIGHTS, strict=True):
            noise = np.diag(told.error**2 + scatter**2)
            root = np.linalg.cholesky(line + bend * bent + noise)
            white = np.linalg.solve(root, missed)
            misfit = float(np.log(np.diag(root)).sum() + white @ white / 2)
            yield Explained(math.log(share) - misfit, root, bend, scatter)


def _prior(
    at: Floats, to: Floats, count: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats, Floats]:
    """Lines and Wiener integrals drawn before anything is told, and their covariances."""
    both = np.concatenate([at, to])
    offset = OFFSET_SPREAD * rng.standard_normal((count, 1))
    slope = SLOPE_MEAN + SLOPE_SPREAD * rng.standard_normal((count, 1))
    return offset + slope * both, _wiener_integral(both, count, rng), _line(to, at), _bent(to, at)


def _wiener_integral(x: Floats, count: int, rng: np.random.Generator) -> Floats:
    """*count* integrated Wiener processes at *x* >= 0, exactly, from point to point."""
    order = np.argsort(x)
    found = np.empty((count, len(x)))
    slope, value, before = np.zeros(count), np.zeros(count), 0.0
    for place in order:
        gap = float(x[place]) - before
        step = math.sqrt(gap) * rng.standard_normal(count)
        # Over a gap h the slope gains N(0, h), the value h / 2 of that and N(0, h^3 / 12) beside.
        rest = math.sqrt(gap**3 / 12) * rng.standard_normal(count)
        value = value + gap * slope + gap / 2 * step + rest
        slope = slope + step
        before = float(x[place])
        found[:, place] = value
    return found


def _line(a: Floats, b: Floats) -> Floats:
    covariance: Floats = OFFSET_SPREAD**2 + SLOPE_SPREAD**2 * np.outer(a, b)
    return covariance


def _bent(a: Floats, b: Floats) -> Floats:
    """Covariance of an integrated Wiener process of unit variance."""
    low, gap = np.minimum.outer(a, b), np.abs(np.subtract.outer(a, b))
    covariance: Floats = low**3 / 3 + gap * low**2 / 2
    return covariance


def rising(told: Points, x: Floats, count: int, rng: np.random.Generator) -> Floats:
    """*count* never-falling curves over *x* (ascending), as likely as the points make them.

    A load that breaks a limit cannot keep it with more users. So a drawn curve is made monotone at
    the measured loads first, and between two of them it stays between its values there: otherwise
    a curve that bends wildly where nothing was measured would move the edge past a level that
    kept its limits. Last, what is left of its falls is taken out by `monotone`.

    Returns:
        Shape (count, x).
    """
    drawn = paths(told, np.concatenate([x, told.x]), count, rng)
    here, order = drawn[:, : len(x)], np.argsort(told.x)
    held = isotonic(drawn[:, len(x) :][:, order], 1 / (told.error[order] ** 2 + _SOME**2))
    ends = np.full((count, 1), np.inf)
    held = np.concatenate([-ends, held, ends], axis=1)
    gap = np.searchsorted(told.x[order], x, side="right")
    return monotone(np.clip(here, held[:, gap], held[:, gap + 1]))


def isotonic(values: Floats, weights: Floats) -> Floats:
    """The never-falling rows nearest to *values* by weighted squares; shape (rows, columns).

    Source:
        The min-max formula of isotonic regression: Barlow, Bartholomew, Bremner & Brunk,
        Statistical inference under order restrictions (1972), section 1.2.
    """
    columns = values.shape[1]
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values * weights, axis=1)], axis=1)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    found = np.empty_like(values)
    least = np.full((len(values), columns), np.inf)  # of means from each column on, up to `last`
    for last in reversed(range(columns)):
        mean = (sums[:, last + 1, None] - sums[:, : last + 1]) / (
            total[last + 1] - total[: last + 1]
        )
        least[:, : last + 1] = np.minimum(least[:, : last + 1], mean)
        found[:, last] = least[:, : last + 1].max(axis=1)
    return found


def monotone(curves: Floats) -> Floats:
    """Each curve's nearest never-falling one, as the mean of its envelopes from both sides.

    A load that breaks a limit cannot keep it with more users. Curves drawn without that knowledge
    are projected onto it, which shares what is known between loads far from each other.

    Source:
        Lin & Dunson, Bayesian monotone regression using Gaussian process projection,
        Biometrika 101 (2014).
    """
    from_left = np.maximum.accumulate(curves, axis=1)
    from_right = np.minimum.accumulate(curves[:, ::-1], axis=1)[:, ::-1]
    projected: Floats = (from_left + from_right) / 2
    return projected


def crossings(curves: Floats, loads: Floats) -> Floats:
    """The load at which each never-falling curve rises above 0; between grid points, a line.

    A curve that is above 0 from the start gives the load 0, one that never is gives infinity.
    """
    above = curves > 0
    found = np.full(len(curves), np.inf)
    some = above.any(axis=1)
    at = above.argmax(axis=1)
    found[some & (at == 0)] = 0.0
    rows = np.nonzero(some & (at > 0))[0]
    low, high = curves[rows, at[rows] - 1], curves[rows, at[rows]]
    share = low / (low - high)
    found[rows] = loads[at[rows] - 1] + share * (loads[at[rows]] - loads[at[rows] - 1])
    return found

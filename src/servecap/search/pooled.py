"""Levels weighed by what all near them tell of their errors, not by the luck of their own.

What one level tells of its own error is itself a guess from 20 batches, and where values have heavy
tails a mean that came out low comes with a small error: weighed by such errors the levels that are
too good would be believed. Levels of about the same load spread alike, so they share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from servecap.search.evidence import Margin, scored
from servecap.stats import Floats

_ALIKE = 0.25  # of the logarithm of the load: levels so near to each other spread alike
_FAR = 1.0  # a margin beyond this tells on which side it is, and its error matters little
_BATCHES = 20.0
# A level's own variance is widened so that it is seldom too small, which makes it too large on
# average: by 1.2 to 1.9 for log-normal values with correlated neighbours. An average needs it less.
_WIDENED = 1.5


def pooled(loads: Sequence[float], margins: Sequence[Margin]) -> list[Margin]:
    """The margins of one limit, each with the error that it and its neighbours let expect.

    Of a mean, the variance per request (as a share of the mean) is shared; of a share of requests,
    how many correlated requests tell as much as one independent one. The logarithm of a mean comes
    out half its variance too low, in all levels alike; that is put right here.
    """
    if not margins:
        return []
    spread, weight = np.array([_spread(m) for m in margins]).T
    x = np.log(np.asarray(loads, dtype=np.float64))
    near: Floats = np.exp(-(((x[:, None] - x[None, :]) / _ALIKE) ** 2) / 2) * weight
    total = np.maximum(near.sum(axis=1), 1e-12)
    others = 1 - np.diag(near) / total  # part of what is known that is not the level's own
    shared = near @ spread / total * (1 - others * (1 - 1 / _WIDENED))
    return [
        _with(m, float(s) if w > 0 or t > 1 else float(own))
        for m, s, w, t, own in zip(margins, shared, weight, total, spread, strict=True)
    ]


def typical(
    loads: Sequence[float], margins: Sequence[Margin], *, within: float = _ALIKE
) -> list[Margin]:
    """The margins of one limit, each with its own error, or what is usual near it if that is more.

    One level that was disturbed widens no other here, so that what it was disturbed by can be seen.

    Args:
        within: levels are near whose loads' logarithms are no further apart.
    """
    x = np.log(np.asarray(loads, dtype=np.float64))
    noise = np.array([_noise(m) for m in margins])
    usual = [float(np.median(noise[np.abs(x - at) < within])) for at in x]
    return [
        msgspec.structs.replace(m, error=max(m.error, math.sqrt(most / m.requests)))
        for m, most in zip(margins, usual, strict=True)
    ]


def _spread(margin: Margin) -> tuple[float, float]:
    """What is shared of a level, and its weight: batches, or requests of the rarer kind.

    Far from its limit a mean is of another regime: it keeps to itself.
    """
    if margin.spread is not None and margin.allowed is not None:
        tail = min(margin.allowed, 1 - margin.allowed) * margin.requests
        return _noise(margin), min(_BATCHES, tail) if _near(margin) else 0.0
    if margin.worth is None:
        batches = min(_BATCHES, margin.requests / 8) if _near(margin) else 0.0
        return _noise(margin), batches
    over = margin.broken or 0
    return margin.requests / margin.worth, min(_BATCHES, over, margin.requests - over)


def _with(margin: Margin, spread: float) -> Margin:
    if not _near(margin):
        return margin
    noise = math.sqrt(spread / margin.requests)
    error = math.hypot(noise, margin.warm_up)
    if margin.spread is not None and margin.allowed is not None:
        return msgspec.structs.replace(margin, error=error)
    if margin.broken is None:
        return msgspec.structs.replace(margin, value=margin.value + noise**2 / 2, error=error)
    if margin.worth is None:
        return margin
    return scored(margin, worth=margin.requests / max(1.0, spread))


def _noise(margin: Margin) -> float:
    """The variance of one request, were there no doubt about the warm-up."""
    return (margin.error**2 - margin.warm_up**2) * margin.requests


def _near(margin: Margin) -> bool:
    """Whether it is near enough to its limit to be of one regime with others that are."""
    return abs(margin.value) < _FAR

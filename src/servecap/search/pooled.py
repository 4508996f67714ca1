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

from servecap.search.evidence import Margin, near, noise
from servecap.stats import Floats

_ALIKE = 0.25  # of the logarithm of the load: levels so near to each other spread alike
# A level's own variance is widened so that it is seldom too small, which makes it too large on
# average: by 1.2 to 1.9 for log-normal values with correlated neighbours. An average needs it less.
_WIDENED = 1.5


def pooled(
    loads: Sequence[float], margins: Sequence[Margin], *, alike: float = _ALIKE
) -> list[Margin]:
    """The margins of one limit, each with the error that it and its neighbours let expect.

    What is shared is each kind's own: a variance per request, or how many tell as much as one.

    Args:
        alike: of the logarithm of the load: levels so near to each other spread alike.
    """
    if not margins:
        return []
    spread, weight = np.array([m.scatter() for m in margins]).T
    x = np.log(np.asarray(loads, dtype=np.float64))
    near_by: Floats = np.exp(-(((x[:, None] - x[None, :]) / alike) ** 2) / 2) * weight
    total = np.maximum(near_by.sum(axis=1), 1e-12)
    others = 1 - np.diag(near_by) / total  # part of what is known that is not the level's own
    shared = near_by @ spread / total * (1 - others * (1 - 1 / _WIDENED))
    return [
        m.scattering(float(s if w > 0 or t > 1 else own)) if near(m) else m
        for m, s, w, t, own in zip(margins, shared, weight, total, spread, strict=True)
    ]


def typical(loads: Sequence[float], margins: Sequence[Margin]) -> list[Margin]:
    """The margins of one limit, each with its own error, or what is usual near it if that is more.

    One level that was disturbed widens no other here, so that what it was disturbed by can be seen.
    """
    x = np.log(np.asarray(loads, dtype=np.float64))
    single = np.array([noise(m) for m in margins])
    usual = [float(np.median(single[np.abs(x - at) < _ALIKE])) for at in x]
    return [
        msgspec.structs.replace(m, error=max(m.error, math.sqrt(most / m.requests)))
        for m, most in zip(margins, usual, strict=True)
    ]

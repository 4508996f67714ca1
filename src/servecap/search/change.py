"""Whether the server changed while it was searched: later levels against earlier ones.

Each level is tested for drift by itself; a server that slows down from level to level, or at once
between two of them, shows only where levels of about the same load disagree.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from servecap.search import curve
from servecap.stats import Floats

_SURE = 3.5  # standard errors: in one search of a thousand a steady server seems to change
_SCATTER = 0.03  # of a level beyond its own error, see `curve.SCATTERS`
_OF_MANY = 1.2  # a pair of levels is one of dozens that might have stood out
_LEVELS = 4  # near the edge: with fewer, a change and a bend cannot be told apart


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """How much a margin moved from the first to the last level, at the same load."""

    gained: float  # > 0: it came nearer to its limit, or went farther beyond it
    error: float

    @property
    def sure(self) -> bool:
        """Whether it is no matter of noise."""
        return abs(self.gained) > _SURE * self.error


def change(told: curve.Points) -> Change | None:
    """What tells most surely that one limit's margins moved during the search; None if nothing."""
    found = [x for x in (_against_the_order(told), _trend(told)) if x is not None]
    return max(found, key=lambda x: abs(x.gained) / x.error, default=None)


def _against_the_order(told: curve.Points) -> Change | None:
    """The later level that differs most from an earlier one in a way that its load forbids.

    With as many users or fewer a margin cannot be larger, with as many or more not smaller.
    """
    later = told.order[:, None] > told.order[None, :]
    error = np.sqrt((told.error**2)[:, None] + (told.error**2)[None, :] + _SCATTER**2)
    gap = told.value[:, None] - told.value[None, :]
    more = told.x[:, None] - told.x[None, :]
    forbidden = later & (((more <= 0) & (gap > 0)) | ((more >= 0) & (gap < 0)))
    if not forbidden.any():
        return None
    score = np.where(forbidden, np.abs(gap) / error, 0.0)
    at = np.unravel_index(int(score.argmax()), score.shape)
    return Change(gained=float(gap[at]), error=float(error[at]) * _OF_MANY)


def _trend(told: curve.Points) -> Change | None:
    """The trend of the margins over the search, beside the curve; None with few levels.

    The margins are taken as the curve of the load plus a straight line over the order in which
    the levels were measured, fitted by generalised least squares; how bent the curve is and how
    much levels scatter is averaged over, as for the curve itself.
    """
    if len(told.x) < _LEVELS:
        return None
    span = float(np.ptp(told.order))
    when = (told.order - told.order.min()) / span
    weights, gained, errors = [], [], []
    for found in curve.explained(told):
        white_when, white_off = _white(found.root, when), _white(found.root, curve.off(told))
        known = float(white_when @ white_when)
        here = float(white_when @ white_off) / known
        # With the trend taken out, this is how well the curve explains the levels.
        weights.append(found.log_weight + here**2 * known / 2)
        gained.append(here)
        errors.append(1 / known)
    share = np.exp(np.array(weights) - max(weights))
    share /= share.sum()
    mean = float(share @ np.array(gained))
    spread = float(share @ (np.array(errors) + (np.array(gained) - mean) ** 2))
    return Change(gained=mean, error=math.sqrt(spread))


def _white(root: Floats, values: Floats) -> Floats:
    return np.asarray(np.linalg.solve(root, values), dtype=np.float64)

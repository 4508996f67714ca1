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
_FAR = -1.0  # levels whose margins are below: what they disagree in says nothing of the edge
_JUMP = 0.15  # of a margin at the edge beyond its slope, that a change could have made
_NOISE = 2.0  # standard errors that such a jump must be
_NEAR = 0.1  # of the logarithm of the load: levels at the edge


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """How much a margin moved from the first to the last level, at the same load."""

    gained: float  # > 0: it came nearer to its limit, or went farther beyond it
    error: float

    @property
    def sure(self) -> bool:
        """Whether it is no matter of noise."""
        return abs(self.gained) > _SURE * self.error


def change(told: curve.Points, near: curve.Points) -> Change | None:
    """What tells most surely that one limit's margins moved during the search; None if nothing.

    Args:
        told: all levels.
        near: those that the curve is drawn through.
    """
    found = [x for x in (_against_the_order(told), _trend(near)) if x is not None]
    return max(found, key=lambda x: abs(x.gained) / x.error, default=None)


def blind_spot(told: curve.Points) -> tuple[float, bool] | None:
    """The level at the edge that a later one should be held against, and whether it was broken.

    Where all levels on one side of a jump were measured before all on the other, a server that
    changed between them looks like one with a cliff there. None where there is no such jump.
    """
    over = told.value > 0
    if over.all() or not over.any():
        return None
    low = int(np.where(over, -np.inf, told.x).argmax())
    high = int(np.where(over, told.x, np.inf).argmin())
    noise = math.hypot(told.error[low], told.error[high])
    gap, apart = told.value[high] - told.value[low], told.x[high] - told.x[low]
    jump = gap - apart * max(_slope(told, low, -1), _slope(told, high, 1))
    if apart <= 0 or jump < _JUMP or gap < _NOISE * noise:
        return None
    near = (told.x > told.x[low] - _NEAR) & (told.x < told.x[high] + _NEAR)
    near &= np.abs(told.value) > _NOISE * told.error
    sides = over[near][np.argsort(told.order[near])]
    if np.count_nonzero(sides[1:] != sides[:-1]) > 1:
        return None
    first = bool(told.order[high] < told.order[low])
    return float(np.exp(told.x[high if first else low])), first


def _slope(told: curve.Points, at: int, way: int) -> float:
    """From that level to the next one on that side, per logarithm of the load; at least 0."""
    beyond = np.where(way * (told.x - told.x[at]) > 0, np.abs(told.x - told.x[at]), np.inf)
    to = int(beyond.argmin())
    if not math.isfinite(beyond[to]):
        return 0.0
    return max(0.0, float((told.value[to] - told.value[at]) / (told.x[to] - told.x[at])))


def _against_the_order(told: curve.Points) -> Change | None:
    """The later level that differs most from an earlier one in a way that its load forbids.

    With as many users or fewer a margin cannot be larger, with as many or more not smaller.
    """
    later = told.order[:, None] > told.order[None, :]
    error = np.sqrt((told.error**2)[:, None] + (told.error**2)[None, :] + _SCATTER**2)
    gap = told.value[:, None] - told.value[None, :]
    more = told.x[:, None] - told.x[None, :]
    forbidden = later & (((more <= 0) & (gap > 0)) | ((more >= 0) & (gap < 0)))
    forbidden &= np.maximum.outer(told.value, told.value) > _FAR
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

"""Whether a server changed while it was searched, from the levels alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from servecap.search.change import blind_spot, change
from servecap.search.curve import Points, points
from servecap.search.evidence import Mean


def told(levels: Sequence[tuple[float, float]], error: float = 0.02) -> Points:
    """Levels of (users, margin) in the order in which they were measured."""
    margins = [Mean(limit="x", value=v, error=error, requests=250) for _, v in levels]
    return points([users for users, _ in levels], margins)


FAST = [(users, math.log(users / 56)) for users in (37, 38, 39)]
SLOW = [(users, math.log(users / 38)) for users in (45, 41, 40)]


def test_a_jump_between_early_and_late_levels_is_to_be_looked_at_from_the_early_side() -> None:
    load, broken = blind_spot(told(SLOW + FAST)) or (0.0, False)
    assert load == pytest.approx(40)
    assert broken is True
    load, broken = blind_spot(told(FAST + SLOW)) or (0.0, True)
    assert load == pytest.approx(39)
    assert broken is False


def test_a_late_level_on_the_early_side_settles_it() -> None:
    cliff, changed = (42, math.log(42 / 38)), (42, math.log(42 / 56))
    assert blind_spot(told([*SLOW, *FAST, cliff])) is None
    assert blind_spot(told([*SLOW, *FAST, changed])) is None
    found = change(told([*SLOW, *FAST, changed]), told([*SLOW, *FAST, changed]))
    assert found is not None
    assert found.sure


def test_a_level_that_tells_neither_side_settles_nothing() -> None:
    vague = [Mean(limit="x", value=0.05, error=0.2, requests=250)]
    levels = told(SLOW + FAST)
    margins = [
        Mean(limit="x", value=float(v), error=0.02, requests=250) for v in levels.value
    ] + vague
    loads = [users for users, _ in SLOW + FAST] + [42]
    assert blind_spot(points(loads, margins)) is not None


def test_a_slope_is_no_jump() -> None:
    steep = [(users, 8 * math.log(users / 39.5)) for users in (45, 42, 40, 39, 37, 35)]
    assert blind_spot(told(steep)) is None
    assert blind_spot(told(FAST)) is None, "all on one side"


def test_far_below_the_limit_no_level_is_held_against_another() -> None:
    idle = [(8, -2.0), (16, -3.0), (32, -1.2), (64, 0.1)]
    found = change(told(idle), told(idle[-2:]))
    assert found is None or not found.sure

"""Where a search for the capacity may start, as the engine model sees it."""

from __future__ import annotations

import math

from servecap.engine.spec import EngineSpec
from servecap.predict.answer import Range, answer
from servecap.predict.expected import case_of
from servecap.predict.profile import prior
from servecap.scenario import Scenario


def users_expected(
    spec: EngineSpec, scenario: Scenario, *, interconnect: str | None = None
) -> Range | None:
    """The most users that such a server carries, and between what that may lie; None if none.

    Raises:
        UsageError: a name is unknown, or the scenario's users cannot be predicted.
    """
    case = case_of(spec, scenario, interconnect=interconnect)
    found = answer(case, prior(spec.engine), scenario.slo).max_users
    return found if found is not None and found.value >= 1 else None


def first_level(expected: Range | None, *, otherwise: int, most: int) -> int:
    """Users of a search's first level: the lower end of what is expected.

    A level below the capacity is cheaper than one above it, and the search goes up from there.
    """
    if expected is None:
        return otherwise
    return max(1, min(math.floor(expected.low), most))

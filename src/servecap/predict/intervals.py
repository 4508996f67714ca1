"""The intervals of one predicted cell: the model's error by what is known, and the parameters'."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np

from servecap.errors import UsageError
from servecap.predict.calibrate import place_of
from servecap.predict.figures import Case, Figures, capacity
from servecap.predict.profile import FIGURES, Kind, Profile, Spread
from servecap.predict.uncertainty import joined, spread_of
from servecap.slo import Slo

_SEEDS = 2  # the same for all draws, so that these differ by their parameters only
_BEYOND = 1.5  # times what was measured: as far as a measured place is still taken as measured
# Which figure's error the error of a limited metric is; an answer's time is mostly its tokens'.
_ERROR_OF = {
    "ttft": "ttft_s",
    "queue": "ttft_s",
    "tpot": "tpot_s",
    "gap": "tpot_s",
    "e2e": "tpot_s",
}


def kind_of(case: Case, profile: Profile, shown: Figures) -> Kind:
    """How much the calibration knows of the cell.

    "measured": rows of this very place (model, GPU, tp), whose contexts and requests in flight
    reach at least two thirds as far. Still a prediction: another load was measured.
    """
    kind = profile.kind(case.place.gpu)
    if kind != "calibrated" or place_of(case) not in profile.validity.places:
        return kind
    inside = reaches(case, profile) and in_flight(case, shown) <= (
        _BEYOND * profile.validity.in_flight_max
    )
    return "measured" if inside else kind


def reaches(case: Case, profile: Profile) -> bool:
    """Whether the rows' contexts reach about as far as the cell's."""
    context = case.lengths.prompt_tokens + case.lengths.output_tokens
    low, high = profile.validity.context_tokens
    return low / _BEYOND <= context <= high * _BEYOND


def in_flight(case: Case, shown: Figures) -> float:
    """Requests that one instance computes at once, by Little's law."""
    waiting_too = shown.requests_per_s * shown.e2e_s / case.harness.instances
    return min(waiting_too, float(case.harness.policy.max_running))


def spreads(
    case: Case,
    of_most: Case,
    profile: Profile,
    kind: Kind,
    slo: Slo,
    shown: Figures,
    most: int,
    users_max: int,
) -> dict[str, Spread]:
    """Of each figure, how far the truth's logarithm may lie from the predicted one's.

    Args:
        of_most: the case that the capacity is of.
        shown: the figures at the load that is told.
        most: the predicted capacity.
    """
    unsure = _unsure(case, of_most, profile, slo, shown.users, users_max)
    found = {}
    for figure in FIGURES:
        spread = spread_of(profile, kind, figure)
        if spread is not None:
            found[figure] = joined(spread, unsure.get(figure, 0.0))
    if "max_users" not in found:
        found["max_users"] = joined(
            _by_limits(of_most, profile, slo, found, most, users_max), unsure.get("max_users", 0.0)
        )
    return found


def _by_limits(
    case: Case, profile: Profile, slo: Slo, known: dict[str, Spread], most: int, users_max: int
) -> Spread:
    """What the errors of the limited figures make of a capacity.

    Where a time per token may be 5% longer than predicted, the capacity may be as low as under a
    limit that is 5% tighter; all limits are moved at once.
    """
    tuning = profile.tuning(case.place.gpu)

    def users(side: str) -> float:
        limits = tuple(
            msgspec.structs.replace(
                x, at_most_s=x.at_most_s / math.exp(getattr(known[_ERROR_OF[x.metric]], side))
            )
            for x in slo.limits
        )
        moved = msgspec.structs.replace(slo, limits=limits)
        return max(0.5, capacity(case, tuning, moved, seeds=_SEEDS, users_max=users_max)[0])

    return Spread(
        low=min(0.0, math.log(users("high") / max(0.5, most))),
        high=max(0.0, math.log(users("low") / max(0.5, most))),
        rows=min(known[_ERROR_OF[x.metric]].rows for x in slo.limits),
    )


def _unsure(
    case: Case, of_most: Case, profile: Profile, slo: Slo, users: int, users_max: int
) -> dict[str, float]:
    """Standard deviation of each figure's logarithm over the profile's draws; empty without."""
    if not profile.draws:
        return {}
    middle = _logarithms(case, of_most, profile, slo, users, users_max)
    drawn = [_logarithms(case, of_most, p, slo, users, users_max) for p in profile.drawn()]
    return {
        figure: _root_mean_square(d[figure] - middle[figure] for d in drawn if figure in d)
        for figure in middle
    }


def _logarithms(
    case: Case, of_most: Case, profile: Profile, slo: Slo, users: int, users_max: int
) -> dict[str, float]:
    """Those of the figures that are finite; none where the model does not fit at all."""
    tuning = profile.tuning(case.place.gpu)
    try:
        figures = case.figures(tuning, users, seeds=_SEEDS)
        most = capacity(of_most, tuning, slo, seeds=_SEEDS, users_max=users_max)[0]
    except UsageError:
        return {}
    told = {"max_users": max(0.5, most)} | {
        name: float(getattr(figures, name)) for name in FIGURES if name != "max_users"
    }
    return {name: math.log(v) for name, v in told.items() if math.isfinite(v) and v > 0}


def _root_mean_square(values: Iterable[float]) -> float:
    squares = np.square(np.fromiter(values, np.float64))
    return float(np.sqrt(squares.mean())) if len(squares) else 0.0

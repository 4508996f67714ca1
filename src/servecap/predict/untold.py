"""Averages over the settings of load tests that their tables do not tell.

How many requests each user sent, and how fast the users were started, are told by no published row;
both change first tokens and rates. Instead of choosing one of the plausible pairs, the parameters
are fitted under each, each weighs as much as its fit makes the rows likely, and a figure is the
weighted median of what all of them say: the value off which the truth is expected to be least. The
weights hang on the rows of the fit alone; without rows all pairs weigh the same.

Source: Bayesian model averaging (Hoeting et al., 1999), each fit weighing by its posterior density
at the mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import msgspec
import numpy as np

from servecap.predict import calibrate
from servecap.predict.calibrate import Fit, Measured
from servecap.predict.figures import SEEDS, USERS_MAX, Case, Figures
from servecap.predict.figures import capacity as capacity_of
from servecap.predict.profile import Member, Profile
from servecap.slo import Slo

# Requests of each user, and seconds within which all have started: at once, within a second, within
# a first think time of 2 s. All are as likely beforehand.
SETTINGS = tuple(product((3, 5, 8), (0.0, 1.0, 2.0)))
_LEAST_WEIGHT = 0.01  # less changes no median


def under(case: Case, member: Member) -> Case:
    """The case with the member's settings, where its own are an assumption."""
    if not case.harness.untold:
        return case
    cycles = None if case.harness.cycles is None else member.cycles
    harness = msgspec.structs.replace(case.harness, cycles=cycles, start_s=member.start_s)
    return msgspec.structs.replace(case, harness=harness)


def as_fitted(case: Case, profile: Profile) -> Case:
    """The case with the settings under which the profile's own parameters were fitted."""
    return under(case, profile.members[0]) if profile.members else case


def fit(rows: Sequence[Measured], start: Profile, *, name: str) -> Fit:
    """As `calibrate.fit`, under the likeliest settings; its profile knows the others, too."""
    if not any(row.case.harness.untold for row in rows):
        return calibrate.fit(rows, start, name=name)
    fits = []
    for cycles, start_s in SETTINGS:
        settings = Member(weight=1.0, cycles=cycles, start_s=start_s)
        these = [msgspec.structs.replace(row, case=under(row.case, settings)) for row in rows]
        fits.append((calibrate.fit(these, start, name=name), settings))
    losses = [found.problem.loss(list(found.errors), found.x) for found, _ in fits]
    weights = [math.exp(min(losses) - loss) for loss in losses]
    total = sum(weights)
    members = [
        msgspec.structs.replace(
            settings, weight=weight / total, logs=tuple(round(float(v), 5) for v in found.x)
        )
        for (found, settings), weight in zip(fits, weights, strict=True)
        if weight / total >= _LEAST_WEIGHT
    ]
    members.sort(key=lambda member: -member.weight)
    best = fits[losses.index(min(losses))][0]
    profile = msgspec.structs.replace(best.profile, members=tuple(members))
    return msgspec.structs.replace(best, profile=profile)


def _all(case: Case, profile: Profile) -> list[tuple[float, Case, Profile]]:
    """Weight, case and profile of each member; without rows, all settings weigh the same."""
    if profile.members:
        return [(m.weight, under(case, m), profile.with_logs(m.logs)) for m in profile.members]
    if not case.harness.untold:
        return [(1.0, case, profile)]
    members = [Member(weight=1.0, cycles=cycles, start_s=start_s) for cycles, start_s in SETTINGS]
    return [(m.weight, under(case, m), profile) for m in members]


def figures(
    case: Case, profile: Profile, users: int, *, slo: Slo | None = None, seeds: int = SEEDS
) -> Figures:
    """The figures with that many users, as all settings together have them.

    Raises:
        UsageError: the model does not fit.
    """
    found = [
        (weight, this.figures(known.tuning(case.place.gpu), users, slo=slo, seeds=seeds))
        for weight, this, known in _all(case, profile)
    ]
    return found[0][1] if len(found) == 1 else _median_figures(found)


def capacity(
    case: Case, profile: Profile, slo: Slo, *, seeds: int = SEEDS, users_max: int = USERS_MAX
) -> tuple[int, Figures]:
    """As `figures.capacity`, as all settings together have it.

    Raises:
        UsageError: the model does not fit.
    """
    found = [
        (weight, capacity_of(this, known.tuning(case.place.gpu), slo, seeds=seeds,
                             users_max=users_max))
        for weight, this, known in _all(case, profile)
    ]  # fmt: skip
    if len(found) == 1:
        return found[0][1]
    most = int(median([float(users) for _, (users, _) in found], [w for w, _ in found]))
    return most, figures(case, profile, max(1, most), slo=slo, seeds=seeds)


def median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The least of the values that has half of the weight at or below it.

    >>> median([3.0, 1.0, 2.0], [0.2, 0.3, 0.5])
    2.0
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(np.array(weights)[order])
    return float(values[order[int(np.searchsorted(reached, 0.5 * reached[-1] - 1e-12))]])


def _median_figures(found: Sequence[tuple[float, Figures]]) -> Figures:
    weights = [weight for weight, _ in found]
    columns = {
        name: median([float(getattr(figures, name)) for _, figures in found], weights)
        for name in Figures.__struct_fields__
        if name not in ("users", "held")
    }
    held = zip(*(figures.held for _, figures in found), strict=True)
    return msgspec.structs.replace(
        found[0][1], **columns, held=tuple(median(values, weights) for values in held)
    )

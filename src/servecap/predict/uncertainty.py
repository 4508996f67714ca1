"""How wrong predictions are: from rows that were left out of the fit, by what was known of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from servecap.predict.calibrate import EXPECTED, Fit, Measured, Vector, residuals, truth
from servecap.predict.profile import Kind, Profile, Spread
from servecap.stats import t_quantile

SHARE = 0.8  # of the truths, that an interval is to hold
DRAWS = 16  # of the parameters, kept with a profile
_WIDTH = 1.2816  # half an 80% interval of a normal distribution, in standard deviations
_LEAST_ROWS = 9  # fewer residuals have no 10% and 90% quantiles

# Before any residuals are known. Source: the model without calibration against the tables of
# docs/accuracy.md, on which the quantiles were read; so they are not tested on them.
ASSUMED: dict[str, Spread] = {
    "max_users": Spread(low=-1.35, high=0.5, rows=0),
    "ttft_s": Spread(low=-1.2, high=1.4, rows=0),
    "tpot_s": Spread(low=-0.35, high=0.55, rows=0),
    "requests_per_s": Spread(low=-0.7, high=0.4, rows=0),
}


def with_spreads(fit: Fit) -> Profile:
    """The fit's profile with the spreads of what it did not see, and draws of its parameters.

    "measured": rows at the same place, by the errors that the fit leaves them; "calibrated": rows
    on the same GPU (each row predicted without those of its own model there); "transferred": rows
    on other GPUs only.
    """
    cells = left_out(fit, lambda row: f"{row.case.place.gpu.name} {row.case.place.model.name}")
    gpus = left_out(fit, lambda row: row.case.place.gpu.name)
    draws = fit.draws(DRAWS)
    unsure = _unsure(fit, draws)
    spreads = {"calibrated": _spreads(cells, None, unsure), "spec-only": dict(ASSUMED)}
    spreads["transferred"] = _spreads(gpus, spreads["calibrated"], unsure)
    spreads["measured"] = _left_errors(fit)
    kept = tuple(tuple(round(float(v), 5) for v in draw) for draw in draws)
    return msgspec.structs.replace(fit.profile, spreads=spreads, draws=kept)


def _figures(fit: Fit) -> list[str]:
    """The figure that each of the fit's errors is of; capacities are not fitted to."""
    return [f for row in fit.rows for f in truth(msgspec.structs.replace(row, slo=None))]


def _expected(fit: Fit) -> Vector:
    rows = [(row.expected or EXPECTED, truth(msgspec.structs.replace(row, slo=None)))
            for row in fit.rows]  # fmt: skip
    return np.array([expected[figure] for expected, told in rows for figure in told])


def _left_errors(fit: Fit) -> dict[str, Spread]:
    """What the fit leaves of each figure, as a Student distribution of so few rows has it."""
    figures, errors = np.array(_figures(fit)), fit.studentised() * _expected(fit)
    spreads = {}
    for figure in sorted(set(figures)):
        left = errors[figures == figure]
        if (n := len(left)) > 1:
            half = t_quantile((1 + SHARE) / 2, n - 1) * float(np.sqrt(np.mean(left**2)))
            spreads[str(figure)] = Spread(low=-half, high=half, rows=n)
    return spreads


def _unsure(fit: Fit, draws: Sequence[Vector]) -> dict[str, float]:
    """Half the width that the draws give to each figure of the rows, on average."""
    figures = np.array(_figures(fit))
    moved = np.array(draws) - fit.x
    shifts = (np.concatenate(fit.slopes) * _expected(fit)[:, None]) @ moved.T
    return {
        str(figure): _WIDTH * float(np.sqrt(np.mean(shifts[figures == figure] ** 2)))
        for figure in sorted(set(figures))
    }


def joined(spread: Spread, unsure: float) -> Spread:
    """The model's error together with that of unsure parameters at one cell.

    Where left-out rows are behind *spread*, it holds the parameters' part already: as much as is
    typical of the rows. It is never made narrower than these rows showed it to be.

    Args:
        unsure: standard deviation of the figure's logarithm over the draws.
    """
    more = max(0.0, (_WIDTH * unsure) ** 2 - spread.parameters**2)
    return msgspec.structs.replace(
        spread, low=-math.hypot(spread.low, math.sqrt(more)) if spread.low < 0 else spread.low,
        high=math.hypot(spread.high, math.sqrt(more)) if spread.high > 0 else spread.high,
    )  # fmt: skip


def left_out(fit: Fit, group: Callable[[Measured], str]) -> dict[str, list[float]]:
    """log(truth / predicted) of each figure, each row predicted without its group."""
    found: dict[str, list[float]] = {}
    names = sorted({group(row) for row in fit.rows})
    if len(names) < 2:
        return found
    for name in names:
        rows = [row for row in fit.rows if group(row) == name]
        profile = fit.without(rows)
        for row in rows:
            for figure, value in residuals(row, profile).items():
                found.setdefault(figure, []).append(value)
    return found


def _spreads(
    found: dict[str, list[float]], least: dict[str, Spread] | None, unsure: dict[str, float]
) -> dict[str, Spread]:
    """Quantiles per figure; those assumed where rows are too few, never narrower than *least*."""
    out = {}
    for figure, assumed in ASSUMED.items():
        spread = interval(found.get(figure, []), SHARE) or assumed
        # Of capacities, which are not fitted to: as of times per token, which limit them mostly.
        typical = unsure.get(figure, unsure.get("tpot_s", 0.0))
        spread = msgspec.structs.replace(spread, parameters=typical)
        if least is not None:
            low, high = least[figure].low, least[figure].high
            spread = msgspec.structs.replace(
                spread, low=min(spread.low, low), high=max(spread.high, high)
            )
        out[figure] = spread
    return out


def interval(values: Sequence[float], share: float) -> Spread | None:
    """Between which two of the values the next one lies with at least that chance.

    Source: split conformal prediction (Vovk et al., 2005): of n exchangeable values, the next is
    above the k-th smallest with the chance 1 - k / (n + 1).

    >>> interval([0.01 * k for k in range(1, 20)], 0.8)
    Spread(low=0.02, high=0.18, rows=19, parameters=0.0)
    """
    n = len(values)
    if n < _LEAST_ROWS:
        return None
    ordered = sorted(values)
    rank = max(1, math.floor((1 - share) / 2 * (n + 1) + 1e-9))  # 1.9999... is 2
    return Spread(low=ordered[rank - 1], high=ordered[n - rank], rows=n)


def spread_of(profile: Profile, kind: Kind, figure: str) -> Spread | None:
    """How far the truth may lie from that figure of a place of that kind.

    None: of a measured place's capacity nothing is known by itself; its limits' figures tell it.
    A figure that no row of a measured place tells is as unsure as that of other models there.
    """
    if kind == "measured" and figure != "max_users":
        found = profile.spreads.get("measured", {}).get(figure)
        return found if found is not None else spread_of(profile, "calibrated", figure)
    found = profile.spreads.get(kind, {}).get(figure)
    return found if found is not None or kind == "measured" else ASSUMED[figure]

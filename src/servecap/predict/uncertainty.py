"""How wrong predictions are: from rows that were left out of the fit, by what was known of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from servecap.predict.calibrate import Fit, Measured, residuals
from servecap.predict.profile import Kind, Profile, Spread

SHARE = 0.8  # of the truths, that an interval is to hold
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
    """The fit's profile with the spreads of what it did not see.

    "calibrated": rows on the same GPU (each row predicted without those of its own model there);
    "transferred": rows on other GPUs only.
    """
    cells = left_out(fit, lambda row: f"{row.case.place.gpu.name} {row.case.place.model.name}")
    gpus = left_out(fit, lambda row: row.case.place.gpu.name)
    spreads = {"calibrated": _spreads(cells, None), "spec-only": dict(ASSUMED)}
    spreads["transferred"] = _spreads(gpus, spreads["calibrated"])
    return msgspec.structs.replace(fit.profile, spreads=spreads)


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


def _spreads(found: dict[str, list[float]], least: dict[str, Spread] | None) -> dict[str, Spread]:
    """Quantiles per figure; those assumed where rows are too few, never narrower than *least*."""
    out = {}
    for figure, assumed in ASSUMED.items():
        spread = interval(found.get(figure, []), SHARE) or assumed
        if least is not None:
            low, high = least[figure].low, least[figure].high
            spread = Spread(low=min(spread.low, low), high=max(spread.high, high), rows=spread.rows)
        out[figure] = spread
    return out


def interval(values: Sequence[float], share: float) -> Spread | None:
    """Between which two of the values the next one lies with at least that chance.

    Source: split conformal prediction (Vovk et al., 2005): of n exchangeable values, the next is
    above the k-th smallest with the chance 1 - k / (n + 1).

    >>> interval([0.01 * k for k in range(1, 20)], 0.8)
    Spread(low=0.02, high=0.18, rows=19)
    """
    n = len(values)
    if n < _LEAST_ROWS:
        return None
    ordered = sorted(values)
    rank = max(1, math.floor((1 - share) / 2 * (n + 1) + 1e-9))  # 1.9999... is 2
    return Spread(low=ordered[rank - 1], high=ordered[n - rank], rows=n)


def spread_of(profile: Profile, kind: Kind, figure: str) -> Spread:
    """How far the truth may lie from that figure of a place of that kind."""
    return profile.spreads.get(kind, {}).get(figure, ASSUMED[figure])

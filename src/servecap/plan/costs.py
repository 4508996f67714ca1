"""What nodes cost: by the hour, or bought and run on electricity."""

from __future__ import annotations

import math

import msgspec

from servecap.errors import UsageError
from servecap.plan.answer import Costs, Demand

HOURS_PER_YEAR = 8760
HOURS_PER_MONTH = 730


class Purchase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node that is bought. `overhead`: the site's power for one of the node's (PUE)."""

    usd: float
    years: float
    power_kw: float = 0.0
    usd_per_kwh: float = 0.0
    overhead: float = 1.0
    usd_per_year: float = 0.0  # support, space, people


def usd_per_h(purchase: Purchase, name: str) -> float:
    """USD for each hour of the years, bought and run, spread evenly; no interest, no resale.

    Raises:
        UsageError: a figure is out of range.

    >>> round(usd_per_h(Purchase(usd=87_600, years=1, power_kw=5, usd_per_kwh=0.1), "a40"), 3)
    10.5
    """
    for field in msgspec.structs.fields(Purchase):
        value = getattr(purchase, field.name)
        low = 1.0 if field.name == "overhead" else 0.0
        if not low <= value < math.inf or (field.name in ("usd", "years") and value == 0):
            raise UsageError(
                f"{name}: {field.name} {value:g} must be at least {low:g}"
                + (" and not 0" if field.name in ("usd", "years") else "")
            )
    bought = purchase.usd / (purchase.years * HOURS_PER_YEAR)
    run = purchase.power_kw * purchase.overhead * purchase.usd_per_kwh
    return bought + run + purchase.usd_per_year / HOURS_PER_YEAR


def costs(
    usd_h: float,
    demand: Demand,
    *,
    users: int | None = None,
    output_tokens_per_s: float | None = None,
    total_tokens_per_s: float | None = None,
) -> Costs:
    """The same money by month, year, user and million tokens.

    Args:
        users: at the busiest time; None: not known.
        output_tokens_per_s, total_tokens_per_s: at the busiest time, at the cell's own rate per
            user, which is somewhat below that at a lower load: a token costs at most this.
    """
    return Costs(
        usd_per_h=usd_h,
        usd_per_month=usd_h * HOURS_PER_MONTH,
        usd_per_year=usd_h * HOURS_PER_YEAR,
        usd_per_user_month=None if not users else usd_h * HOURS_PER_MONTH / users,
        usd_per_million_output_tokens=_per_million(usd_h, output_tokens_per_s, demand),
        usd_per_million_total_tokens=_per_million(usd_h, total_tokens_per_s, demand),
    )


def _per_million(usd_h: float, tokens_per_s: float | None, demand: Demand) -> float | None:
    if not tokens_per_s:
        return None
    return usd_h / (tokens_per_s * demand.mean_share * 3600 / 1e6)

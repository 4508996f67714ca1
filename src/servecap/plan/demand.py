"""The busiest load that must be carried: from users, registered users, or a day's profile."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import msgspec

from servecap.errors import UsageError
from servecap.plan.answer import Demand

_UNITS = ("users", "requests_per_s")


class Profile(msgspec.Struct, frozen=True):
    """A day in equal steps: `values` in users at the same time, or in requests per second."""

    unit: str
    values: tuple[float, ...]

    @property
    def peak(self) -> float:
        return max(self.values)

    @property
    def mean_share(self) -> float:
        """The mean as a share of the peak."""
        return sum(self.values) / len(self.values) / self.peak

    def times(self, factor: float) -> Profile:
        """The same day with everything so many times larger."""
        return Profile(self.unit, tuple(value * factor for value in self.values))


def of_users(users: int, *, growth: float = 0.0) -> Demand:
    """So many users at the same time, grown by that share.

    >>> of_users(1000, growth=0.2).users
    1200
    """
    factor = _factor(growth)
    notes = () if not growth else (f"{users} users, and {growth:.0%} more for growth",)
    return Demand(users=math.ceil(users * factor - 1e-9), notes=notes)


def of_models(users: dict[str, int], *, growth: float = 0.0) -> Demand:
    """Users of several models that share one fleet."""
    factor = _factor(growth)
    grown = {model: math.ceil(count * factor - 1e-9) for model, count in users.items()}
    notes = () if not growth else (f"users are {growth:.0%} more than given, for growth",)
    return Demand(users=sum(grown.values()), users_of=grown, notes=notes)


def of_registered(registered: int, activity: float, *, growth: float = 0.0) -> Demand:
    """The share *activity* of all registered users, at the busiest time, grown.

    >>> of_registered(1_000_000, 0.01).users
    10000
    """
    if registered < 1:
        raise UsageError(f"registered users {registered}: at least 1 is needed")
    if not 0 < activity <= 1:
        raise UsageError(f"activity {activity:g}: must lie within 0 and 1 (5% is 0.05)")
    users = math.ceil(registered * activity * _factor(growth) - 1e-9)
    note = f"{registered} registered users, of whom {activity:.3g} are active at the same time"
    grown = f"; {growth:.0%} more for growth" if growth else ""
    return Demand(users=users, notes=(note + grown,))


def of_profile(profile: Profile, *, growth: float = 0.0, think_mean_s: float = 2.0) -> Demand:
    """The busiest step of a day, grown. The mean load decides the cost of a token."""
    grown = profile.times(_factor(growth))
    steps = len(profile.values)
    notes = (
        f"the busiest of {steps} steps of the day's profile"
        + (f", {growth:.0%} more for growth" if growth else "")
        + f"; the day's mean is {profile.mean_share:.0%} of it",
    )
    if profile.unit == "users":
        users = math.ceil(grown.peak - 1e-9)
        return Demand(users=users, mean_share=profile.mean_share, notes=notes)
    return Demand(
        requests_per_s=grown.peak, mean_share=profile.mean_share, think_mean_s=think_mean_s,
        notes=notes,
    )  # fmt: skip


def read_profile(path: Path) -> Profile:
    """A day from a CSV file with a column `users` or `requests_per_s`, one row for each step.

    Other columns (an hour, a name) are not read; the steps are taken as equally long.

    Raises:
        UsageError: no such file or column, or a value that is no load; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text ({error.reason})") from None
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UsageError(f"{path}: is no CSV ({error})") from None
    units = [unit for unit in _UNITS if rows and unit in rows[0]]
    if len(units) != 1:
        raise UsageError(
            f"{path}: needs a header with one of the columns {' and '.join(_UNITS)}, and rows"
        )
    values = []
    for line, row in enumerate(rows, start=2):
        try:
            value = float(row[units[0]])
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value < math.inf:
            raise UsageError(
                f"{path}, line {line}: {row[units[0]]!r} is no load (a number from 0 upwards)"
            )
        values.append(value)
    if not max(values) > 0:
        raise UsageError(f"{path}: every step is 0; there is nothing to carry")
    return Profile(units[0], tuple(values))


def _factor(growth: float) -> float:
    if not -1 < growth < math.inf:
        raise UsageError(f"growth {growth:g}: must be above -1 (20% more is 0.2)")
    return 1 + growth

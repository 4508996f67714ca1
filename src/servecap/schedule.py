"""How the rate of an open loop changes with time, and when its arrivals are therefore due.

Arrivals are made at rate 1 and then moved: the one at place c of that process is due when the
schedule has let c requests through. So a schedule changes the rate and nothing else of a process.

Source:
    Time change of a point process: Çınlar, Introduction to Stochastic Processes (1975), ch. 4.7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class Ramp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="ramp"):
    """The rate goes evenly from the load's own to `to_rps` over `over_s`, and stays there."""

    to_rps: float
    over_s: float


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="steps"):
    """Each of `rates_rps` holds for `each_s`; the last one stays."""

    rates_rps: tuple[float, ...]
    each_s: float


class Day(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="day"):
    """A day of `day_s` cut into equal parts, busy as `weights` say, day after day.

    The load's own rate is the mean over the day.
    """

    weights: tuple[float, ...]
    day_s: float


Schedule = Ramp | Steps | Day


class Piece(msgspec.Struct, frozen=True):
    """A time in which the rate goes evenly from one value to another."""

    length_s: float
    from_rps: float
    to_rps: float

    @property
    def arrivals(self) -> float:
        """How many are expected in all of it."""
        return (self.from_rps + self.to_rps) / 2 * self.length_s

    def arrivals_by(self, t_s: float) -> float:
        """How many are expected until *t_s* after its start."""
        if math.isinf(self.length_s):
            return self.from_rps * t_s
        return (self.from_rps + (self.to_rps - self.from_rps) * t_s / self.length_s / 2) * t_s

    def time_of(self, count: float) -> float:
        """When *count* are expected to have come, in seconds after its start."""
        if math.isinf(self.length_s) or self.from_rps == self.to_rps:
            return count / self.from_rps if count else 0.0
        slope = (self.to_rps - self.from_rps) / self.length_s
        # The stable form of the root of from*t + slope*t^2/2 = count.
        root = math.sqrt(max(0.0, self.from_rps**2 + 2 * slope * count))
        return 2 * count / (self.from_rps + root) if count else 0.0


class Course(msgspec.Struct, frozen=True):
    """The rate over all time: pieces one after another, from the start again where it repeats."""

    pieces: tuple[Piece, ...]
    repeats: bool = False

    def arrivals_by(self, t_s: float) -> float:
        """Arrivals expected until *t_s* seconds after the start."""
        before = 0.0
        if self.repeats:
            days, t_s = divmod(t_s, sum(piece.length_s for piece in self.pieces))
            before = days * sum(piece.arrivals for piece in self.pieces)
        for piece in self.pieces:
            if t_s <= piece.length_s:
                return before + piece.arrivals_by(t_s)
            before += piece.arrivals
            t_s -= piece.length_s
        return before

    def time_of(self, count: float) -> float | None:
        """When *count* arrivals are expected to have come; None: so many never do."""
        before_s = 0.0
        if self.repeats:
            days, count = divmod(count, sum(piece.arrivals for piece in self.pieces))
            before_s = days * sum(piece.length_s for piece in self.pieces)
        for piece in self.pieces:
            most = piece.arrivals if piece.to_rps else piece.arrivals_by(piece.length_s)
            if math.isnan(most):  # no arrivals, for ever
                return None
            if count <= most and (piece.from_rps or piece.to_rps):
                due_s = before_s + min(piece.length_s, piece.time_of(count))
                return due_s if math.isfinite(due_s) else None
            count = max(0.0, count - most)
            before_s += piece.length_s
        return None


def course(rate_rps: float, schedule: Schedule | None) -> Course:
    """The rate over time of a load with that rate and schedule."""
    match schedule:
        case None:
            return Course((Piece(math.inf, rate_rps, rate_rps),))
        case Ramp(to_rps=to_rps, over_s=over_s):
            return Course((Piece(over_s, rate_rps, to_rps), Piece(math.inf, to_rps, to_rps)))
        case Steps(rates_rps=rates, each_s=each_s):
            held = [Piece(each_s, rate, rate) for rate in rates]
            return Course((*held[:-1], Piece(math.inf, rates[-1], rates[-1])))
        case Day(weights=weights, day_s=day_s):
            unit = rate_rps * len(weights) / sum(weights)
            part_s = day_s / len(weights)
            return Course(tuple(Piece(part_s, w * unit, w * unit) for w in weights), repeats=True)


def length_s(schedule: Schedule | None) -> float | None:
    """How long the schedule takes once; None without one."""
    match schedule:
        case None:
            return None
        case Ramp(over_s=over_s):
            return over_s
        case Steps(rates_rps=rates, each_s=each_s):
            return each_s * len(rates)
        case Day(day_s=day_s):
            return day_s


def text(rate_rps: float, schedule: Schedule | None) -> str:
    """The rate and how it changes, in a few words.

    >>> text(5, Ramp(20, 60))
    '5 to 20 requests/s over 60 s'
    """
    match schedule:
        case None:
            return f"{rate_rps:g} requests/s"
        case Ramp(to_rps=to_rps, over_s=over_s):
            return f"{rate_rps:g} to {to_rps:g} requests/s over {over_s:g} s"
        case Steps(rates_rps=rates, each_s=each_s):
            return f"{_listed(rates)} requests/s, {each_s:g} s each"
        case Day(weights=weights, day_s=day_s):
            return (
                f"{rate_rps:g} requests/s on average over a day of {day_s:g} s"
                f" in {len(weights)} parts"
            )


def _listed(rates: Sequence[float]) -> str:
    shown = [f"{rate:g}" for rate in rates]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:4], "...", shown[-1]])

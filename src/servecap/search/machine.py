"""The search as a machine: `ask` names the next load, `tell` takes what was found there.

It measures nothing and reads no clock. Loads are users (whole numbers) or requests/s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from servecap.errors import UsageError
from servecap.search.evidence import Margin
from servecap.search.known import Estimate, Known, Told

CONFIDENCE = 0.95
CHANGED = "UNSURE: the server changed"
_LEAP_MOST = 2.0  # a next load is at most so many times the largest that held
_LEAP_LEAST = 1.25
_ABOVE = 1.25  # times the largest load tried, to find an upper end; later ones leap
_ABOVE_MOST = 7  # levels above the estimate that may be spent on it
_BEYOND = 1.5  # times the largest load tried, once a limit seems broken
_LEVELS_MOST = 40
_WIDE = 6.0  # times the precision: an interval about which little is known
_VAGUE = 2.0  # an interval wider than so many times the estimate is no estimate
_CLOSE = 0.004  # loads nearer than this share to a tried one tell nothing of the slope
_GLANCE = 100  # requests of a level on the way up: a load far over its limits shows in fewer
_MORE_MOST = 4  # a level near the edge takes at most so many times the usual requests
_NEARLY = 1.4  # times the precision: the level at the lower end makes such an interval narrow
_CONFIRMS_MOST = 2  # levels that may be spent on whether a cliff is one
_NAMES_MOST = 4  # levels that may be spent on a load that can be named


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """The next level: its load, the requests it is worth, and why.

    `least_s`: its window tells nothing before it is so long.
    """

    load: float
    requests: int
    why: str
    least_s: float = 0.0


class Search:
    """Finds the load at which the first limit breaks, and measures at the load that it names."""

    def __init__(
        self,
        *,
        start: float,
        most: float,
        precision: float,
        confidence: float = CONFIDENCE,
        requests: int = 250,
        least: int = 60,
        whole: bool = True,
        seed: int = 0,
    ) -> None:
        if not 0 < start <= most:
            raise UsageError(f"--start {start:g} must lie within 1 and the largest load {most:g}")
        if not 0 < precision < 1:
            raise UsageError(f"--precision {precision:g} must lie within 0 and 1 (5% is 0.05)")
        if not 0.5 < confidence < 1:
            raise UsageError(f"--confidence {confidence:g} must lie within 0.5 and 1 (95% is 0.95)")
        self._start = start
        self._most = most
        self._precision = precision
        self._requests = requests
        self._least = least
        self._whole = whole
        self._known = Known(most=most, confidence=confidence, whole=whole, seed=seed)
        self._barred: float | None = None  # from this load on, nothing can be measured
        self._bars = 0  # levels of which nothing was learned
        self._names = 0  # levels that were asked for in order to be named
        self._confirms = 0  # levels that were asked for to see whether a cliff is one
        self.stop_reason = ""

    def tell(self, load: float, margins: Sequence[Margin], requests: int) -> None:
        """The margins found at a load, from that many requests."""
        self._known.add(load, margins, requests)

    def bar(self, load: float) -> None:
        """Nothing can be learned at this load or above it: what was found was not valid."""
        self._barred = load if self._barred is None else min(load, self._barred)
        self._bars += 1

    def estimate(self) -> Estimate | None:
        """What is known of the capacity; None before the first level."""
        return self._known.estimate()

    @property
    def _told(self) -> list[Told]:
        return self._known.told

    def ask(self, *, last: bool = False) -> Ask | None:
        """The next level; None when the interval is narrow enough or no level would help.

        Args:
            last: there is no time for another one after it, so it is one that can be named.
        """
        if len(self._told) + self._bars >= _LEVELS_MOST:
            return self._stop(f"{_LEVELS_MOST} levels did not narrow it further")
        estimate = self.estimate()
        if estimate is None:
            return self._at(self._start, self._least, "the first level")
        if not any(t.broken for t in self._told):
            return self._widen()
        width = self._width(estimate)
        if last or (width is not None and width <= _NEARLY * self._allowed(estimate)):
            named = self._to_name(estimate)
            if named is not None:
                return named
        if self._narrow(estimate):
            again = self._to_confirm()
            if again is not None:
                return again
            wanted = f"{self._precision * 100:.3g}%"
            return self._stop(f"the interval is within {wanted} of the capacity")
        return self._refine(estimate)

    def _to_name(self, estimate: Estimate) -> Ask | None:
        """The interval's lower end, where no load that can be named is close enough to it."""
        load = self._rounded(math.floor(estimate.low) if self._whole else estimate.low)
        least = 1.0 if self._whole else 0.0
        near = max(least, _CLOSE * load)
        if self._names >= _NAMES_MOST or load <= 0:
            return None
        if estimate.named is not None and estimate.named >= load - self._allowed(estimate) / 4:
            return None
        while self._same(load):  # it was tried, and cannot be named
            load = self._rounded(load - near)
        if load <= 0 or (estimate.named is not None and load <= estimate.named):
            return None
        self._names += 1
        return self._at(load, self._requests, "the number that can be promised, measured itself")

    def _to_confirm(self) -> Ask | None:
        """A level that tells a cliff from a server that changed; None where nothing looks so."""
        found = self._known.blind_spot() if self._confirms < _CONFIRMS_MOST else None
        if found is None:
            return None
        self._confirms += 1
        load, broken = found
        while self._same(load):
            load += max(1.0, _CLOSE * load) * (1 if broken else -1)
        if not 0 < load <= self._most or self._tried(load):
            return None
        return self._at(load, self._least, "is it a cliff, or did the server change meanwhile?")

    def _stop(self, why: str) -> Ask | None:
        self.stop_reason = why
        return None

    def _at(self, load: float, requests: int, why: str) -> Ask:
        return Ask(load=float(round(load)) if self._whole else load, requests=requests, why=why)

    def _few(self) -> int:
        """Requests of a level that only has to tell on which side it lies."""
        return max(self._least, self._requests // 2)

    def _widen(self) -> Ask | None:
        top = max(self._told, key=lambda t: t.load)
        if top.load >= self._most:
            return self._stop(f"no load up to the largest allowed ({self._most:g}) broke a limit")
        ceiling = self._most if self._barred is None else min(self._most, self._barred)
        guess = self._extrapolated(top)
        load = min(max(guess, top.load * _LEAP_LEAST), top.load * _LEAP_MOST, ceiling)
        if self._whole:
            load = max(self._rounded(load), top.load + 1)  # as it will be asked, and may be barred
        if self._barred is not None and load >= self._barred:
            load = math.sqrt(top.load * self._barred)
            if self._tried(load) or load / top.load < 1 + self._precision:
                return self._stop("all held but what cannot be measured")
        why = f"nothing is broken at {top.load:g}: on by the slope"
        return self._at(load, min(self._least, _GLANCE), why)

    def _extrapolated(self, top: Told) -> float:
        """Where the line through the two largest levels meets the first limit."""
        below = [t for t in self._told if t.load < top.load]
        if not below:
            worst = max((_share(m) for m in top.margins), default=1.0)
            return top.load * (4.0 if worst < 0.25 else 2.0)
        last = max(below, key=lambda t: t.load)
        guesses = [
            guess
            for m in top.margins
            for b in last.margins
            if b.limit == m.limit
            and (guess := _meets(last.load, _share(b), top.load, _share(m))) is not None
        ]
        return min(guesses, default=top.load * 4.0)

    def _above(self, estimate: Estimate) -> Ask | None:
        """A larger load, where a limit seems broken but nothing bounds the capacity from above.

        Levels below the edge cannot give it an upper end, however many there are; nor is one far
        beyond all that was tried an end.
        """
        top = max(t.load for t in self._told)
        first = min(t.load for t in self._told if t.broken)
        tried = sum(t.load > first for t in self._told)
        load = min(self._most, top * (_ABOVE if tried < 2 else _LEAP_MOST))
        bounded = estimate.high is not None and estimate.high <= _BEYOND * top
        if bounded or tried > _ABOVE_MOST or self._tried(load):
            return None
        return self._at(
            load, self._few(), f"a limit seems broken at {top:g}: one above, to be sure"
        )

    def _refine(self, estimate: Estimate) -> Ask | None:
        above = self._above(estimate)
        if above is not None:
            return above
        high = estimate.high if estimate.high is not None else self._most
        width = (high - estimate.low) / max(estimate.best, 1e-9)
        inside = sum(estimate.low <= t.load <= high for t in self._told)
        requests = self._few() if inside < 2 else self._worth(estimate, width)
        # While little is known a level below the edge is cheaper than one above it.
        shares = (0.5, 0.35, 0.65, 0.25, 0.75, 0.1, 0.9, 0.0, 1.0)
        for share in (0.35, *shares) if width > _WIDE * self._precision else shares:
            load = self._quantile(share)
            if self._whole:
                load = max(1.0, float(round(load)))
            if not self._tried(load) and load <= self._most:
                why = f"the capacity lies within {_said(estimate.low)} and {_said(high)}"
                return self._at(load, requests, why)
        for load in (math.floor(estimate.low), math.ceil(high) + 1):
            if self._whole and 1 <= load <= self._most and not self._tried(load):
                return self._at(load, requests, "the interval's own ends")
        return self._stop("every level within the interval has been measured")

    def _worth(self, estimate: Estimate, width: float) -> int:
        """Requests that should bring the interval to the precision asked for.

        Its width falls with the root of the requests near the edge, once it is noise that makes it.
        """
        have = self._near(estimate)
        wanted = have * ((1.2 * width / self._precision) ** 2 - 1)
        return int(min(max(wanted, self._requests), _MORE_MOST * self._requests))

    def _tried(self, load: float) -> bool:
        if self._barred is not None and self._rounded(load) >= self._barred:
            return True
        return self._same(load)

    def _same(self, load: float) -> bool:
        """Whether a load so close was tried that this one would tell no more."""
        near = max(0.5, _CLOSE * load) if self._whole else _CLOSE * load
        return any(abs(t.load - self._rounded(load)) < near for t in self._told)

    def _rounded(self, load: float) -> float:
        return float(round(load)) if self._whole else load

    def _allowed(self, estimate: Estimate) -> float:
        allowed = self._precision * estimate.best
        return max(1.0, allowed) if self._whole else allowed

    def _width(self, estimate: Estimate) -> float | None:
        return None if estimate.high is None else estimate.high - estimate.low

    def _narrow(self, estimate: Estimate) -> bool:
        width, allowed = self._width(estimate), self._allowed(estimate)
        if width is None or width > allowed:
            return False
        loads = [t.load for t in self._told]
        return min(loads) <= estimate.best + allowed and max(loads) >= estimate.best - allowed

    def _near(self, estimate: Estimate) -> int:
        return self._known.requests_near(estimate) or self._few()

    def _quantile(self, share: float) -> float:
        found = self._known.quantile(share)
        # Where a limit seems broken already, a far larger load would cost much and tell little.
        return min(found, self._most, _BEYOND * max(t.load for t in self._told))

    def _moved(self) -> str | None:
        """That the server changed between levels of about the same load, where it surely did."""
        for limit in self._known.limits:
            found = self._known.change(limit)
            if found is not None and found.sure:
                way = "worse" if found.gained > 0 else "better"
                return (
                    f"{CHANGED} during the search: at the same load {limit} came "
                    f"out {way} in late levels than in early ones ({abs(found.gained):.2g} on the "
                    f"scale of the margins, {abs(found.gained) / found.error:.1f} standard errors)"
                    "; wait until it is warm and nobody else uses it, and search again"
                )
        return None

    def unsure(self) -> str | None:
        """Why the interval is wider than asked for, and what would narrow it; None if it is not."""
        estimate = self.estimate()
        if estimate is None:
            return "no level was measured"
        if estimate.high is None:
            return "no upper end was found"
        if (moved := self._moved()) is not None:
            return moved
        if self._narrow(estimate):
            return None
        if estimate.high - estimate.low > _VAGUE * estimate.best:
            # Levels are missing, not requests: no count of these could be believed.
            return (
                f"UNSURE: all that is known is that the capacity lies within "
                f"{_said(estimate.low)} and {_said(estimate.high)}; more levels are needed"
            )
        width = (estimate.high - estimate.low) / estimate.best
        have = self._near(estimate)
        more = have * ((width / self._precision) ** 2 - 1)
        return (
            f"UNSURE: the interval is {width:.0%} wide instead of {self._precision:.0%}; about "
            f"{max(more, self._requests):,.0f} more requests near the edge would narrow it"
        )


def _share(margin: Margin) -> float:
    """How much of the limit is used up; a normal score is taken on the same scale."""
    return math.exp(min(margin.value, 50.0))


def _meets(load: float, used: float, next_load: float, next_used: float) -> float | None:
    """Where the line through both points reaches 1, the limit; None if it never does."""
    slope = (next_used - used) / (next_load - load)
    return next_load + (1 - next_used) / slope if slope > 0 else None


def _said(load: float) -> str:
    return f"{load:,.4g}" if load < 10 else f"{load:,.0f}"

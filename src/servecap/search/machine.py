"""The search as a machine: `ask` names the next load, `tell` takes what was found there.

It measures nothing and reads no clock. Loads are users (whole numbers) or requests/s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from servecap import stats
from servecap.errors import UsageError
from servecap.search import curve
from servecap.search.evidence import Margin, proven

Ints = npt.NDArray[np.intp]

CONFIDENCE = 0.95
_PATHS = 1000
_GRID = 81
# The search stops when the interval is narrow, so it stops rather on one that came out too narrow.
_STRICTER = 2.5  # of the tails; bench/find holds the outcome against the confidence asked for
_RISK = 2e-4  # of taking a level to be on one side of the edge for good
_NEIGHBOURS = 3  # levels outside the bracket, on each side, that still bend the curve
_LEAP_MOST = 4.0  # a next load is at most so many times the largest that held
_LEAP_LEAST = 1.25
_ABOVE = 1.25  # times the largest load tried, to find an upper end
_ABOVE_MOST = 3  # levels above the estimate that may be spent on it
_BEYOND = 1.5  # times the largest load tried, once a limit seems broken
_LEVELS_MOST = 40
_WIDE = 6.0  # times the precision: an interval about which little is known
_CLOSE = 0.004  # loads nearer than this share to a tried one tell nothing of the slope
_MORE_MOST = 4  # a level near the edge takes at most so many times the usual requests


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """The next level: its load, the requests it is worth, and why."""

    load: float
    requests: int
    why: str


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The largest load that holds: an interval at a confidence, and what limits.

    `high` None: no upper end is known. `limited_by` is the limit that is likeliest to break
    first, with `limited_share` the chance that it is.
    """

    low: float
    best: float
    high: float | None
    confidence: float
    limited_by: str | None = None
    limited_share: float | None = None

    @property
    def width_share(self) -> float | None:
        """Width of the interval as a share of the best estimate."""
        if self.high is None or self.best <= 0:
            return None
        return (self.high - self.low) / self.best


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    load: float
    requests: int
    margins: tuple[Margin, ...]


class Search:
    """Finds the load at which the first limit breaks.

    Holding is taken to be monotone in the load and the margins to be smooth in its logarithm;
    a jump is found like a steep slope, by ever closer levels.
    """

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
        self._confidence = confidence
        self._requests = requests
        self._least = least
        self._whole = whole
        self._seed = seed
        self._told: list[_Told] = []
        self._edges: tuple[stats.Floats, Ints, list[str]] | None = None  # of what is told so far
        self._barred: float | None = None  # from this load on, nothing can be measured
        self.stop_reason = ""

    # -- what is told ---------------------------------------------------------------------

    def tell(self, load: float, margins: Sequence[Margin], requests: int) -> None:
        """The margins found at a load, from that many requests."""
        self._told.append(_Told(load=load, requests=requests, margins=tuple(margins)))
        self._edges = None

    def bar(self, load: float) -> None:
        """Nothing can be learned at this load or above it: what was found was not valid."""
        self._barred = load if self._barred is None else min(load, self._barred)

    # -- what is asked --------------------------------------------------------------------

    def ask(self) -> Ask | None:
        """The next level; None when the interval is narrow enough or no level would help."""
        if len(self._told) >= _LEVELS_MOST:
            return self._stop(f"{_LEVELS_MOST} levels did not narrow it further")
        if not self._told:
            return self._at(self._start, self._least, "the first level")
        if not any(self._broken(t) for t in self._told):
            return self._widen()
        estimate = self.estimate()
        assert estimate is not None
        if self._narrow(estimate):
            return self._stop(f"the interval is within {self._precision:.3g} of the capacity")
        return self._refine(estimate)

    def _stop(self, why: str) -> Ask | None:
        self.stop_reason = why
        return None

    def _at(self, load: float, requests: int, why: str) -> Ask:
        return Ask(load=float(round(load)) if self._whole else load, requests=requests, why=why)

    def _few(self) -> int:
        """Requests of a level that only has to tell on which side it lies."""
        return max(self._least, self._requests // 2)

    @staticmethod
    def _broken(told: _Told) -> bool:
        return any(m.value > 0 for m in told.margins)

    def _widen(self) -> Ask | None:
        top = max(self._told, key=lambda t: t.load)
        if top.load >= self._most:
            return self._stop(f"no load up to the largest allowed ({self._most:g}) broke a limit")
        ceiling = self._most if self._barred is None else min(self._most, self._barred)
        guess = self._extrapolated(top)
        load = min(max(guess, top.load * _LEAP_LEAST), top.load * _LEAP_MOST, ceiling)
        if self._whole:
            load = max(load, top.load + 1)
        if self._barred is not None and load >= self._barred:
            load = math.sqrt(top.load * self._barred)
            if self._tried(load) or load / top.load < 1 + self._precision:
                return self._stop(f"{self._barred:g} cannot be measured, and below it all held")
        return self._at(load, self._least, f"nothing is broken at {top.load:g}: on by the slope")

    def _extrapolated(self, top: _Told) -> float:
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

        Levels below the edge cannot give it an upper end, however many there are.
        """
        top = max(t.load for t in self._told)
        load = min(self._most, top * _ABOVE)
        tried = sum(t.load > estimate.best for t in self._told)
        if estimate.high is not None or tried > _ABOVE_MOST or self._tried(load):
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
        if self._barred is not None and load >= self._barred:
            return True
        if self._whole:
            near = max(0.5, _CLOSE * load)
            return any(abs(t.load - round(load)) < near for t in self._told)
        return any(abs(t.load - load) < _CLOSE * load for t in self._told)

    def _narrow(self, estimate: Estimate) -> bool:
        if estimate.high is None:
            return False
        allowed = self._precision * estimate.best
        if self._whole:
            allowed = max(1.0, allowed)
        if estimate.high - estimate.low > allowed:
            return False
        reach = max(allowed, 1.0 if self._whole else 0.0)
        loads = [t.load for t in self._told]
        return min(loads) <= estimate.best + reach and max(loads) >= estimate.best - reach

    # -- what is known --------------------------------------------------------------------

    def estimate(self) -> Estimate | None:
        """What is known of the capacity; None before the first level."""
        if not self._told:
            return None
        edges, limit, names = self._sampled()
        tail = (1 - self._confidence) / 2 / _STRICTER
        low = _rank(edges, tail, up=False)
        high = _rank(edges, 1 - tail, up=True)
        best = _rank(edges, 0.5, up=False)
        low, best, high = min(low, self._most), min(best, self._most), min(high, self._most)
        if self._whole:
            low, best, high = math.floor(low), math.floor(best), math.floor(high)
        top = max(t.load for t in self._told)
        counts = np.bincount(limit[np.isfinite(edges)], minlength=len(names))
        name = names[int(counts.argmax())] if counts.sum() else None
        if not any(self._broken(t) for t in self._told):
            high, low, best, name = self._most, min(low, top), min(best, top), None
        return Estimate(
            low=float(low),
            best=float(best),
            high=None if high >= self._most else float(high),
            confidence=self._confidence,
            limited_by=name,
            limited_share=None if name is None else float(counts.max() / counts.sum()),
        )

    def unsure(self) -> str | None:
        """Why the interval is wider than asked for, and what would narrow it; None if it is not."""
        estimate = self.estimate()
        if estimate is None:
            return "no level was measured"
        if estimate.high is None:
            return "no upper end was found"
        if self._narrow(estimate):
            return None
        width = (estimate.high - estimate.low) / max(estimate.best, 1e-9)
        have = self._near(estimate)
        more = have * ((width / self._precision) ** 2 - 1)
        return (
            f"UNSURE: the interval is {width:.0%} wide instead of {self._precision:.0%}; about "
            f"{max(more, self._requests):,.0f} more requests near the edge would narrow it"
        )

    def _near(self, estimate: Estimate) -> int:
        """Requests measured so far near the edge."""
        high = estimate.high if estimate.high is not None else estimate.best
        near = [t.requests for t in self._told if estimate.low * 0.9 <= t.load <= high * 1.1]
        return sum(near) or self._few()

    def _quantile(self, share: float) -> float:
        edges, _, _ = self._sampled()
        found = _rank(edges, min(max(share, 0.005), 0.995), up=False)
        # Where a limit seems broken already, a far larger load would cost much and tell little.
        return min(found, self._most, _BEYOND * max(t.load for t in self._told))

    def _sampled(self) -> tuple[stats.Floats, Ints, list[str]]:
        """Likely loads at which the first limit breaks, and which limit that is."""
        if self._edges is None:
            self._edges = self._sample()
        return self._edges

    def _sample(self) -> tuple[stats.Floats, Ints, list[str]]:
        rng = np.random.default_rng([self._seed, len(self._told)])
        low, high, held = self._bracket()
        loads = np.exp(np.linspace(math.log(low), math.log(high), _GRID))
        names = list(dict.fromkeys(m.limit for t in self._told for m in t.margins))
        edges = np.full((max(1, len(names)), _PATHS), np.inf)
        for row, name in enumerate(names):
            told = self._points(name, low, high)
            if told is not None:
                curves = curve.monotone(curve.paths(told, np.log(loads), _PATHS, rng))
                edges[row] = rng.permutation(curve.crossings(curves, loads))  # independent
        first = edges.min(axis=0)
        if held:
            first = np.maximum(first, low)
        return first, edges.argmin(axis=0), names

    def _bracket(self) -> tuple[float, float, bool]:
        """Loads between which the edge surely lies; whether the lower one was proven to hold."""
        floor = 1.0 if self._whole else min(t.load for t in self._told) / 100
        names = {m.limit for t in self._told for m in t.margins}
        held = [self._proven(name, broken=False) for name in names]
        over = [self._proven(name, broken=True) for name in names]
        proofs = [x for x in held if x is not None]
        low = min(proofs) if proofs and len(proofs) == len(held) else floor
        high = min((x for x in over if x is not None), default=self._most)
        if low >= high:  # noise, or a server that is not monotone: believe neither proof
            tried = [t.load for t in self._told if self._broken(t)]
            return floor, max(tried, default=self._most), False
        return low, max(high, low * 1.001), len(proofs) == len(held)

    def _proven(self, name: str, *, broken: bool) -> float | None:
        """The load nearest to the edge at which the limit is surely kept (or broken).

        A level stands for all smaller ones when it keeps the limit, so levels from it on may be
        pooled: none of them is better than it.
        """
        seen = sorted(
            ((t.load, m) for t in self._told for m in t.margins if m.limit == name),
            key=lambda pair: pair[0],
            reverse=broken,
        )
        for start in reversed(range(len(seen))):
            pooled = [m for _, m in seen[start:]]
            ends = range(len(pooled), 0, -1)
            if any(proven(pooled[:end], broken=broken, risk=_RISK) for end in ends):
                return seen[start][0]
        return None

    def _points(self, name: str, low: float, high: float) -> curve.Points | None:
        """The limit's points in the bracket and a few around it; None if it was never near."""
        seen = sorted(
            ((t.load, m) for t in self._told for m in t.margins if m.limit == name),
            key=lambda pair: pair[0],
        )
        if all(m.broken == 0 for _, m in seen):
            return None
        below = [p for p in seen if p[0] < low][-_NEIGHBOURS:]
        above = [p for p in seen if p[0] > high][:_NEIGHBOURS]
        used = [*below, *(p for p in seen if low <= p[0] <= high), *above]
        return curve.points([load for load, _ in used], [m for _, m in used])


def _rank(values: stats.Floats, share: float, *, up: bool) -> float:
    """The order statistic at *share* that errs outwards."""
    ordered = np.sort(values)
    at = share * (len(ordered) - 1)
    return float(ordered[math.ceil(at) if up else math.floor(at)])


def _share(margin: Margin) -> float:
    """How much of the limit is used up; a normal score is taken on the same scale."""
    return math.exp(min(margin.value, 50.0))


def _meets(load: float, used: float, next_load: float, next_used: float) -> float | None:
    """Where the line through both points reaches 1, the limit; None if it never does."""
    slope = (next_used - used) / (next_load - load)
    return next_load + (1 - next_used) / slope if slope > 0 else None


def _said(load: float) -> str:
    return f"{load:,.4g}" if load < 10 else f"{load:,.0f}"

"""What all levels together tell of the edge: where the first limit breaks, and how surely."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from servecap import stats
from servecap.search import curve
from servecap.search.change import Change, blind_spot, change
from servecap.search.evidence import Margin, proven, silent
from servecap.search.pooled import pooled, typical

Ints = npt.NDArray[np.intp]
Shared = Callable[[Sequence[float], Sequence[Margin]], list[Margin]]

_PATHS = 1000
_GRID = 81
# The search stops when the interval is narrow, so it stops rather on one that came out too narrow.
_STRICTER = 2.0  # of the tails; bench/find holds the outcome against the confidence asked for
_RISK = 2e-4  # of taking a level to be on one side of the edge for good
_FEW = 50  # of the paths: with less of them within what is proven, they tell nothing of it
_NEIGHBOURS = 3  # levels outside the bracket, on each side, that still bend the curve


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The largest load that holds: an interval at a confidence, and what limits.

    `high` None: no upper end is known. `limited_by` is the limit that is likeliest to break
    first, with `limited_share` the chance that it is. `named` is the largest load, of those that
    were measured, that can be promised: its own figures keep the limits.
    """

    low: float
    best: float
    high: float | None
    confidence: float
    limited_by: str | None = None
    limited_share: float | None = None
    named: float | None = None

    @property
    def width_share(self) -> float | None:
        """Width of the interval as a share of the best estimate."""
        if self.high is None or self.best <= 0:
            return None
        return (self.high - self.low) / self.best


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What one level told."""

    load: float
    requests: int
    margins: tuple[Margin, ...]
    growing: bool = False  # the queue, without bound: nothing holds for long

    @property
    def broken(self) -> bool:
        """Whether a limit seems broken, by however little."""
        return self.growing or any(m.value > 0 for m in self.margins)

    @property
    def kept(self) -> bool:
        """Whether the figures keep every limit, as they stand."""
        return bool(self.margins) and not self.growing and all(m.kept for m in self.margins)

    def surely_kept(self, risk: float) -> bool:
        """Whether this level by itself proves that every limit is kept."""
        return self.kept and all(proven([m], broken=False, risk=risk) for m in self.margins)


class Known:
    """The levels so far, and the curves through them.

    Holding is taken to be monotone in the load and the margins to be smooth in its logarithm;
    a jump is found like a steep slope, by ever closer levels.
    """

    def __init__(self, *, most: float, confidence: float, whole: bool, seed: int) -> None:
        self.most = most
        self.confidence = confidence
        self.whole = whole
        self.told: list[Told] = []
        self._seed = seed
        self._shared: Shared = pooled  # what levels near each other tell of their errors
        self._edges: tuple[stats.Floats, Ints, list[str]] | None = None  # of what is told so far

    def add(self, load: float, margins: Sequence[Margin], requests: int) -> None:
        """The margins found at a load, from that many requests."""
        self.told.append(Told(load=load, requests=requests, margins=tuple(margins)))
        self._edges = None

    def estimate(self) -> Estimate | None:
        """What is known of the capacity; None before the first level."""
        if not self.told:
            return None
        edges, limit, names = self._sampled()
        tail = (1 - self.confidence) / 2 / _STRICTER
        ends = (
            _rank(edges, tail, up=False),
            _rank(edges, 0.5, up=False),
            _rank(edges, 1 - tail, up=True),
        )
        low, best, high = (self._rounded(min(x, self.most)) for x in ends)
        top = max(t.load for t in self.told)
        counts = np.bincount(limit[np.isfinite(edges)], minlength=len(names))
        name = names[int(counts.argmax())] if counts.sum() else None
        if not any(t.broken for t in self.told):
            high, low, best, name = self.most, min(low, top), min(best, top), None
        return Estimate(
            low=float(low),
            best=float(best),
            high=None if high >= self.most else float(high),
            confidence=self.confidence,
            limited_by=name,
            limited_share=None if name is None else float(counts.max() / counts.sum()),
            named=self._named(),
        )

    def _named(self) -> float | None:
        """The largest load at which the limits were seen to be kept, and that surely holds.

        Surely: at the confidence asked for, without the margin that the interval's ends have; or
        by its own figures, where no limit seems broken anywhere.
        """
        edges, _, _ = self._sampled()
        risk = (1 - self.confidence) / 2
        sure = self._rounded(_rank(edges, risk, up=False))
        good = {t.load: t for t in self.told}
        found = [x for x, t in good.items() if t.kept and x <= sure]
        if not any(t.broken for t in self.told):
            found += [x for x, t in good.items() if t.surely_kept(2 * risk)]
        return max(found, default=None)

    def _rounded(self, load: float) -> float:
        return float(math.floor(load)) if self.whole and math.isfinite(load) else load

    def quantile(self, share: float) -> float:
        """The load that the edge lies below with that probability."""
        edges, _, _ = self._sampled()
        return _rank(edges, min(max(share, 0.005), 0.995), up=False)

    def requests_near(self, estimate: Estimate) -> int:
        """Requests measured so far near the edge."""
        high = estimate.high if estimate.high is not None else estimate.best
        near = [t.requests for t in self.told if estimate.low * 0.9 <= t.load <= high * 1.1]
        return sum(near)

    @property
    def limits(self) -> list[str]:
        """The limits that any level told of."""
        return list(dict.fromkeys(m.limit for t in self.told for m in t.margins))

    def change(self, limit: str) -> Change | None:
        """How that limit's margin moved during the search; None where that cannot be told."""
        low, high, _, _ = self._bracket()
        told, near = self._points(limit, shared=typical), self._points(limit, low, high)
        return None if told is None or near is None else change(told, near)

    def blind_spot(self) -> tuple[float, bool] | None:
        """A level that a later one should be held against, see `change.blind_spot`."""
        for limit in self.limits:
            told = self._points(limit, shared=typical)
            if told is not None and (found := blind_spot(told)) is not None:
                return found
        return None

    def _sampled(self) -> tuple[stats.Floats, Ints, list[str]]:
        """Likely loads at which the first limit breaks, and which limit that is."""
        if self._edges is None:
            self._edges = self._sample()
        return self._edges

    def _sample(self) -> tuple[stats.Floats, Ints, list[str]]:
        rng = np.random.default_rng([self._seed, len(self.told)])
        low, high, held, over = self._bracket()
        loads = np.exp(np.linspace(math.log(low), math.log(high), _GRID))
        names = self.limits
        edges = np.full((max(1, len(names)), _PATHS), np.inf)
        for row, name in enumerate(names):
            told = self._points(name, low, high)
            if told is not None:
                curves = curve.rising(told, np.log(loads), _PATHS, rng)
                edges[row] = rng.permutation(curve.crossings(curves, loads))  # independent
        first = edges.min(axis=0)
        first = _within(first, low if held else 0.0, high if over else math.inf, rng)
        return first, edges.argmin(axis=0), names

    def _bracket(self) -> tuple[float, float, bool, bool]:
        """Loads between which the edge surely lies; whether each of the two was proven."""
        floor = self._floor()
        names = self.limits
        held = [self._proven(name, broken=False) for name in names]
        over = [self._proven(name, broken=True) for name in names]
        proofs = [x for x in held if x is not None]
        low = min(proofs) if proofs and len(proofs) == len(held) else floor
        high = min((x for x in over if x is not None), default=self.most)
        if low >= high:  # noise, or a server that is not monotone: believe neither proof
            tried = [t.load for t in self.told if t.broken]
            return floor, max(tried, default=self.most), False, False
        surely = any(x is not None for x in over)
        return low, max(high, low * 1.001), len(proofs) == len(held), surely

    def _floor(self) -> float:
        """The smallest load that a search tries."""
        return 1.0 if self.whole else min(t.load for t in self.told) / 100

    def _proven(self, name: str, *, broken: bool) -> float | None:
        """The load nearest to the edge at which the limit is surely kept (or broken).

        A level stands for all smaller ones when it keeps the limit, so levels from it on may be
        pooled: none of them is better than it.
        """
        seen = self._seen(name)
        if broken:
            seen.reverse()
        for start in reversed(range(len(seen))):
            together = [m for _, m, _ in seen[start:]]
            ends = range(len(together), 0, -1)
            if any(proven(together[:end], broken=broken, risk=_RISK) for end in ends):
                return seen[start][0]
        return None

    def _seen(self, name: str) -> list[tuple[float, Margin, int]]:
        """The limit's margins by load; with it, and with their place in the order of levels."""
        found = [
            (t.load, m, order)
            for order, t in enumerate(self.told)
            for m in t.margins
            if m.limit == name
        ]
        return sorted(found, key=lambda seen: seen[0])

    def _points(
        self,
        name: str,
        low: float = 0.0,
        high: float = math.inf,
        *,
        shared: Shared | None = None,
    ) -> curve.Points | None:
        """The limit's points in the bracket and a few around it; None if it was never near."""
        seen = self._seen(name)
        if all(silent(m) for _, m, _ in seen):
            return None
        below = [p for p in seen if p[0] < low][-_NEIGHBOURS:]
        above = [p for p in seen if p[0] > high][:_NEIGHBOURS]
        used = [*below, *(p for p in seen if low <= p[0] <= high), *above]
        loads, margins = [load for load, _, _ in used], [m for _, m, _ in used]
        together = (shared or self._shared)(loads, margins)
        return curve.points(loads, together, [order for _, _, order in used])


def _within(edges: stats.Floats, low: float, high: float, rng: np.random.Generator) -> stats.Floats:
    """The edges within what is proven, and for each of the others one that is as likely as those.

    Where next to none lie there the proof alone is believed, and each place within it is as likely.
    """
    good = (low <= edges) & (edges <= high)
    if good.all():
        return edges
    found = edges.copy()
    count = int((~good).sum())
    if good.sum() >= _FEW:
        found[~good] = rng.choice(edges[good], count)
    elif low > 0 and math.isfinite(high):
        found = np.exp(rng.uniform(math.log(low), math.log(high), len(edges)))
    else:
        found = np.clip(edges, low, high)
    return found


def _rank(values: stats.Floats, share: float, *, up: bool) -> float:
    """The order statistic at *share* that errs outwards."""
    ordered = np.sort(values)
    at = share * (len(ordered) - 1)
    return float(ordered[math.ceil(at) if up else math.floor(at)])

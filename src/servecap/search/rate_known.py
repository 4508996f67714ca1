"""What levels of an open loop tell together: where a limit breaks, or the queue grows for ever."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from servecap import stats
from servecap.metrics import Flow
from servecap.search import curve
from servecap.search.evidence import ERROR_RATE, Margin, Mean, at_least, silent
from servecap.search.known import Ints, Known, Told
from servecap.search.pooled import pooled
from servecap.search.saturation import Service, service_of

SATURATION = "saturation"  # the limit that no SLO names
_PATHS = 1000
_PARTS = 10  # rates of answers that are tried for the curves
_GRID = 81
_NEAR = 0.999  # of the rate of answers: no curve goes further
_SURELY = 3.7  # standard errors: a risk of 2 in 10,000, as for the proofs of the limits
_BESIDE = 0.1  # of the logarithm of the rate: queues at rates so near scatter alike
_LEAST_WORTH = 1.0  # independent looks that a window must hold to tell anything


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One level as it was measured."""

    load: float
    requests: int
    margins: tuple[Margin, ...]
    flow: Flow | None
    window_s: float
    response_s: float = 0.0  # mean, of the answers
    stationary: bool = True


class RateKnown(Known):
    """Levels at several rates, each worth what its window can tell of a queue.

    A margin over the logarithm of rate / (1 - rate / rate of answers) is nearly a straight line:
    waits in heavy traffic are proportional to 1 / (1 - rho). So curves are drawn over that, for
    likely rates of answers, and end there at the latest.

    Source:
        Kingman, The single server queue in heavy traffic, Proc. Camb. Phil. Soc. 57 (1961).
    """

    def __init__(
        self,
        *,
        smallest: float,
        most: float,
        confidence: float,
        arrivals_cv2: float,
        holds: float,
        seed: int,
    ) -> None:
        """
        Args:
            holds: correlation times that a window must hold to show that a rate is carried.
        """
        super().__init__(most=most, confidence=confidence, whole=False, seed=seed)
        self._shared = _as_seen
        self.heard: list[Heard] = []
        self.service: Service | None = None
        self._smallest = smallest
        self._cv2 = arrivals_cv2
        self.holds = holds

    def hear(self, level: Heard) -> None:
        """One more level; what the others tell is weighed again by what it shows."""
        self.heard.append(level)
        flows = [h.flow for h in self.heard if h.flow is not None]
        self.service = service_of(flows, self._cv2)
        self.told = [self._weighed(h) for h in self.heard]
        self._edges = None

    def long_enough(self, level: Heard) -> bool:
        """Whether its window is long enough to show that its rate is carried for good."""
        settled = level.flow is not None and level.flow.state == "settled" and level.stationary
        return settled and level.window_s >= self.holds * self._correlation_s(level.load)

    def response_s(self, rate_rps: float) -> float:
        """The mean response at the level nearest to that rate; 0 before the first one."""
        near = min(self.heard, key=lambda h: abs(h.load - rate_rps), default=None)
        return 0.0 if near is None else near.response_s

    def _correlation_s(self, rate_rps: float) -> float:
        return 0.0 if self.service is None else self.service.correlation_s(rate_rps)

    def _weighed(self, level: Heard) -> Told:
        """What the level tells: all of it only where its queue had time to show itself.

        A queue that grows, or may, breaks at least what it has broken already; that it kept other
        limits until then means nothing.
        """
        growing = level.flow is not None and level.flow.state == "growing"
        settled = level.flow is not None and level.flow.state == "settled" and level.stationary
        found: Sequence[Margin] = level.margins
        if not settled:
            found = [at_least(m) for m in found if m.value > 0]
        else:
            memory_s = 2 * self._correlation_s(level.load)
            worth = level.window_s / memory_s if memory_s > 0 else math.inf
            found = [] if worth < _LEAST_WORTH else found
            found = [self._discounted(m, worth) for m in found]
        return Told(load=level.load, requests=level.requests, margins=tuple(found), growing=growing)

    def _discounted(self, margin: Margin, worth: float) -> Margin:
        if worth == math.inf or (margin.limit == ERROR_RATE and silent(margin)):
            return margin  # that no request failed has nothing to do with waves of a queue
        if isinstance(margin, Mean):
            spread = max(margin.spread, self._waiting_share(margin))
            margin = msgspec.structs.replace(margin, spread=spread)
        return margin.worth_at_most(worth)

    def _waiting_share(self, margin: Margin) -> float:
        """How much of a mean is above what it is at the smallest rate: what comes of the queue.

        That part scatters as much as its mean, like a wait in heavy traffic, however little of
        that one window has seen.
        """
        least = min(self.heard, key=lambda h: h.load)
        idle = next((m.value for m in least.margins if m.limit == margin.limit), margin.value)
        return max(0.0, 1 - math.exp(idle - margin.value))

    def _seen(self, name: str) -> list[tuple[float, Margin, int]]:
        """Also for the proofs each has the error that all levels at rates near it let expect.

        A window that saw few bursts of waiting comes out low and thinks itself exact: weighed by
        its own error it would count for more than those that saw too many of them.
        """
        seen = super()._seen(name)
        margins = pooled([load for load, _, _ in seen], [m for _, m, _ in seen], alike=_BESIDE)
        return [(load, m, order) for (load, _, order), m in zip(seen, margins, strict=True)]

    def _floor(self) -> float:
        return min(self._smallest, *(t.load for t in self.told))

    def _bracket(self) -> tuple[float, float, bool, bool]:
        low, high, held, over = super()._bracket()
        service = self.service
        if service is None or service.rate_rps is None:
            return low, high, held, over
        top = service.rate_rps * math.exp(_SURELY * service.error)
        if low >= top:  # carried at more than it answers: believe neither
            return self._floor(), min(max(high, top), self.most), False, False
        return low, min(high, top), held, over or top < self.most

    def _named(self) -> float | None:
        """As for users, of the levels that were long enough to be promised."""
        edges, _, _ = self._sampled()
        sure = _lower(edges, (1 - self.confidence) / 2)
        good = [
            t
            for h, t in zip(self.heard, self.told, strict=True)
            if t.kept and t.margins and self.long_enough(h)
        ]
        found = [t.load for t in good if t.load <= sure]
        if not any(t.broken for t in self.told):
            found += [t.load for t in good if t.surely_kept(1 - self.confidence)]
        return max(found, default=None)

    def _sample(self) -> tuple[stats.Floats, Ints, list[str]]:
        rng = np.random.default_rng([self._seed, len(self.told)])
        low, high, held, over = self._bracket()
        names = list(dict.fromkeys(m.limit for t in self.told for m in t.margins))
        edges = np.full((len(names) + 1, _PATHS), np.inf)
        edges[-1] = self._rates(rng)
        for part in np.array_split(np.argsort(edges[-1]), _PARTS):
            rate = float(np.median(edges[-1][part]))
            self._cross(edges, part, names, (low, high, rate), rng)
        first = edges.min(axis=0)
        if held:
            first = np.maximum(first, low)
        if over:
            first = np.minimum(first, high)
        return first, edges.argmin(axis=0), [*names, SATURATION]

    def _rates(self, rng: np.random.Generator) -> stats.Floats:
        """Likely rates of answers; infinite where the queue never grew."""
        service = self.service
        if service is None or service.rate_rps is None:
            return np.full(_PATHS, np.inf)
        found: stats.Floats = service.rate_rps * np.exp(service.error * rng.standard_normal(_PATHS))
        return found

    def _cross(
        self,
        edges: stats.Floats,
        part: Ints,
        names: Sequence[str],
        bounds: tuple[float, float, float],
        rng: np.random.Generator,
    ) -> None:
        """Where each limit is crossed if the server answers at the third of the *bounds*."""
        low, high, rate = bounds
        end = min(high, _NEAR * rate)
        if end <= low:
            return
        steps = np.linspace(float(_pressure(low, rate)), float(_pressure(end, rate)), _GRID)
        loads = np.exp(steps) / (1 + np.exp(steps) / rate)
        for row, name in enumerate(names):
            told = self._points(name, low, high)
            if told is None:
                continue
            near = np.exp(told.x) < _NEAR * rate
            if not near.any():
                continue
            points = curve.Points(
                x=_pressure(np.exp(told.x[near]), rate),
                value=told.value[near],
                error=told.error[near],
                order=told.order[near],
            )
            curves = curve.rising(points, steps, len(part), rng)
            edges[row, part] = rng.permutation(curve.crossings(curves, loads))


def _as_seen(_: Sequence[float], margins: Sequence[Margin]) -> list[Margin]:
    return list(margins)  # which have their errors in common already


def _pressure(rate_rps: stats.Floats | float, answered_rps: float) -> stats.Floats:
    """The logarithm of rate / (1 - rho); of the rate itself where nothing bounds it."""
    found: stats.Floats = np.log(rate_rps) - np.log1p(-np.asarray(rate_rps) / answered_rps)
    return found


def _lower(values: stats.Floats, share: float) -> float:
    """The order statistic at *share*, from below."""
    return float(np.sort(values)[math.floor(share * (len(values) - 1))])

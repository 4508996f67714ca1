"""The search for the highest rate: as for users, and the rate at which the server answers.

The two need each other: how long a level must run to show that its rate is carried follows from
how near it is to what the server can answer at all.
"""

from __future__ import annotations

import math

from servecap.errors import UsageError
from servecap.search.known import Estimate
from servecap.search.machine import CONFIDENCE, Ask, Search
from servecap.search.rate_known import Heard, RateKnown
from servecap.search.saturation import HOLDS

CONTRADICTED = "UNSURE: the levels contradict each other"
_BEYOND = 1.5  # times the upper end: a queue at a rate that far below another is short
_OVER = (1.3, 1.4, 1.2, 1.5, 1.25, 1.35, 1.45, 1.15)  # times what is answered: the queue grows
_CONTRADICTING = 3  # levels that measured what is answered, and differ
_OF_SPARE = 0.15  # of what is left to the rate of answers, that its error may be
_ITS_PART = 0.35  # of the precision that the error of the rate of answers may take
_TAILS = 2.6  # standard errors at the ends of an interval at 95% whose tails are 2.5 times smaller
_ANSWERS_MOST = 40  # times the usual requests, for a level that measures the rate of answers
_ROOM = 1.3  # times the least window, for warm-up and noise
_CLOSE_BY = 0.97  # of the rate of answers: what it would take to promise that much is told
_NEAR_REACH = 0.98  # of the largest rate that there is time for: as good as that
_LENGTH_MOST = 0.9  # of the longest time of a level that its window may need

# Mean responses that a level lasts at least. Waits come in bursts, about as long as a response
# where many are served at once: most short looks see fewer of them than there are.
_RESPONSES = 50.0


class RateSearch(Search):
    """Finds the rate at which the first limit breaks, or the queue begins to grow for ever."""

    def __init__(
        self,
        *,
        start: float,
        most: float,
        smallest: float,
        precision: float,
        confidence: float = CONFIDENCE,
        requests: int = 250,
        least: int = 60,
        arrivals_cv2: float = 1.0,
        holds: float = HOLDS,
        longest_s: float = 900.0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            smallest: the smallest rate that is tried, in requests/s.
            arrivals_cv2: squared coefficient of variation of the gaps between arrivals.
            holds: correlation times that a window must hold to show that a rate is carried.
            longest_s: how long a level may take.
        """
        if not 0 < start <= most:
            raise UsageError(f"--start {start:g} must lie within 0 and --max-rate {most:g}")
        super().__init__(
            start=max(start, min(smallest, most)),
            most=most,
            precision=precision,
            confidence=confidence,
            requests=requests,
            least=least,
            whole=False,
            seed=seed,
        )
        self._rates = RateKnown(
            smallest=smallest,
            most=most,
            confidence=confidence,
            arrivals_cv2=arrivals_cv2,
            holds=holds,
            seed=seed,
        )
        self._known = self._rates
        self._smallest = smallest
        self._longest_s = longest_s

    @property
    def known(self) -> RateKnown:
        """What the levels told so far."""
        return self._rates

    def hear(self, level: Heard) -> None:
        """One more level."""
        self._rates.hear(level)

    def ask(self, *, last: bool = False) -> Ask | None:
        """The next level; None when the interval is narrow enough or no level would help."""
        service = self._rates.service
        if service is not None and service.contradicted and service.levels >= _CONTRADICTING:
            return self._stop("the levels contradict each other")
        return super().ask(last=last)

    def _at(self, load: float, requests: int, why: str) -> Ask:
        service, load = self._rates.service, max(load, self._smallest)
        least_s = (
            0.0 if service is None else _ROOM * self._rates.holds * service.correlation_s(load)
        )
        most_s = _LENGTH_MOST * self._longest_s
        if least_s > 1.01 * most_s:
            least_s = 0.0  # not to be reached: it need not be tried
        least_s = max(least_s, _RESPONSES * self._rates.response_s(load))
        return Ask(load=load, requests=requests, why=why, least_s=min(least_s, most_s))

    def _refine(self, estimate: Estimate) -> Ask | None:
        over = self._over(estimate)
        if over is not None:
            return over
        above = self._above(estimate)
        if above is not None:
            return above
        high = estimate.high if estimate.high is not None else self._most
        width = (high - estimate.low) / max(estimate.best, 1e-9)
        reach = self._reach()
        shares = (0.5, 0.35, 0.65, 0.25, 0.75, 0.1, 0.9, 0.42, 0.58, 0.3, 0.7, 0.0, 1.0)
        loads = [self._quantile(share) for share in shares]
        loads = [x for x in loads if x <= reach] + [reach * f for f in (1.0, 0.98, 0.96)]
        for load in loads:
            load = min(max(load, self._smallest), self._most)
            if estimate.low * 0.9 <= load <= high and not self._tried(load):
                requests = self._worth(estimate, width)
                why = f"the capacity lies within {_said(estimate.low)} and {_said(high)}"
                return self._at(load, requests, why)
        if not self._tried(self._smallest) and estimate.low < self._smallest:
            return self._at(self._smallest, self._few(), "the smallest rate there is time for")
        return self._stop("no level that there is time for would narrow it further")

    def _over(self, estimate: Estimate) -> Ask | None:
        """A level above all that is carried, for what the server answers at most.

        Without it nobody knows how long a queue near the edge takes to show itself.
        """
        service = self._rates.service
        top = max(t.load for t in self._told)
        if service is None or service.rate_rps is None:
            high = estimate.high or estimate.best
            if top >= min(_BEYOND * high, self._most):
                return None
            load = min(_BEYOND * high, self._most)
            why = "well above: does the queue settle?"
            return None if self._tried(load) else self._at(load, self._few(), why)
        spare = 1 - estimate.best / service.rate_rps
        wanted_error = max(_ITS_PART * self._precision / _TAILS, _OF_SPARE * spare)
        if service.error <= wanted_error:
            return None
        requests = int(min((1 / wanted_error) ** 2, _ANSWERS_MOST * self._requests))
        room = int(_LENGTH_MOST * self._longest_s * service.rate_rps)
        requests = max(self._least, min(requests, room))
        for factor in _OVER:
            load = factor * service.rate_rps
            if load <= self._most and not self._tried(load):
                return self._at(load, requests, "above what it can answer")
        return None

    def _reach(self) -> float:
        """The largest rate that the longest level can show to be carried."""
        service = self._rates.service
        if service is None:
            return math.inf
        return service.reach_rps(_LENGTH_MOST * self._longest_s / _ROOM, self._rates.holds)

    def _to_name(self, estimate: Estimate) -> Ask | None:
        reach = self._reach()
        if estimate.low <= reach:
            return super()._to_name(estimate)
        named = 0.0 if estimate.named is None else estimate.named
        if named >= _NEAR_REACH * reach:
            return None
        for load in (reach, 0.98 * reach, 0.95 * reach):
            if load > named and not self._tried(load):
                why = "the rate to promise, measured itself"
                return self._at(load, self._requests, why)
        return None

    def unsure(self) -> str | None:
        service = self._rates.service
        if service is not None and service.contradicted:
            return (
                f"{CONTRADICTED}: what the server answers when it always has work differs by more "
                "than chance, so it changes with time or with the load"
            )
        said = super().unsure()
        estimate = self.estimate()
        if said is None or estimate is None or estimate.high is None or self._moved() is not None:
            return said
        if service is None or service.rate_rps is None or estimate.high < 0.9 * service.rate_rps:
            return said
        memory_s = service.dispersion / service.rate_rps / (1 - _CLOSE_BY) ** 2
        least_s = _ROOM * self._rates.holds * memory_s
        return (
            f"{said}; so near to what the server answers ({_said(service.rate_rps)}/s) a queue "
            f"moves slowly: a level at {_CLOSE_BY:.0%} of that must run {least_s:,.0f} s, and here "
            f"none may take longer than {self._longest_s:,.0f} s (--max-duration, --budget)"
        )


def _said(load: float) -> str:
    return f"{load:,.4g}"

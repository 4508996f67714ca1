"""The highest rate of requests for which the SLO holds in the steady state of an open loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from servecap import audit, flow, rand
from servecap.cell import RateCapacity
from servecap.errors import UsageError
from servecap.metrics import Summary, Verdict
from servecap.run import Probe
from servecap.scenario import OpenLoop, Scenario
from servecap.search.evidence import Margin, least_requests, proving
from servecap.search.hunt import Attempt, Hunt, Unit
from servecap.search.known import Estimate
from servecap.search.machine import CONFIDENCE
from servecap.search.rate_known import SATURATION, Heard, RateKnown
from servecap.search.rate_machine import RateSearch
from servecap.search.saturation import HOLDS
from servecap.slo import Limit

__all__ = ["SATURATION", "RateCapacity", "RateLevel", "RateResult", "find_rate"]


START_RPS = 1.0


class RateLevel(msgspec.Struct, frozen=True, kw_only=True):
    """One rate that was tried, and what it told.

    `short`: near to what the server answers its window was too short to show that it is carried.
    """

    rate_rps: float
    verdict: Verdict
    valid: bool
    summary: Summary
    why: str
    short: bool = False
    run_path: str | None = None
    margins: tuple[Margin, ...] = ()
    spent_s: float = 0.0


class RateResult(msgspec.Struct, frozen=True, kw_only=True):
    """The capacity and every level that led to it, in the order in which they were tried."""

    capacity: RateCapacity
    levels: tuple[RateLevel, ...]
    scenario: Scenario
    stop_reason: str
    interrupted: bool = False
    estimate: Estimate | None = None
    unsure: str | None = None

    @property
    def at_capacity(self) -> RateLevel | None:
        """The level at the rate that is named; None where none can be."""
        named = self.capacity.rate_rps
        return next((x for x in self.levels if x.valid and x.rate_rps == named), None)


def first_rate(scenario: Scenario, budget_s: float | None) -> float:
    """Requests/s to start with where nothing is known of the server.

    Where the budget is short, a level at less would not see enough of them.
    """
    return max(START_RPS, _least_rps(scenario, budget_s))


def _least(scenario: Scenario) -> int:
    """Requests that tell something of a level."""
    return min(least_requests(scenario.slo.limits), 2 * scenario.stop.requests)


def _longest_s(scenario: Scenario, budget_s: float | None) -> float:
    longest_s = scenario.stop.max_duration_s
    return longest_s if budget_s is None else min(longest_s, budget_s / 3)


def _least_rps(scenario: Scenario, budget_s: float | None) -> float:
    """The smallest rate at which a level sees enough requests in its time."""
    return 2 * _least(scenario) / _longest_s(scenario, budget_s)


def find_rate(
    probe: Probe,
    scenario: Scenario,
    *,
    start: float = START_RPS,
    max_rate: float = 1000.0,
    precision: float = 0.05,
    confidence: float = CONFIDENCE,
    budget_s: float | None = None,
    on_level: Callable[[RateLevel], None] = lambda _: None,
    on_known: Callable[[RateResult], None] = lambda _: None,
) -> RateResult:
    """The highest rate that whatever *probe* measures carries under the scenario's SLO.

    Args:
        start: requests/s of the first level.
        precision: width of the interval, as a share of the capacity, that is narrow enough.
        budget_s: seconds of measuring after which the search says what it knows.
        on_known: is told after each level what is known, as if the search had been cut off there.
    Raises:
        InvalidRun: no level could be believed, so nothing can be said.
        UsageError: the load is not an open loop of requests at one rate, or a number makes no
            sense.
    """
    load = scenario.load
    if not isinstance(load, OpenLoop) or not flow.watched(scenario):
        raise UsageError("find --rate needs requests at one rate: no trace, schedule or sessions")
    if not (math.isfinite(max_rate) and math.isfinite(start)):
        raise UsageError(f"--start {start:g} and --max-rate {max_rate:g} must be numbers")
    if budget_s is not None and not budget_s > 0:
        raise UsageError(f"--budget {budget_s:g} s must be more than 0 s")
    search = RateSearch(
        start=start,
        most=max_rate,
        smallest=min(start, _least_rps(scenario, budget_s)),
        precision=precision,
        confidence=confidence,
        requests=scenario.stop.requests,
        least=_least(scenario),
        arrivals_cv2=flow.arrivals_cv2(load),
        holds=holds(scenario.slo.limits),
        longest_s=_longest_s(scenario, budget_s),
        seed=rand.derive(scenario.seed, "search"),
    )
    unit = Unit(
        said=lambda rate: f"{rate:.4g} requests/s",
        load=lambda rate, _: msgspec.structs.replace(load, rate_rps=rate),
        tell=lambda attempt: _told(search, attempt),
        on_level=lambda attempt: on_level(_level(attempt, search.known)),
    )
    hunt = Hunt(probe, scenario, search, unit, budget_s)
    hunt.run(lambda: on_known(_known(hunt, search, cut_off=True)))
    return _known(hunt, search)


def _known(hunt: Hunt, search: RateSearch, *, cut_off: bool = False) -> RateResult:
    """What the levels so far tell."""
    estimate, count = search.estimate(), len(hunt.levels)
    return RateResult(
        capacity=_capacity(estimate, search.known),
        levels=tuple(_level(x, search.known) for x in hunt.levels),
        scenario=hunt.scenario,
        stop_reason=f"it was cut off after {count} levels" if cut_off else hunt.stop_reason,
        interrupted=cut_off or hunt.interrupted,
        estimate=estimate,
        unsure=search.unsure(),
    )


def holds(limits: Sequence[Limit]) -> float:
    """Correlation times of a queue that a window must hold, for these limits.

    Two of them are worth one independent request, and a percentile needs as many of those as prove
    it when none is over the limit.
    """
    return max([HOLDS, *(2.0 * n for n in proving(limits))])


def _told(search: RateSearch, attempt: Attempt) -> bool:
    """Whether the search learned of the level.

    One that is only not stationary may have a queue that moves too slowly: what it broke is broken,
    and that it cannot be measured so near to the limit is no reason to stop. But a server that is
    not stationary wherever it is met changes by itself.
    """
    if not attempt.valid and not (_only_moving(attempt.summary) and search.known.heard):
        return False
    window, response = attempt.summary.window, attempt.summary.client.get("e2e")
    search.hear(
        Heard(
            load=attempt.load,
            requests=attempt.summary.requests,
            margins=attempt.margins,
            flow=attempt.summary.flow,
            window_s=window.end_s - window.start_s,
            response_s=0.0 if response is None else response.mean,
            stationary=attempt.valid,
        )
    )
    return True


def _only_moving(summary: Summary) -> bool:
    return all(x.startswith(audit.NOT_STATIONARY) for x in summary.invalid_reasons)


def _level(attempt: Attempt, known: RateKnown) -> RateLevel:
    heard = next((h for h in reversed(known.heard) if h.load == attempt.load), None)
    verdict = attempt.summary.verdict
    short = heard is not None and verdict is not Verdict.FAIL and not known.long_enough(heard)
    return RateLevel(
        rate_rps=attempt.load,
        verdict=Verdict.UNSURE if short else verdict,
        valid=attempt.valid,
        summary=attempt.summary,
        why=attempt.why,
        short=short,
        run_path=attempt.run_path,
        margins=attempt.margins,
        spent_s=attempt.spent_s,
    )


def _capacity(estimate: Estimate | None, known: RateKnown) -> RateCapacity:
    if estimate is None:
        return RateCapacity(rate_rps=0.0, rate_high_rps=None, confidence=CONFIDENCE)
    service = known.service
    answered = None if service is None else service.rate_rps
    return RateCapacity(
        rate_rps=estimate.named or 0.0,
        rate_high_rps=estimate.high,
        confidence=estimate.confidence,
        limited_by=estimate.limited_by,
        answered_rps=answered,
        answered_error=None if service is None or answered is None else service.error,
    )


def broken_by(levels: Sequence[RateLevel]) -> RateLevel | None:
    """The smallest rate at which the queue was seen to grow without bound."""
    grown = [x for x in levels if x.summary.flow is not None and x.summary.flow.tells_rate]
    return min(grown, key=lambda x: x.rate_rps, default=None)

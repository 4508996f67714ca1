"""The most users for whom the SLO holds: an interval at a confidence, from a few valid levels.

Every level's margins to every limit go into one curve per limit (`curve`); where the first of
them is crossed is the capacity, and the next level is where that tells most (`machine`). Only
valid runs count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from servecap import rand
from servecap.cell import Capacity
from servecap.errors import UsageError
from servecap.metrics import LimitCheck, Summary, Verdict
from servecap.run import Probe
from servecap.scenario import ClosedLoop, Scenario
from servecap.search.evidence import Margin, least_requests
from servecap.search.hunt import Attempt, Hunt, Unit
from servecap.search.known import Estimate
from servecap.search.machine import CONFIDENCE, Search

__all__ = ["Estimate", "Level", "Margin", "Search", "SearchResult", "find", "limiting"]


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One level that was tried, and what it told."""

    users: int
    verdict: Verdict
    valid: bool
    summary: Summary
    why: str  # the level was chosen, and what decided it
    run_path: str | None = None
    margins: tuple[Margin, ...] = ()
    spent_s: float = 0.0  # seconds that the level took, from its first request on


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The capacity and every level that led to it, in the order in which they were tried."""

    capacity: Capacity
    levels: tuple[Level, ...]
    scenario: Scenario
    stop_reason: str
    interrupted: bool = False  # by the user: the capacity is what was known until then
    estimate: Estimate | None = None
    unsure: str | None = None  # why the interval is wider than asked for, and what would narrow it

    @property
    def at_capacity(self) -> Level | None:
        """The level at the number that is named; None where none can be.

        A search that ended before it had measured there has the nearest that did not fail.
        """
        held = [
            x
            for x in self.levels
            if x.valid
            and x.verdict is not Verdict.FAIL
            and (x.verdict is Verdict.PASS or self.capacity.users > 0)
        ]
        return min(held, key=lambda x: abs(x.users - self.capacity.users), default=None)


def find(
    probe: Probe,
    scenario: Scenario,
    *,
    start: int = 8,
    max_users: int = 10_000,
    precision: float = 0.05,
    confidence: float = CONFIDENCE,
    budget_s: float | None = None,
    on_level: Callable[[Level], None] = lambda _: None,
    on_known: Callable[[SearchResult], None] = lambda _: None,
) -> SearchResult:
    """The capacity of whatever *probe* measures, under the scenario's SLO.

    Each level has prompts and think times of its own (seeds derived from the scenario's), so that
    no level finds its prompts in a prefix cache. Ctrl-C during a level ends the search; its
    result holds what was known by then.

    Args:
        precision: width of the interval, as a share of the capacity, that is narrow enough.
        confidence: chance that the interval holds the capacity.
        budget_s: seconds of measuring after which the search says what it knows.
        on_known: is told after each level what is known, as if the search had been cut off there.
    Raises:
        InvalidRun: no level could be believed, so nothing can be said.
        UsageError: start, max_users, precision or confidence make no sense.
    """
    closed = scenario.load
    if not isinstance(closed, ClosedLoop):
        raise UsageError("find searches for users: it needs the closed loop, not --rate")
    if budget_s is not None and not budget_s > 0:
        raise UsageError(f"--budget {budget_s:g} s must be more than 0 s")
    search = Search(
        start=start,
        most=max_users,
        precision=precision,
        confidence=confidence,
        requests=scenario.stop.requests,
        least=min(least_requests(scenario.slo.limits), 2 * scenario.stop.requests),
        seed=rand.derive(scenario.seed, "search"),
    )

    def tell(attempt: Attempt) -> bool:
        if attempt.valid:
            search.tell(attempt.load, attempt.margins, attempt.summary.requests)
        return attempt.valid

    unit = Unit(
        said=lambda load: f"{load:.0f} users",
        load=lambda load, before: _users(closed, round(load), before),
        tell=tell,
        on_level=lambda attempt: on_level(_level(attempt)),
    )
    hunt = Hunt(probe, scenario, search, unit, budget_s)
    hunt.run(lambda: on_known(_known(hunt, search, cut_off=True)))
    return _known(hunt, search)


def _known(hunt: Hunt, search: Search, *, cut_off: bool = False) -> SearchResult:
    """What the levels so far tell."""
    levels = tuple(map(_level, hunt.levels))
    estimate = search.estimate()
    return SearchResult(
        capacity=_capacity(estimate, levels),
        levels=levels,
        scenario=hunt.scenario,
        stop_reason=f"it was cut off after {len(levels)} levels" if cut_off else hunt.stop_reason,
        interrupted=cut_off or hunt.interrupted,
        estimate=estimate,
        unsure=search.unsure(),
    )


def _level(attempt: Attempt) -> Level:
    return Level(
        users=round(attempt.load),
        verdict=attempt.summary.verdict,
        valid=attempt.valid,
        summary=attempt.summary,
        why=attempt.why,
        run_path=attempt.run_path,
        margins=attempt.margins,
        spent_s=attempt.spent_s,
    )


def _users(load: ClosedLoop, users: int, before: Sequence[Attempt]) -> ClosedLoop:
    """The load of a level, ramping in over the cycle that the levels before let expect."""
    ramp_s = cycle_s(tuple(map(_level, before)), users) if load.ramp_s is None else load.ramp_s
    return msgspec.structs.replace(load, users=users, ramp_s=ramp_s)


def cycle_s(levels: Sequence[Level], users: int) -> float | None:
    """The time of a cycle that is to be expected with that many users; None if nothing tells.

    By Little's law a cycle is users / QPS. Between and beyond the two nearest levels it follows a
    straight line, as it does once a server is busy; it never falls with more users.
    """
    seen = sorted(
        (x.users, x.users / x.summary.qps) for x in levels if x.valid and x.summary.qps > 0
    )
    below = [p for p in seen if p[0] <= users]
    if not below:
        return None
    above = [p for p in seen if p[0] > users]
    (n0, c0), (n1, c1) = (below[-1], above[0]) if above else (below[-2:] + below[-1:])[:2]
    if n1 == n0:
        return c0
    return max(c0 if users >= n0 else 0.0, c0 + (c1 - c0) * (users - n0) / (n1 - n0))


def _capacity(estimate: Estimate | None, levels: Sequence[Level]) -> Capacity:
    if estimate is None:
        return Capacity(users=0, users_high=None, confidence=CONFIDENCE)
    broken = [x for x in levels if x.valid and x.verdict is Verdict.FAIL]
    name = estimate.limited_by
    if name is None and broken:
        name = limiting(min(broken, key=lambda x: x.users).summary)
    return Capacity(
        users=int(estimate.named or 0),
        users_high=None if estimate.high is None else int(estimate.high),
        confidence=estimate.confidence,
        limited_by=name,
    )


def limiting(summary: Summary) -> str:
    """The limit that was broken the most, as the SLO writes it."""
    broken = [c for c in summary.checks if c.verdict is Verdict.FAIL]
    if not broken:
        return "error_rate"
    return str(max(broken, key=_excess).limit)


def _excess(check: LimitCheck) -> float:
    return (check.value_s or 0.0) / check.limit.at_most_s

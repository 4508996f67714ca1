"""The most users for whom the SLO holds: an interval at a confidence, from a few valid levels.

Every level's margins to every limit go into one curve per limit (`curve`); where the first of
them is crossed is the capacity, and the next level is where that tells most (`machine`). Only
valid runs count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from servecap import rand, steady
from servecap.cell import Capacity
from servecap.errors import InvalidRun, UsageError
from servecap.metrics import LimitCheck, Summary, Verdict
from servecap.run import Probe, Run, Status
from servecap.scenario import ClosedLoop, Scenario
from servecap.search.evidence import Margin, at_least, least_requests, margins
from servecap.search.known import Estimate
from servecap.search.machine import CONFIDENCE, Ask, Search
from servecap.summarize import summarize

__all__ = ["Estimate", "Level", "Margin", "Search", "SearchResult", "find", "limiting"]

_LEAST_S = 1.0  # of the budget: with less there is no point in starting another level


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
) -> SearchResult:
    """The capacity of whatever *probe* measures, under the scenario's SLO.

    Each level has prompts and think times of its own (seeds derived from the scenario's), so that
    no level finds its prompts in a prefix cache. Ctrl-C during a level ends the search; its
    result holds what was known by then.

    Args:
        precision: width of the interval, as a share of the capacity, that is narrow enough.
        confidence: chance that the interval holds the capacity.
        budget_s: seconds of measuring after which the search says what it knows.
    Raises:
        InvalidRun: no level could be believed, so nothing can be said.
        UsageError: start, max_users, precision or confidence make no sense.
    """
    if not isinstance(scenario.load, ClosedLoop):
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
    hunt = _Hunt(probe, scenario, search, budget_s, on_level)
    hunt.run()
    return hunt.result()


class _Hunt:
    """Takes the search from level to level, until it, the budget or the user ends it."""

    def __init__(
        self,
        probe: Probe,
        scenario: Scenario,
        search: Search,
        budget_s: float | None,
        on_level: Callable[[Level], None],
    ) -> None:
        self._probe = probe
        self._scenario = scenario
        self._search = search
        self._budget_s = budget_s
        self._on_level = on_level
        self._levels: list[Level] = []
        self._stop_reason = ""
        self._barred = ""
        self._interrupted = False

    def run(self) -> None:
        while (asked := self._search.ask(last=self._is_last())) is not None:
            left_s = self._left_s()
            if left_s is not None and left_s < self._least_s():
                self._stop_reason = f"the budget of {self._budget_s:g} s is spent"
                return
            level = self._twice(asked)
            if level is None:
                self._interrupted = True
                self._stop_reason = f"ended by Ctrl-C while {asked.load:.0f} users were tried"
                return
            self._learn(level)
        self._stop_reason = self._search.stop_reason
        if self._barred:
            self._stop_reason = f"{self._stop_reason}; {self._barred}"

    def _is_last(self) -> bool:
        """Whether the budget leaves no time for two more levels like the last one."""
        left_s = self._left_s()
        return left_s is not None and bool(self._levels) and left_s < 2 * self._levels[-1].spent_s

    def _least_s(self) -> float:
        """What a level takes at least: one cut short by the budget would only be INVALID."""
        return max(_LEAST_S, min((x.spent_s for x in self._levels), default=0.0))

    def _left_s(self) -> float | None:
        if self._budget_s is None:
            return None
        return self._budget_s - sum(x.spent_s for x in self._levels)

    def _twice(self, asked: Ask) -> Level | None:
        """The level measured, and once more if it was not valid; None if the user ended it."""
        level = self._try(asked, asked.why)
        if level is None or level.valid:
            return level
        return self._try(asked, "again, the first was invalid")

    def _learn(self, level: Level) -> None:
        if level.valid:
            self._search.tell(level.users, level.margins, level.summary.requests)
            return
        reasons = "; ".join(level.summary.invalid_reasons)
        if not any(x.valid for x in self._levels):
            raise InvalidRun(f"no capacity can be told: {level.users} users, INVALID: {reasons}")
        self._search.bar(level.users)
        self._barred = f"{level.users} users cannot be measured: {reasons}"

    def _try(self, asked: Ask, why: str) -> Level | None:
        users = int(asked.load)
        run = self._probe(self._asked(users, asked.requests))
        if run.header.status is Status.INTERRUPTED:
            return None
        summary = summarize(run)
        level = Level(
            users=users,
            verdict=summary.verdict,
            valid=summary.valid,
            summary=summary,
            why=why,
            run_path=run.path,
            margins=_told(run, summary),
            spent_s=run.header.load_end_s or summary.window.end_s,
        )
        self._levels.append(level)
        self._on_level(level)
        return level

    def _asked(self, users: int, requests: int) -> Scenario:
        scenario, left_s = self._scenario, self._left_s()
        longest_s = scenario.stop.max_duration_s
        load = msgspec.structs.replace(scenario.load, users=users)
        assert isinstance(load, ClosedLoop)
        if load.ramp_s is None:
            load = msgspec.structs.replace(load, ramp_s=cycle_s(self._levels, users))
        return msgspec.structs.replace(
            scenario,
            load=load,
            stop=msgspec.structs.replace(
                scenario.stop,
                requests=requests,
                decide=True,
                max_duration_s=longest_s if left_s is None else min(longest_s, left_s),
            ),
            seed=rand.derive(scenario.seed, "probe", len(self._levels)),
        )

    def result(self) -> SearchResult:
        """What is known now."""
        estimate = self._search.estimate()
        return SearchResult(
            capacity=_capacity(estimate, self._levels),
            levels=tuple(self._levels),
            scenario=self._scenario,
            stop_reason=self._stop_reason,
            interrupted=self._interrupted,
            estimate=estimate,
            unsure=self._search.unsure(),
        )


def _told(run: Run, summary: Summary) -> tuple[Margin, ...]:
    """The run's margins; a level that was given up tells of the broken limits only."""
    found = margins(run)
    if not steady.given_up(summary.window):
        return found
    return tuple(at_least(m) for m in found if m.value > 0)


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

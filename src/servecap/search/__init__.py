"""The most users for whom the SLO holds: widen until a level fails, then halve the bracket.

Only valid runs decide. A level whose interval straddles a limit stays UNSURE: it is neither
counted as held nor as broken, so it ends up inside the capacity's interval.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from servecap import rand
from servecap.cell import Capacity
from servecap.errors import InvalidRun, UsageError
from servecap.metrics import LimitCheck, Summary, Verdict
from servecap.run import Probe, Status
from servecap.scenario import ClosedLoop, Scenario
from servecap.summarize import summarize
from servecap.verdict import CONFIDENCE

_FAR = 0.25  # below this share of every limit, the next level is four times as large


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One level that was tried, and what it told."""

    users: int
    verdict: Verdict
    valid: bool
    summary: Summary
    why: str  # the level was chosen, and what decided it
    run_path: str | None = None


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The capacity and every level that led to it, in the order in which they were tried."""

    capacity: Capacity
    levels: tuple[Level, ...]
    scenario: Scenario
    stop_reason: str
    interrupted: bool = False  # by the user: the capacity is what was known until then

    @property
    def at_capacity(self) -> Level | None:
        """The largest level that held; None if not even one user could be served."""
        held = [x for x in self.levels if x.valid and x.verdict is Verdict.PASS]
        return max(held, key=lambda x: x.users, default=None)


class Search:
    """A machine: `ask` names the next level to try, `tell` takes what was found there.

    Holding is taken to be monotone in users: below a level that held nothing is tried, nor above
    one that failed. `precision` is the width of the bracket at which it is narrow enough, as a
    share of the users that are held.
    """

    def __init__(self, *, start: int, max_users: int, precision: float) -> None:
        if not 1 <= start <= max_users:
            raise UsageError(f"--start {start} must lie within 1 and --max-users {max_users}")
        if not 0 < precision < 1:
            raise UsageError(f"--precision {precision:g} must lie within 0 and 1 (5% is 0.05)")
        self._next = start
        self._max = max_users
        self._precision = precision
        self.held = 0  # nobody is always served within the SLO
        self.failed: int | None = None
        self._unsure: list[int] = []

    def ask(self) -> tuple[int, str] | None:
        """The next level and why it is tried; None when the bracket is narrow enough."""
        if self.failed is None:
            above = [u for u in self._unsure if u > self.held]
            if above and self._next <= above[-1]:
                self._next = above[-1] * 2
            if self.held >= self._max or (above and above[-1] >= self._max):
                return None
            return min(self._next, self._max), "no level has failed yet"
        points = [self.held, *(u for u in self._unsure if u > self.held), self.failed]
        # The lower edge first: it is the number that is promised. What lies between two unsure
        # levels would be unsure as well.
        edges = dict.fromkeys([(points[0], points[1]), (points[-2], points[-1])])
        for low, high in edges:
            if high - low > max(1, self._precision * self.held):
                return (low + high) // 2, f"between {low} and {high}"
        return None

    def tell(self, users: int, verdict: Verdict, *, far: bool = False) -> None:
        """The level's verdict; *far*: every limit was kept by a wide margin."""
        match verdict:
            case Verdict.PASS:
                self.held = max(self.held, users)
                self._next = users * (4 if far else 2)
            case Verdict.FAIL:
                self.failed = users if self.failed is None else min(self.failed, users)
            case Verdict.UNSURE:
                self._unsure = sorted({*self._unsure, users})
        if self.failed is not None:
            self._unsure = [u for u in self._unsure if u < self.failed]


def find(
    probe: Probe,
    scenario: Scenario,
    *,
    start: int = 8,
    max_users: int = 10_000,
    precision: float = 0.05,
    on_level: Callable[[Level], None] = lambda _: None,
) -> SearchResult:
    """The capacity of whatever *probe* measures, under the scenario's SLO.

    Each level has prompts and think times of its own (seeds derived from the scenario's), so that
    no level finds its prompts in a prefix cache.

    Ctrl-C during a level ends the search; its result holds what was known by then.

    Raises:
        InvalidRun: no level could be believed, so nothing can be said.
        UsageError: start, max_users or precision make no sense.
    """
    if not isinstance(scenario.load, ClosedLoop):
        raise UsageError("find searches for users: it needs the closed loop, not --rate")
    search = Search(start=start, max_users=max_users, precision=precision)
    levels: list[Level] = []
    stop_reason = "the bracket is narrow enough"
    while (asked := search.ask()) is not None:
        users, why = asked
        level = _try(probe, scenario, users, why, attempt=len(levels))
        if level is not None and not level.valid:
            levels.append(level)
            on_level(level)
            level = _try(probe, scenario, users, "again, the first was invalid", len(levels))
        if level is None:
            return SearchResult(
                capacity=_capacity(search, levels),
                levels=tuple(levels),
                scenario=scenario,
                stop_reason=f"ended by Ctrl-C while {users} users were tried",
                interrupted=True,
            )
        levels.append(level)
        on_level(level)
        if not level.valid:
            reasons = "; ".join(level.summary.invalid_reasons)
            if search.held == 0:
                raise InvalidRun(f"no capacity can be told: {users} users, INVALID: {reasons}")
            stop_reason = f"{users} users cannot be measured: {reasons}"
            break
        search.tell(users, level.verdict, far=_far(level.summary))
    if search.failed is None and stop_reason.startswith("the bracket"):
        stop_reason = f"no level up to --max-users {max_users} failed"
    return SearchResult(
        capacity=_capacity(search, levels),
        levels=tuple(levels),
        scenario=scenario,
        stop_reason=stop_reason,
    )


def _try(probe: Probe, scenario: Scenario, users: int, why: str, attempt: int) -> Level | None:
    """The level measured; None if the user ended it early, for it then tells nothing."""
    assert isinstance(scenario.load, ClosedLoop)
    run = probe(
        msgspec.structs.replace(
            scenario,
            load=msgspec.structs.replace(scenario.load, users=users),
            stop=msgspec.structs.replace(scenario.stop, decide=True),
            seed=rand.derive(scenario.seed, "probe", attempt),
        )
    )
    if run.header.status is Status.INTERRUPTED:
        return None
    summary = summarize(run)
    return Level(
        users=users,
        verdict=summary.verdict,
        valid=summary.valid,
        summary=summary,
        why=why,
        run_path=run.path,
    )


def _far(summary: Summary) -> bool:
    shares = [
        (c.high_s if c.high_s is not None else c.value_s or 0.0) / c.limit.at_most_s
        for c in summary.checks
    ]
    return max(shares, default=0.0) < _FAR


def _capacity(search: Search, levels: list[Level]) -> Capacity:
    failing = [x for x in levels if x.valid and x.users == search.failed]
    return Capacity(
        users=search.held,
        users_high=None if search.failed is None else search.failed - 1,
        confidence=CONFIDENCE,
        limited_by=limiting(failing[-1].summary) if failing else None,
    )


def limiting(summary: Summary) -> str:
    """The limit that was broken the most, as the SLO writes it."""
    broken = [c for c in summary.checks if c.verdict is Verdict.FAIL]
    if not broken:
        return "error_rate"
    return str(max(broken, key=_excess).limit)


def _excess(check: LimitCheck) -> float:
    return (check.value_s or 0.0) / check.limit.at_most_s

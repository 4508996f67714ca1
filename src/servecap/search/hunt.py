"""From level to level: measure what a search asks for, until it, the budget or the user ends it.

Whether loads are users or requests/s is told by three functions; the hunt knows none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from servecap import rand, steady
from servecap.errors import InvalidRun
from servecap.metrics import Summary
from servecap.run import Probe, Run, Status
from servecap.scenario import Load, Scenario
from servecap.search.evidence import Margin, at_least, margins
from servecap.search.machine import Ask, Search
from servecap.summarize import summarize

LEAST_S = 1.0  # of the budget: with less there is no point in starting another level


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One level that was measured, at a load whose unit only the caller knows."""

    load: float
    summary: Summary
    why: str  # the level was chosen, and what decided it
    run_path: str | None
    margins: tuple[Margin, ...]
    spent_s: float

    @property
    def valid(self) -> bool:
        """Whether it can be believed."""
        return self.summary.valid


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """What the loads of a search are."""

    said: Callable[[float], str]  # "8 users"
    load: Callable[[float, Sequence[Attempt]], Load]  # of a level, given those before it
    tell: Callable[[Attempt], bool]  # the search learns of it; False: there is nothing to learn
    on_level: Callable[[Attempt], None]


class Hunt:
    """Takes the search from level to level, until it, the budget or the user ends it."""

    def __init__(
        self, probe: Probe, scenario: Scenario, search: Search, unit: Unit, budget_s: float | None
    ) -> None:
        self._probe = probe
        self.scenario = scenario
        self._search = search
        self._unit = unit
        self._budget_s = budget_s
        self.levels: list[Attempt] = []
        self.stop_reason = ""
        self._barred = ""
        self.interrupted = False

    def run(self, on_known: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            on_known: is called when the search has learned from a level.
        Raises:
            InvalidRun: no level could be believed, so nothing can be said.
        """
        while (asked := self._search.ask(last=self._is_last())) is not None:
            left_s = self._left_s()
            if left_s is not None and left_s < self._least_s():
                self.stop_reason = f"the budget of {self._budget_s:g} s is spent"
                return
            if not self._learned(asked):
                self.interrupted = True
                self.stop_reason = f"ended by Ctrl-C while {self._unit.said(asked.load)} were tried"
                return
            on_known()
        self.stop_reason = self._search.stop_reason
        if self._barred:
            self.stop_reason = f"{self.stop_reason}; {self._barred}"

    def _is_last(self) -> bool:
        """Whether the budget leaves no time for two more levels like the last one."""
        left_s = self._left_s()
        return left_s is not None and bool(self.levels) and left_s < 2 * self.levels[-1].spent_s

    def _least_s(self) -> float:
        """What a level takes at least: one cut short by the budget would only be INVALID."""
        return max(LEAST_S, min((x.spent_s for x in self.levels), default=0.0))

    def _left_s(self) -> float | None:
        if self._budget_s is None:
            return None
        return self._budget_s - sum(x.spent_s for x in self.levels)

    def _learned(self, asked: Ask) -> bool:
        """The level measured, and once more if it told nothing; False if the user ended it.

        Once a load could not be measured twice, no other one is given a second chance: what made
        it so will not go away. Nor is one for which the budget leaves less time than it took.
        """
        level = self._try(asked, asked.why)
        if level is None or self._unit.tell(level):
            return level is not None
        left_s = self._left_s()
        time_left = left_s is None or left_s >= max(LEAST_S, level.spent_s)
        if time_left and not self._barred:
            level = self._try(asked, "again, the first was invalid")
            if level is None or self._unit.tell(level):
                return level is not None
        self._bar(level)
        return True

    def _bar(self, level: Attempt) -> None:
        reasons = "; ".join(level.summary.invalid_reasons)
        said = self._unit.said(level.load)
        if not any(x.valid for x in self.levels):
            raise InvalidRun(f"no capacity can be told: {said}, INVALID: {reasons}")
        self._search.bar(level.load)
        self._barred = f"{said} cannot be measured: {reasons}"

    def _try(self, asked: Ask, why: str) -> Attempt | None:
        run = self._probe(self._asked(asked))
        if run.header.status is Status.INTERRUPTED:
            return None
        summary = summarize(run)
        level = Attempt(
            load=asked.load,
            summary=summary,
            why=why,
            run_path=run.path,
            margins=_told(run, summary),
            spent_s=run.header.load_end_s or summary.window.end_s,
        )
        self.levels.append(level)
        self._unit.on_level(level)
        return level

    def _asked(self, asked: Ask) -> Scenario:
        scenario, left_s = self.scenario, self._left_s()
        longest_s = scenario.stop.max_duration_s
        return msgspec.structs.replace(
            scenario,
            load=self._unit.load(asked.load, self.levels),
            stop=msgspec.structs.replace(
                scenario.stop,
                requests=asked.requests,
                least_s=asked.least_s,
                decide=True,
                max_duration_s=longest_s if left_s is None else min(longest_s, left_s),
            ),
            seed=rand.derive(scenario.seed, "probe", len(self.levels)),
        )


def _told(run: Run, summary: Summary) -> tuple[Margin, ...]:
    """The run's margins; a level that was given up tells of the broken limits only."""
    found = margins(run)
    if not steady.given_up(summary.window):
        return found
    return tuple(at_least(m) for m in found if m.value > 0)

"""Which part of a run is measured, and when there is enough of it.

A request counts when it *ended* inside the window. In a stationary closed loop departures are an
unbiased sample of all requests; choosing by start would leave out the long ones still running.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from servecap import flow, stats, verdict
from servecap.columns import Bools, Columns, present
from servecap.metrics import Verdict, Window
from servecap.record import Record, last_tries
from servecap.run import Slice
from servecap.scenario import ClosedLoop, OpenLoop, Scenario
from servecap.slo import Limit

CYCLES = 2.0  # a window holds at least so many mean cycles, so that each user is seen twice
DRIFT_SHARE = 0.2  # halves of a window that differ by more (and significantly) are not stationary
DRIFT_CONFIDENCE = 0.999
DRIFT_OF_LIMIT = 0.1
WARM_UP_SHARE = 0.4
LITTLE_SHARE = 0.10  # of the users: a larger gap means that the window was not steady
LITTLE_NOISE = 2.0  # the gap allowed for n requests is this over root n, if that is more
HOPELESS = 20  # requests that all fail before a run gives up
DEAD = 1000  # failures in a row, at any time: without think time a dead server gets 10,000 a second
HOPELESS_LEAST = 40  # requests that must show that there is no hope
FAR_ABOVE = 1.5  # times its limit: a mean there is no matter of noise or of an overshoot
GIVEN_UP = "given up"
MSER = "MSER-5"
GROWING = f"{GIVEN_UP}: the queue grows without bound"
UNSETTLED = f"{GIVEN_UP}: it had not settled"
PATIENCE = 4  # times the requests asked for: so long it is not known whether a queue grows
LOOK = 0.2  # of the least length: so long an open loop is looked at before it is given up


def within(told: Columns, window: Window) -> Bools:
    """Which of the records ended by themselves inside the window."""
    return told.ended & (window.start_s <= told.end_s) & (told.end_s <= window.end_s)


def counted(told: Columns, window: Window) -> Columns:
    """The records that ended by themselves inside the window."""
    return told.at(within(told, window))


def warm_up(told: Columns, scenario: Scenario, window: Window) -> Columns:
    """The records after the ramp that the window leaves out as not yet settled (MSER-5)."""
    if MSER not in window.rule:
        return Columns([])
    ended = _in_order(told)
    ramped_s = _ramped_s(told, scenario, ended)
    return ended.at((ramped_s <= ended.end_s) & (ended.end_s < window.start_s))


def _in_order(told: Columns) -> Columns:
    """Those that ended by themselves, in the order in which they did."""
    return told.at(told.ended).by_end()


def parts_over(limit: Limit, slices: Sequence[Slice]) -> int:
    """In how many slices a mean or 95th percentile lay above the limit; 0 for other statistics."""
    name = f"{limit.metric}_{limit.statistic}_s"
    return sum((getattr(s, name, None) or 0.0) > limit.at_most_s for s in slices)


def given_up(window: Window) -> bool:
    """Whether the run was ended early because its load was far beyond what the SLO allows."""
    return window.rule.startswith(GIVEN_UP)


def hopeless(told: Columns, scenario: Scenario) -> Columns:
    """Requests that show a limit broken by far and not recovering; empty where none do.

    They ended in that order. Only requests that were due after the ramp count, since a ramp
    may overshoot. The SLO is broken by far when, in the later half of them, a mean lies surely
    above `FAR_ABOVE` times its limit, or surely too many of them lie above that, or surely too
    many failed; and when the last quarter is no better than the one before it. What runs over
    and still rises has no steady state to wait for.
    """
    if isinstance(scenario.load, ClosedLoop):
        first_s = joined(told, scenario.load)
        if len(first_s) < newcomers(scenario.load):
            return Columns([])
        ramped_s = first_s.max(initial=0.0) + _leaving_s(told, scenario.load)
        told = told.at(told.planned_s >= ramped_s)
    tail = told.at(told.ended)
    tail = tail.at(slice(len(tail) // 2, None))
    if len(tail) < HOPELESS_LEAST:
        return Columns([])
    broken = any(_far_above(limit, tail, scenario) for limit in scenario.slo.limits)
    failed, _, _ = verdict.check_errors(scenario.slo, len(tail.once_each()), int((~tail.ok).sum()))
    return tail if broken or failed is Verdict.FAIL else Columns([])


def _far_above(limit: Limit, tail: Columns, scenario: Scenario) -> bool:
    good = tail.at(tail.ok)
    seen = present(verdict.figures(limit.metric, good, server=scenario.timings == "server"))
    if len(seen) < HOPELESS_LEAST or float(np.mean(seen[len(seen) // 2 :])) < float(
        np.mean(seen[: len(seen) // 2])
    ):
        return False
    far = Limit(limit.metric, limit.statistic, FAR_ABOVE * limit.at_most_s)
    check = verdict.check(
        far, tail, server=scenario.timings == "server", confidence=DRIFT_CONFIDENCE
    )
    return check.verdict is Verdict.FAIL


def window_of(told: Columns, scenario: Scenario, end_s: float) -> Window:
    """The measured window of a run whose load ended at *end_s* (seconds since its start).

    Classic runs (a fixed queue, or a fixed number of requests each) are measured whole. Otherwise
    the window starts one cycle after the last user's first request (sooner where a population
    went on from another load and only a part of it is new), and later still where MSER-5 finds
    that the response times had not yet settled; it ends with the load, before the drain.
    """
    load = scenario.load
    if isinstance(load, ClosedLoop) and (load.queue is not None or load.each is not None):
        last_s = float(told.end_s[told.ended].max()) if told.ended.any() else end_s
        name = "queue" if load.queue is not None else "each"
        return Window(start_s=0.0, end_s=last_s, rule=f"classic: first send to last end ({name})")
    if isinstance(load, OpenLoop) and not load.stationary:
        return Window(start_s=0.0, end_s=end_s, rule="the load changes with time: the whole run")
    ended = _in_order(told)
    if not len(ended):
        return Window(start_s=0.0, end_s=end_s, rule="no request ended")
    if not ended.ok.any():  # given up at once, mostly: nothing to settle
        return Window(start_s=0.0, end_s=end_s, rule="no request succeeded: the whole run")
    if scenario.stop.decide and len(over := hopeless(ended, scenario)):
        rule = f"{GIVEN_UP}: far beyond the SLO and not recovering"
        return Window(start_s=over.records[0].end_s, end_s=end_s, rule=rule)
    ramped_s = _ramped_s(told, scenario, ended)
    after = ended.at(ended.ok & (ended.end_s >= ramped_s))
    skip = stats.mser5(after.e2e_s)
    after_s = after.records[skip - 1].end_s if skip else 0.0
    # Just after the last one that is left out, or it would be counted and QPS be too high.
    start_s = ramped_s if skip == 0 else max(ramped_s, math.nextafter(after_s, math.inf))
    rule = "ramp-in and one cycle left out"
    if isinstance(load, ClosedLoop) and load.users_before is not None:
        rule = f"hand-over from {load.users_before} users left out"
    if skip:
        rule += f", {skip} more requests of warm-up ({MSER})"
    return Window(start_s=min(start_s, end_s), end_s=end_s, rule=rule + ", drain cut off")


def _ramped_s(told: Columns, scenario: Scenario, ended: Columns) -> float:
    """When the load was as it shall be, and what came before it had worn off.

    One mean cycle after the last user's first request. Where a population lived on from another
    load, it is the part of a cycle that is the part of the population that is new; where users
    left, one response more. Open loop: one response after the start; where sessions arrive, the
    longest of them after it, for until then there are too few of their later turns.
    """
    response_s = float(np.mean(ended.e2e_s[: max(1, len(ended) // 2)]))
    load = scenario.load
    if isinstance(load, OpenLoop):
        think_s = load.think_mean_s
        if think_s is None:
            return response_s
        return (1 + float(told.turn.max())) * (response_s + think_s)
    last_s = float(joined(told, load).max(initial=0.0))
    cycle_s = response_s + load.think_mean_s
    if load.users_before is None:
        return last_s + cycle_s
    # Those who left were in flight for one response more; what is new of the population settles.
    left_s = response_s if load.users < load.users_before else 0.0
    changed = abs(load.users - load.users_before) / max(load.users, load.users_before)
    return last_s + left_s + changed * cycle_s


def _leaving_s(told: Columns, load: ClosedLoop) -> float:
    """How long those who are too many take to leave: a mean response, or nobody leaves."""
    if load.users_before is None or load.users >= load.users_before or not len(told):
        return 0.0
    return float(np.mean(told.e2e_s))


def newcomers(load: ClosedLoop) -> int:
    """How many users start in the run; those who went on into it from before do not."""
    return max(0, load.users - (load.users_before or 0))


def joined(told: Columns, load: ClosedLoop) -> stats.Floats:
    """When each newcomer that has come was first due, in seconds since the run's start."""
    new = (told.user >= (load.users_before or 0)) & (told.user < load.users)
    first_s: stats.Floats = np.full(load.users, math.inf)
    np.minimum.at(first_s, told.user[new].astype(np.int64), told.planned_s[new])
    return first_s[np.isfinite(first_s)]


def drift(values: Sequence[float] | stats.Floats) -> float | None:
    """Relative change from the first to the second half if it is large and significant.

    Significance is judged on 20 batch means a half apart (Welch's t), because neighbours in time
    are correlated. None where the series is stationary as far as can be told.
    """
    data = np.asarray(values, dtype=np.float64)
    size = len(data) // 20
    if size < 2:
        return None
    means = data[len(data) - 20 * size :].reshape(20, size).mean(axis=1)
    first, second = means[:10], means[10:]
    gap = float(second.mean() - first.mean())
    error = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 10)
    level = float(means.mean())
    if level <= 0 or abs(gap) / level < DRIFT_SHARE:
        return None
    bar = stats.t_quantile((1 + DRIFT_CONFIDENCE) / 2, 9)  # 9: no equal variances assumed
    return gap / level if error == 0 or abs(gap) / error > bar else None


def slo_drift(told: Columns, window: Window, scenario: Scenario) -> float | None:
    """The drift of response times, or of a limited figure by a part of its limit that matters.

    Where warm-up seems to fill more than `WARM_UP_SHARE` of what followed the ramp it is no
    warm-up that was left out but a trend, and all that followed the ramp is tested.

    A first-token latency may double while the response time hardly moves. Changes of less than
    `DRIFT_OF_LIMIT` of a limit are let be: an idle server's few milliseconds may wander.
    """
    inside, ended = counted(told, window), _in_order(told)
    if not len(inside):
        return None
    after_s = min(window.start_s, _ramped_s(told, scenario, ended))
    after = (after_s <= ended.end_s) & (ended.end_s <= window.end_s)
    trend = len(inside) < (1 - WARM_UP_SHARE) * int(after.sum())
    tested = ended.at(after) if trend else inside
    good = tested.at(tested.ok)
    found = drift(good.e2e_s)
    for limit in scenario.slo.limits:
        seen = present(verdict.figures(limit.metric, good, server=scenario.timings == "server"))
        change = drift(seen)
        if found is None and change is not None:
            moved_s = abs(change) * float(np.mean(seen))
            found = change if moved_s > DRIFT_OF_LIMIT * limit.at_most_s else None
    return found


def little_gap(
    scenario: Scenario, requests_per_s: float, response_s: float, requests: int
) -> float | None:
    """Users that Little's law implies, where they are too far from those that there are.

    None where the law holds as well as can be told from that many requests, and for open-loop
    load, whose population is not known beforehand.

    Source:
        Little, A proof for the queuing formula L = lambda W, Oper. Res. 9 (1961).
    """
    load = scenario.load
    if not isinstance(load, ClosedLoop):
        return None
    implied = requests_per_s * (response_s + load.think_mean_s)
    allowed = max(LITTLE_SHARE, LITTLE_NOISE / math.sqrt(max(1, requests)))
    return implied if abs(implied - load.users) > allowed * load.users else None


class Enough:
    """Tells a driver when a run may stop; it sees the time and the ended requests only."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._records: list[Record] = []
        self._came_s: list[float] = []
        self._watched = scenario.stop.decide and flow.watched(scenario)
        self._count = 0
        self._look_again = scenario.stop.requests
        load = scenario.load
        self._look_for_hope = 2 * HOPELESS_LEAST
        self._failed_in_a_row = 0
        self._one_was_well = False
        self._by_count = isinstance(load, ClosedLoop) and (
            load.queue is not None or load.each is not None
        )
        self._by_count = self._by_count or (isinstance(load, OpenLoop) and load.arrivals == "trace")

    def note(self, record: Record) -> None:
        """One more request has ended."""
        self._count += 1
        if self._scenario.stop.duration_s is None:  # else they decide nothing
            self._records.append(record)
        self._one_was_well = self._one_was_well or record.ok
        self._failed_in_a_row = 0 if record.ok else self._failed_in_a_row + 1

    def came(self, planned_s: float) -> None:
        """One more request was sent, answered or not."""
        if self._watched:
            self._came_s.append(planned_s)

    def reason(self, now_s: float) -> str | None:
        """Why the run may stop now; None: it must go on."""
        stop = self._scenario.stop
        if self._count >= HOPELESS and not self._one_was_well:
            return f"none of the first {self._count} requests succeeded"
        if self._failed_in_a_row >= DEAD:
            return f"the last {self._failed_in_a_row} requests all failed"
        if stop.duration_s is not None:
            return f"{stop.duration_s:g} s passed" if now_s >= stop.duration_s else None
        if now_s >= stop.max_duration_s:
            if self._watched and self._state(now_s) != "settled":
                return f"{UNSETTLED} within the longest time allowed ({stop.max_duration_s:g} s)"
            return f"the longest time allowed ({stop.max_duration_s:g} s) passed"
        if self._by_count:
            return None  # the feed runs dry by itself
        if stop.decide and len(self._records) >= self._look_for_hope:
            self._look_for_hope = len(self._records) + max(10, len(self._records) // 10)
            if (reason := self._no_hope(now_s)) is not None:
                return reason
        if len(self._records) < self._look_again:
            return None
        # Looking costs time in proportion to the records, so look when there are 10% more.
        self._look_again = len(self._records) + max(10, len(self._records) // 10)
        return self._enough(now_s)

    def _state(self, now_s: float) -> str:
        """Of the queue: settled, growing, or unclear."""
        told = flow.flow(self._came_s, self._records, self._scenario, now_s)
        return "unclear" if told is None else told.state

    def _no_hope(self, now_s: float) -> str | None:
        """Why there is no steady state to wait for, or it fails by far; None: there is hope.

        In an open loop the two are told from each other, as far as that is cheap.
        """
        count, wanted = len(self._records), self._scenario.stop.requests
        state = self._state(now_s) if self._watched else "settled"
        if state == "growing" and count >= wanted:
            return GROWING
        if self._watched and count < (wanted if state == "settled" else PATIENCE * wanted):
            return None
        if self._watched and now_s < LOOK * self._scenario.stop.least_s:
            return None  # too soon to see whether the queue grows, which tells more
        if len(hopeless(Columns(self._records), self._scenario)):
            return f"{GIVEN_UP}: far beyond the SLO and not recovering"
        return None

    def _enough(self, now_s: float) -> str | None:
        told = Columns(self._records)
        window = window_of(told, self._scenario, now_s)
        inside = last_tries(counted(told, window).records, self._scenario.retries)
        wanted = self._scenario.stop.requests
        if len(inside) < wanted:
            return None
        # Failures among them: a request that is refused at once makes a short cycle, but it is one.
        response_s = float(np.mean([r.e2e_s for r in inside]))
        cycle_s = response_s + self._think_s()
        if window.end_s - window.start_s < max(CYCLES * cycle_s, self._scenario.stop.least_s):
            return None
        if self._watched and self._state(now_s) != "settled":
            return None
        if slo_drift(told, window, self._scenario) is not None:
            return None
        qps = len(inside) / (window.end_s - window.start_s)
        if little_gap(self._scenario, qps, response_s, len(inside)) is not None:
            return None  # a wave of users that think and send together is cut in the middle
        return f"{len(inside)} requests ended in a stationary window"

    def _think_s(self) -> float:
        load = self._scenario.load
        return load.think_mean_s if isinstance(load, ClosedLoop) else 0.0

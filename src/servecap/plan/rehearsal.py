"""Simulations of a fleet: as many of its routers as decide, or all of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import fmean, stdev

import msgspec

from servecap import cluster
from servecap.engine import fast
from servecap.engine.fleet import Ended, joined
from servecap.engine.spec import instance
from servecap.plan.demand import Profile
from servecap.plan.router import PER_ROUTER, Shard, Traffic, play_shard, shards
from servecap.slo import Limit, Slo
from servecap.stats import t_quantile

FIRST = 4  # runs of a router that every simulation has at least: they tell how runs differ
MOST_SEEDS = 16  # runs of a fleet that has fewer routers than that
CONFIDENCE = 0.95  # that the mean over all routers lies in the interval
LEVELS_MAX = 24  # of a day
_SLOW_GROUP = 4  # instances, where nothing is compiled
_PARALLEL_FROM = 20_000  # requests; fewer are done before the processes are there

Watch = Callable[[int, int], None]  # how many of how many simulations of a router are done


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """What the users of one simulation see. `runs`: of one router each, `instances` in all."""

    traffic: Traffic
    runs: tuple[Ended, ...]
    seen: Ended  # all runs together
    instances: int
    routers: int  # that the fleet has

    @property
    def whole(self) -> bool:
        return len(self.runs) >= self.routers and self.instances >= self.traffic.instances

    @property
    def in_flight(self) -> float:
        """Requests at an instance on average, by Little's law."""
        mean_s = self.seen.mean("e2e")
        if mean_s is None:
            return 0.0
        return self.seen.answered / self.seen.window_s * mean_s / self.instances

    @property
    def requests_per_s(self) -> float:
        """Of the whole fleet."""
        rate = (self.seen.answered + self.seen.failed) / self.seen.window_s
        return rate * self.traffic.instances / self.instances

    def half_width(self, limit: Limit) -> float | None:
        """Half the interval of the limit's statistic over runs, seconds; None: it has none.

        Source: Student's t over independent runs, each of which gives one value.
        """
        values = [figure(run, limit) for run in self.runs]
        known = [value for value in values if value is not None and math.isfinite(value)]
        if len(known) < max(2, len(values)):
            return None
        t = t_quantile((1 + CONFIDENCE) / 2, len(known) - 1)
        return t * stdev(known) / math.sqrt(len(known))

    def decided(self, limit: Limit) -> bool:
        """Whether the whole interval lies on one side of the limit, or there is none."""
        half = self.half_width(limit)
        if half is None:
            return True
        values = [figure(run, limit) for run in self.runs]
        return abs(fmean(v for v in values if v is not None) - limit.at_most_s) >= half


def figure(seen: Ended, limit: Limit) -> float | None:
    """The statistic that the limit is about; percentiles by nearest rank."""
    if limit.quantile is None:
        return seen.mean(limit.metric)
    return seen.quantile(limit.metric, limit.quantile)


def levels(profile: Profile, users: int) -> list[int]:
    """The day's different numbers of users, its busiest being *users*; the busiest comes first.

    Where a day has more than 24 of them, each is rounded up to the nearest of 24.
    """
    found = {max(1, math.ceil(users * v / profile.peak - 1e-9)) for v in profile.values}
    ordered = sorted(found, reverse=True)
    if len(ordered) <= LEVELS_MAX:
        return ordered
    return [ordered[k * len(ordered) // LEVELS_MAX] for k in range(LEVELS_MAX)]


def rehearse(
    cases: Sequence[Traffic],
    slo: Slo,
    *,
    workers: int | None = None,
    ray: str | None = None,
    whole: bool = False,
    watch: Watch = lambda _done, _total: None,
) -> list[Rehearsed]:
    """Each case simulated by four of its routers, and by more until it is clear of the limits.

    Routers are independent of each other, and alike but for their draws and at most one instance:
    four tell the mean and how far it may be off, and their number is doubled while the interval
    holds a limit, up to all there are. A fleet of fewer routers is simulated with other seeds,
    too, up to 16 runs. Runs are spread over *workers* processes (None: the cores).

    Args:
        ray: address of a Ray cluster; runs are spread over its cores instead.
        whole: every router in any case.
        watch: told as runs end.
    Raises:
        UsageError: a model or GPU is not known to the engine model; the cluster is of no use.
    """
    for case in dict.fromkeys(cases):
        instance(case.spec)  # a name that is not known is told here, not in a worker
    groups = [_runs(case if fast.COMPILED else _small(case)) for case in cases]
    routers = [sum(shard.traffic.seed == group[0].traffic.seed for shard in group)
               for group in groups]  # fmt: skip
    counts = [
        min(len(group), max(FIRST, own if whole else 0))
        for group, own in zip(groups, routers, strict=True)
    ]
    seen: dict[Shard, Ended] = {}
    while True:
        wanted = [s for group, n in zip(groups, counts, strict=True) for s in group[:n]]
        fresh = [shard for shard in _by_size(wanted) if shard not in seen]
        seen |= zip(fresh, _played(fresh, workers, ray, watch), strict=True)
        found = [
            _rehearsed(case, group[:n], own, seen)
            for case, group, n, own in zip(cases, groups, counts, routers, strict=True)
        ]
        more = [
            k for k, one in enumerate(found)
            if counts[k] < len(groups[k]) and not all(map(one.decided, slo.limits))
        ]  # fmt: skip
        if not more:
            return found
        for k in more:
            counts[k] = min(len(groups[k]), 2 * counts[k])


def _rehearsed(
    case: Traffic, group: Sequence[Shard], routers: int, seen: dict[Shard, Ended]
) -> Rehearsed:
    runs = tuple(seen[shard] for shard in group)
    instances = sum(shard.instances for shard in group)
    return Rehearsed(
        traffic=case, runs=runs, seen=joined(runs), instances=instances, routers=routers
    )


def _runs(case: Traffic) -> list[Shard]:
    """The routers of the case; where they are few, again with other seeds."""
    found = shards(case)
    if not fast.COMPILED:
        return found
    seed = case.seed
    while len(found) < MOST_SEEDS:
        seed += 1
        again = shards(msgspec.structs.replace(case, seed=seed))
        if len(found) + len(again) > MOST_SEEDS and len(found) >= FIRST:
            break
        found += again
    return found


def _small(case: Traffic) -> Traffic:
    """A few instances with users in proportion."""
    count = min(_SLOW_GROUP, case.instances)
    users = max(1, math.ceil(case.users * count / case.instances - 1e-9))
    return msgspec.structs.replace(case, instances=count, users=users)


def _by_size(flat: Sequence[Shard]) -> list[Shard]:
    """Each once, the largest first: so the processes end at about the same time."""
    return sorted(dict.fromkeys(flat), key=lambda s: -s.users * s.traffic.cycles)


def _played(
    flat: Sequence[Shard], workers: int | None, ray: str | None, watch: Watch
) -> list[Ended]:
    if ray is not None:
        return _watched(cluster.spread(ray, play_shard, flat), len(flat), watch)
    workers = min(workers or os.cpu_count() or 1, len(flat))
    requests = sum(shard.users * shard.traffic.cycles for shard in flat)
    if workers <= 1 or (fast.COMPILED and requests < _PARALLEL_FROM):
        return [play_shard(shard) for shard in flat]
    play_shard(_first_seconds(flat[-1]))  # compiled once, before the processes need it
    with ProcessPoolExecutor(max_workers=workers) as pool:
        return _watched(pool.map(play_shard, flat), len(flat), watch)


def _watched(ends: Iterable[Ended], total: int, watch: Watch) -> list[Ended]:
    found: list[Ended] = []
    for ended in ends:
        found.append(ended)
        watch(len(found), total)
    return found


def _first_seconds(shard: Shard) -> Shard:
    traffic = msgspec.structs.replace(shard.traffic, cycle_s=1e-3)
    return msgspec.structs.replace(shard, traffic=traffic, users=1, instances=1)


def described(rehearsed: Sequence[Rehearsed], engine: str) -> str:
    """Which part of the fleet was simulated, in words."""
    first = rehearsed[0]
    traffic, count = first.traffic, len(first.runs)
    behind = (
        "one router"
        if first.routers == 1
        else f"{first.routers} routers of up to {PER_ROUTER} instances"
    )
    if first.whole:
        known = (
            f"all {traffic.instances:,} instances" if traffic.instances > 1 else "the one instance"
        )
        what = f"{known} and {traffic.users:,} users behind {behind}"
        if count > first.routers:
            what += f", {-(-count // first.routers)} times with different seeds"
    else:
        what = f"{first.instances:,} of {traffic.instances:,} equal instances, behind {behind}"
        what += f": {count} independent runs, which tell how far the means may be off"
    if not fast.COMPILED:
        what += " (pip install 'servecap[fast]' to simulate more)"
    parts = [r for r in rehearsed[1:] if not r.whole]
    if parts and fast.COMPILED:
        least, most = (f(len(r.runs) for r in parts) for f in (min, max))
        runs = f"{least}" if least == most else f"{least} to {most}"
        what += f"; {runs} routers stand for all in {len(parts)} of {len(rehearsed)} simulations"
    return f"{what}, engine model {engine}"

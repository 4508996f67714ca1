"""Simulations of a fleet: all of its instances, as far as the requests can be afforded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import msgspec

from servecap.engine import fast
from servecap.engine.fleet import Ended, joined
from servecap.engine.spec import instance
from servecap.plan.demand import Profile
from servecap.plan.router import PER_ROUTER, Shard, Traffic, play_shard, shards

REQUESTS_MAX = 120e6  # of all simulations of one choice: minutes on two cores
LEVELS_MAX = 24  # of a day
_SLOW_GROUP = 4  # instances, where nothing is compiled
_PARALLEL_FROM = 20_000  # requests; fewer are done before the processes are there


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """What the users of one simulation see, and how many of the fleet's instances it had."""

    traffic: Traffic
    seen: Ended
    instances: int

    @property
    def whole(self) -> bool:
        return self.instances == self.traffic.instances

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


def levels(profile: Profile, users: int) -> list[int]:
    """The day's different numbers of users, its busiest being *users*; the busiest comes first.

    Where a day has more than 24 of them, each is rounded up to the nearest of 24.
    """
    found = {max(1, math.ceil(users * v / profile.peak - 1e-9)) for v in profile.values}
    ordered = sorted(found, reverse=True)
    if len(ordered) <= LEVELS_MAX:
        return ordered
    return [ordered[k * len(ordered) // LEVELS_MAX] for k in range(LEVELS_MAX)]


def rehearse(cases: Sequence[Traffic], workers: int | None = None) -> list[Rehearsed]:
    """Each case simulated, the first ones whole; once the requests are too many, by one router.

    Routers are independent of each other and spread over *workers* processes (None: the cores).

    Raises:
        UsageError: a model or GPU is not known to the engine model.
    """
    for case in dict.fromkeys(cases):
        instance(case.spec)  # a name that is not known is told here, not in a worker
    chosen = _afforded(cases)
    flat = [shard for group in chosen for shard in group]
    seen = dict(zip(_by_size(flat), _played(_by_size(flat), workers), strict=True))
    return [
        Rehearsed(
            traffic=case,
            seen=joined([seen[shard] for shard in group]),
            instances=sum(shard.instances for shard in group),
        )
        for case, group in zip(cases, chosen, strict=True)
    ]


def _afforded(cases: Sequence[Traffic]) -> list[list[Shard]]:
    """The routers of each case that are simulated."""
    found, spent = [], 0.0
    for case in cases:
        group = shards(case if fast.COMPILED else _small(case))
        if spent + case.users * case.cycles > REQUESTS_MAX:
            group = group[:1]
        spent += sum(shard.users for shard in group) * case.cycles
        found.append(group)
    return found


def _small(case: Traffic) -> Traffic:
    """A few instances with users in proportion."""
    count = min(_SLOW_GROUP, case.instances)
    users = max(1, math.ceil(case.users * count / case.instances - 1e-9))
    return msgspec.structs.replace(case, instances=count, users=users)


def _by_size(flat: Sequence[Shard]) -> list[Shard]:
    """Each once, the largest first: so the processes end at about the same time."""
    return sorted(dict.fromkeys(flat), key=lambda s: -s.users * s.traffic.cycles)


def _played(flat: Sequence[Shard], workers: int | None) -> list[Ended]:
    workers = min(workers or os.cpu_count() or 1, len(flat))
    requests = sum(shard.users * shard.traffic.cycles for shard in flat)
    if workers == 1 or (fast.COMPILED and requests < _PARALLEL_FROM):
        return [play_shard(shard) for shard in flat]
    play_shard(_first_seconds(flat[-1]))  # compiled once, before the processes need it
    with ProcessPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(play_shard, flat))


def _first_seconds(shard: Shard) -> Shard:
    traffic = msgspec.structs.replace(shard.traffic, cycle_s=1e-3)
    return msgspec.structs.replace(shard, traffic=traffic, users=1, instances=1)


def described(rehearsed: Sequence[Rehearsed], engine: str) -> str:
    """Which part of the fleet was simulated, in words."""
    first = rehearsed[0].traffic
    routers = -(-first.instances // PER_ROUTER)
    behind = "one router" if routers == 1 else f"{routers} routers of up to {PER_ROUTER} instances"
    if rehearsed[0].whole:
        known = f"all {first.instances:,} instances" if first.instances > 1 else "the one instance"
        what = f"{known} and {first.users:,} users behind {behind}"
    else:
        what = f"{rehearsed[0].instances} of {first.instances:,} equal instances"
    if not fast.COMPILED:
        what += " (pip install 'servecap[fast]' to simulate all)"
    parts = [r for r in rehearsed if not r.whole]
    if rehearsed[0].whole and parts:
        part = parts[0].instances
        what += f"; for {len(parts)} of {len(rehearsed)} simulations {part:,} of them stand for all"
    return f"{what}, engine model {engine}"

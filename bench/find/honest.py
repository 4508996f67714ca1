"""How often a clean answer is wrong: `python bench/find/honest.py [SEEDS PER KIND] [FIRST SEED]`.

Every search is on a service of known capacity (TTFT = users / capacity) that changes with time, or
whose measurement cannot be believed from some number of users on. An answer is *clean* if it names
an interval and says neither INVALID nor UNSURE; it is wrong if the interval misses the capacity
that the service had at every moment of the last three levels.
"""

from __future__ import annotations

import heapq
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from servecap import rand, slo
from servecap.errors import InvalidRun
from servecap.record import Outcome, Record, Times, TokenSource
from servecap.run import Header, Run, Status
from servecap.scenario import ClosedLoop, Scenario, Target
from servecap.search import SearchResult, find

LEVEL_S = 60.0
ASKED = Scenario(load=ClosedLoop(users=1), slo=slo.parse("ttft.mean<1s"))
Slowness = Callable[[float], float]  # of a moment in seconds: times the TTFT of a steady service


@dataclass
class Service:
    """Answers levels of users, one after another on its own clock."""

    seed: int
    capacity: float
    slowness: Slowness = lambda _: 1.0
    fault: str = ""
    from_users: float = math.inf
    now_s: float = 0.0
    ends_s: list[float] = field(default_factory=list)

    def __call__(self, asked: Scenario) -> Run:
        users = asked.users
        assert users is not None
        rng = random.Random(rand.derive(asked.seed, "service"))
        cycle_s = users / self.capacity + 3
        end_s = max(LEVEL_S, 1.6 * asked.stop.requests * cycle_s / users)
        faulty = users >= self.from_users
        due = [(i * cycle_s / users, i) for i in range(users)]
        records: list[Record] = []
        while due[0][0] < end_s:
            planned_s, user = heapq.heappop(due)
            ttft_s = users / self.capacity * rng.lognormvariate(-0.045, 0.3)
            ttft_s *= self.slowness(self.now_s + planned_s)
            record = self._record(len(records), user, planned_s, ttft_s, end_s)
            records.append(_spoilt(record, self.fault) if faulty else record)
            heapq.heappush(due, (record.end_s + rng.uniform(1, 3), user))
        self.now_s += end_s
        self.ends_s.append(self.now_s)
        header = Header(
            scenario=asked, target=Target(url="x", api="x"), servecap_version="0",
            source="measured", started_utc="2026-01-01T00:00:00+00:00",
            status=Status.COMPLETE, load_end_s=end_s,
        )  # fmt: skip
        return Run(header=header, records=records)

    def _record(
        self, number: int, user: int, planned_s: float, ttft_s: float, end_s: float
    ) -> Record:
        first_s, done_s = planned_s + ttft_s, planned_s + ttft_s + 1.0
        return Record(
            request_id=number, user=user, planned_s=planned_s, sent_s=planned_s, end_s=done_s,
            outcome=Outcome.OK if done_s <= end_s else Outcome.CENSORED, first_token_s=first_s,
            chunk_s=Times([first_s, done_s]), prompt_tokens=100, output_tokens=50,
            asked_output_tokens=50, exact_output=True, token_source=TokenSource.SERVER,
        )  # fmt: skip

    def capacities(self) -> tuple[float, float]:
        """The smallest and the largest that it had during the last three levels."""
        since_s = self.ends_s[-4] if len(self.ends_s) > 3 else 0.0
        moments = [since_s + (self.now_s - since_s) * k / 200 for k in range(201)]
        found = [self.capacity / self.slowness(now_s) for now_s in moments]
        return min(found), max(found)


def _spoilt(record: Record, fault: str) -> Record:
    """The record as it is where that cannot be believed."""
    change = msgspec.structs.replace
    match fault:
        case "client late":
            return change(record, sent_s=record.planned_s + 0.1)
        case "prefix cache":
            # A prompt that is known needs no prefill: the service looks better than it is.
            first_s = record.planned_s + 0.3 * (record.chunk_s[0] - record.planned_s)
            return change(record, cached_tokens=80, first_token_s=first_s)
        case "short answers":
            return change(record, output_tokens=20)
        case "429" if record.request_id % 5 == 0 and record.ok:
            return change(record, outcome=Outcome.HTTP_ERROR, status=429)
        case _:
            return record


def slow(rng: random.Random) -> Slowness:
    """Slower and slower: by 10 to 60% over half an hour."""
    by = rng.uniform(0.1, 0.6)
    return lambda now_s: 1 + by * now_s / 1800


def step(rng: random.Random) -> Slowness:
    """At once slower, by 15 to 100%."""
    at_s, by = rng.uniform(120, 720), rng.uniform(0.15, 1.0)
    return lambda now_s: 1 + by * (now_s > at_s)


def warm_up(rng: random.Random) -> Slowness:
    """Slow at first, by 30 to 100%, and well after some minutes."""
    by, of_s = rng.uniform(0.3, 1.0), rng.uniform(60, 300)
    return lambda now_s: 1 + by * math.exp(-now_s / of_s)


def throttled(rng: random.Random) -> Slowness:
    """Hot after 3 to 12 minutes: 20 to 80% slower, within a minute."""
    at_s, by = rng.uniform(180, 720), rng.uniform(0.2, 0.8)
    return lambda now_s: 1 + by * min(1.0, max(0.0, (now_s - at_s) / 60))


def shared(rng: random.Random) -> Slowness:
    """Somebody else uses it every few minutes: 20 to 60% slower then."""
    every_s, by = rng.uniform(240, 600), rng.uniform(0.2, 0.6)
    return lambda now_s: 1 + by * (now_s % every_s > every_s / 2)


CHANGES = {"slow": slow, "step": step, "warm-up": warm_up, "throttled": throttled,
           "shared": shared}  # fmt: skip
FAULTS = ("client late", "prefix cache", "short answers", "429")


def service(kind: str, seed: int) -> Service:
    """A service of that kind; the seed decides everything."""
    rng = random.Random(f"{kind}/{seed}")
    capacity = math.exp(rng.uniform(math.log(12), math.log(60)))
    if kind in CHANGES:
        return Service(seed, capacity, CHANGES[kind](rng))
    return Service(seed, capacity, fault=kind, from_users=capacity * rng.uniform(0.2, 1.3))


def outcome(subject: Service) -> tuple[str, float]:
    """invalid, unsure, right or WRONG; of a wrong one, how far off as a share."""
    asked = msgspec.structs.replace(ASKED, seed=subject.seed)
    try:
        found: SearchResult = find(subject, asked, precision=0.05)
    except InvalidRun:
        return "invalid", 0.0
    high = found.capacity.users_high
    if found.unsure is not None or high is None:
        return "unsure", 0.0
    assert found.estimate is not None
    least, most = subject.capacities()
    if math.floor(least) <= high and math.floor(most) >= found.estimate.low:
        return "right", 0.0
    return "WRONG", max(least / high - 1, found.estimate.low / most - 1)


def main(seeds: int, first: int) -> None:
    """Prints how the searches ended, by kind, and the seeds of those that were clean and wrong."""
    wrong, count = 0, 0
    for kind in ("steady", *CHANGES, *FAULTS):
        ends = [outcome(service(kind, seed)) for seed in range(first, first + seeds)]
        tally = Counter(end for end, _ in ends)
        worst = max(off for _, off in ends)
        if kind != "steady":
            wrong, count = wrong + tally["WRONG"], count + seeds
        told = "  ".join(f"{end} {tally[end]}" for end in ("right", "unsure", "invalid", "WRONG"))
        wrongs = [first + i for i, (end, _) in enumerate(ends) if end == "WRONG"]
        told += f"  off by up to {worst:.1%}, seeds {wrongs}" if wrongs else ""
        print(f"{kind:14} {told}", flush=True)
    print(f"clean and wrong, of those that are not steady: {wrong} of {count}")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [25, 0][len(given) :]))

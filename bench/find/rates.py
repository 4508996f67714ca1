"""`find --rate` on queues whose capacity is known by formula: `python bench/find/rates.py 8`.

`rates.py 200:203 0.2 single many`: seeds 200 to 202, a precision of 20%, two shapes only.
"""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from servecap import slo
from servecap.errors import InvalidRun
from servecap.scenario import OpenLoop, Scenario
from servecap.search.rate import RateResult, find_rate

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "search"))
from queues import TOKEN_S, Live, Queue

SHAPES = ("saturation", "single", "many", "tail", "slow", "cliff", "ageing", "endless")
MOST_RPS = 400.0


@dataclass(frozen=True)
class Subject:
    """A server, the SLO that it is held to, and the largest rate that keeps it."""

    shape: str
    server: Queue
    slo: str
    truth_rps: float | None  # None: there is no limit, or none that lasts


def subject(shape: str, seed: int) -> Subject:
    """A random server of that shape."""
    rng = random.Random(f"{shape}/{seed}")
    rate = math.exp(rng.uniform(math.log(4), math.log(40)))
    slots = rng.choice([8, 24, 64])
    cv = rng.choice([0.3, 0.7, 1.0])
    many = Queue(slots, slots / rate, cv)
    match shape:
        case "saturation":  # no limit of the SLO is touched by a queue
            return Subject(shape, many, "tpot.mean<100ms", many.rate_rps)
        case "single":
            server = Queue(1, 1 / rate, rng.choice([0.0, 0.5, 1.0]))
            return _waiting(shape, server, rng.uniform(1.5, 30) / rate)
        case "many":
            return _waiting(shape, Queue(slots, slots / rate, 1.0), rng.uniform(1, 30) / rate)
        case "tail":
            server = Queue(slots, slots / rate, 1.0)
            return _tail(server, rng.choice([0.9, 0.95]), rng.uniform(3, 60) / rate)
        case "slow":
            most = rng.uniform(1.3, 3)
            server = Queue(
                10**6, rng.uniform(0.5, 3), cv, first_share=0.0, slow_rps=rate, scatter=0.4
            )
            limit_s = TOKEN_S * most
            return Subject(shape, server, f"tpot.mean<{limit_s:.6f}s", rate * (most - 1))
        case "cliff":
            thrash = rng.uniform(1.5, 4)
            server = Queue(slots, slots / rate / thrash, cv, cliff=slots // 2, thrash=thrash)
            return Subject(shape, server, "tpot.mean<10s", rate)
        case "ageing":
            server = Queue(slots, slots / rate, cv, ageing=rng.uniform(1, 4))
            return Subject(shape, server, "tpot.mean<1s", None)
        case _:
            server = Queue(10**6, rng.uniform(0.2, 0.5), cv, scatter=0.3)
            return Subject(shape, server, "tpot.mean<1s", None)


def _waiting(shape: str, server: Queue, limit_s: float) -> Subject:
    """Held to a mean TTFT: the wait and the first part of the service."""
    first_s = server.first_share * server.service_s
    low, high = 0.0, server.rate_rps
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if server.mean_wait_s(middle) <= limit_s else (low, middle)
    return Subject(shape, server, f"ttft.mean<{limit_s + first_s:.6f}s", low)


def _tail(server: Queue, share: float, limit_s: float) -> Subject:
    first_s = server.first_share * server.service_s
    low, high = 0.0, server.rate_rps
    for _ in range(60):
        middle = (low + high) / 2
        holds = server.wait_over(middle, limit_s) <= 1 - share
        low, high = (middle, high) if holds else (low, middle)
    return Subject("tail", server, f"ttft.p{100 * share:.0f}<{limit_s + first_s:.6f}s", low)


def main(seeds: range, shapes: list[str], precision: float) -> None:
    """Prints for each shape how often the interval holds the truth, and how wide it is."""
    started = time.perf_counter()
    rows: list[tuple[Subject, RateResult | None, float]] = []
    for seed in seeds:
        for shape in shapes:
            one = subject(shape, seed)
            live = Live(one.server, seed)
            scenario = Scenario(load=OpenLoop(rate_rps=1), slo=slo.parse(one.slo), seed=seed)
            try:
                found = find_rate(live, scenario, precision=precision, max_rate=MOST_RPS)
            except InvalidRun:
                found = None
            rows.append((one, found, live.spent_s))
            print(_one(*rows[-1], seed), flush=True)
    print(f"{len(rows)} servers, {time.perf_counter() - started:.0f} s")
    for shape in [*shapes, ""]:
        print(_line(shape or "all", [r for r in rows if shape in ("", r[0].shape)]))


def _one(one: Subject, found: RateResult | None, spent_s: float, seed: int) -> str:
    truth = "none" if one.truth_rps is None else f"{one.truth_rps:.2f}"
    if found is None:
        return f"  {one.shape:10} {seed:3} truth {truth:>6}  INVALID"
    c, high = found.capacity, found.capacity.rate_high_rps
    top = "none" if high is None else f"{high:.2f}"
    mark = "" if _holds(one, found) else "  MISSED"
    clean = "clean" if found.unsure is None else "unsure"
    return (
        f"  {one.shape:10} {seed:3} truth {truth:>6}  {c.rate_rps:.2f} to {top}  {clean:6} "
        f"{len(found.levels):2} levels {spent_s:6,.0f} s  {c.limited_by}{mark}"
    )


def _holds(one: Subject, found: RateResult) -> bool:
    high, truth = found.capacity.rate_high_rps, one.truth_rps
    if truth is None:
        return high is None if one.shape == "endless" else found.unsure is not None
    return found.capacity.rate_rps <= truth and (high is None or truth <= high)


def _line(name: str, rows: list[tuple[Subject, RateResult | None, float]]) -> str:
    told = [(one, found) for one, found, _ in rows if found is not None]
    held = sum(_holds(one, found) for one, found in told)
    wrong = sum(f.unsure is None and not _holds(one, f) for one, f in told)
    clean = sum(f.unsure is None for _, f in told)
    widths = [
        (f.capacity.rate_high_rps - f.capacity.rate_rps) / one.truth_rps
        for one, f in told
        if one.truth_rps is not None and f.capacity.rate_high_rps is not None
    ]
    width = f"{median(widths):5.1%}" if widths else "  n/a"
    spent = median(s for *_, s in rows) if rows else 0.0
    return (
        f"{name:12} right {held:3} of {len(told):3}  width {width}  clean {clean:3}, of them wrong "
        f"{wrong}  time {spent:6,.0f} s  INVALID {len(rows) - len(told)}"
    )


if __name__ == "__main__":
    seeds = range(*map(int, sys.argv[1].split(":"))) if len(sys.argv) > 1 else range(6)
    asked = sys.argv[3:] or list(SHAPES)
    main(seeds, asked, float(sys.argv[2]) if len(sys.argv) > 2 else 0.05)

"""Fault-injected runs by the thousand: is a finished record lost, is a bad run called clean?

    PYTHONPATH=src python bench/faults/runs.py --runs 1000 --seed 1

Each run draws its users, its requests, and which of them meet which fault from its own seed. The
server knows what it did to each request; afterwards the stored run is read back and held against
that. A machine that is busy may let a good request run into a timeout: those are counted, too.

The memory it prints is that of client and server in one process. A run in open loop may have some
twenty lines of 10 MB under way at once, each of which the server holds in several copies: 400 MiB
for a moment, 200 and more of which the allocator keeps. The client took at most 148 MiB for 12 such
lines as for 96, six at a time, with its server in another process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/loop"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/faults"))

import msgspec
import psutil
from drive import WORKLOAD, requests
from scripted import Server, serving

from faults import FAULTS, LIMITS, OK, PATIENT, number_of, replying
from servecap import slo
from servecap.measure import measure
from servecap.metrics import Verdict
from servecap.probe import Bench, TargetSpec, open_bench
from servecap.record import Message, Request
from servecap.run import Run, Status
from servecap.scenario import ClosedLoop, OpenLoop, Scenario, StopRule
from servecap.store import read_run
from servecap.summarize import summarize

SLO = slo.parse("ttft<9s,error_rate<5%")
SLOW = [name for name, fault in FAULTS.items() if fault.within_s is not None]
QUICK = [name for name in FAULTS if name not in SLOW]


BUSY = ("429 with Retry-After", "503")
RETRIED = 8  # faulty requests of a run with retries at most, for each waits a second


class Plan:
    """Which requests meet which fault; those in `passing` meet it only once."""

    def __init__(self) -> None:
        self.faults: dict[int, str] = {}
        self.passing: set[int] = set()
        self._asked: Counter[int] = Counter()

    def begin(self, faults: dict[int, str], passing: set[int]) -> None:
        self.faults, self.passing = faults, passing
        self._asked.clear()

    def next(self, number: int) -> str | None:
        """What happens to the request this time."""
        self._asked[number] += 1
        return None if self.is_over(number, self._asked[number]) else self.faults.get(number)

    def is_over(self, number: int, attempt: int) -> bool:
        return number in self.passing and attempt > 1


def drawn(rng: Random) -> tuple[Scenario, dict[int, str], set[int], int]:
    """A small run, the faults of its requests, which of them pass, and the load processes."""
    users, count = rng.randint(1, 6), rng.randint(8, 30)
    if rng.random() < 0.3:
        count *= 12  # enough for a verdict
    share = rng.choice((0.0, 0.01, 0.03, 0.1, 0.3, 1.0))
    kinds = rng.sample(QUICK, rng.randint(1, 4)) + (
        rng.sample(SLOW, 1) if rng.random() < 0.1 else []
    )
    slow_left = 2
    plan: dict[int, str] = {}
    for number in range(count + users + 50):
        name = rng.choice(kinds)
        if rng.random() >= share or (name in SLOW and not slow_left):
            continue
        slow_left -= name in SLOW
        plan[number] = name
    load: ClosedLoop | OpenLoop = ClosedLoop(
        users=users, think_s=(0.0, 0.0), queue=max(users, count)
    )
    stop = StopRule()
    if rng.random() < 0.2:
        load, stop = OpenLoop(rate_rps=rng.uniform(20, 60)), StopRule(duration_s=0.4)
    # Tight limits only where a fault is to meet one: else a busy machine would, with good requests.
    slow = any(name in SLOW for name in plan.values())
    plan = {n: name for n, name in plan.items() if not (slow and name == "10 MB line")}
    scenario = Scenario(
        load=load,
        workload=WORKLOAD,
        timeouts=LIMITS if slow else PATIENT,
        stop=stop,
        slo=SLO,
        seed=rng.randrange(2**31),
        retries=rng.choice((0, 1, 2)) if len(plan) <= RETRIED else 0,
    )
    passing = {n for n, name in plan.items() if name in BUSY and rng.random() < 0.5}
    return scenario, plan, passing, 2 if rng.random() < 0.05 else 1


def wrong(run: Run, plan: Plan, asked: set[int]) -> Counter[str]:
    """What the run says otherwise than the server knows, which was *asked* these requests."""
    found: Counter[str] = Counter()
    bad = 0
    ids = [record.request_id for record in run.records]
    tries = {(record.request_id, record.attempt) for record in run.records}
    found["twice"] += len(ids) - len(tries)
    found["retries"] += sum(attempt > 1 for _, attempt in tries)
    found["gaps in tries"] += sum(at > 1 and (n, at - 1) not in tries for n, at in tries)
    if run.header.status is not Status.COMPLETE:
        found["not complete"] += 1
    found["lost records"] += len(asked - set(ids))
    ended_early = (run.header.stop_reason or "").startswith(("none of", "the last"))
    load = run.scenario.load
    if isinstance(load, ClosedLoop) and not ended_early:
        found["lost records"] += (load.queue or 0) - len(set(ids))
    for record in run.records:
        name = plan.faults.get(record.request_id)
        if plan.is_over(record.request_id, record.attempt):
            name = None
        wanted = OK if name is None else FAULTS[name].outcome
        bad += wanted is not OK and record.attempt == 1  # however well it went in the end
        if record.outcome is wanted or record.outcome == "censored":
            continue
        if record.outcome == "timeout":
            found["timeouts of good requests" if name is None else f"timeouts of {name!r}"] += 1
        elif wanted is not OK and record.ok:
            found["errors hidden"] += 1
        else:
            found["other outcome"] += 1
    summary = summarize(run)
    clean = summary.valid and summary.verdict is Verdict.PASS
    found["clean passes"] += clean
    found["wrong clean verdicts"] += clean and bad / max(1, len(set(ids))) > SLO.error_share_max
    return +found


def asking(mark: str) -> Iterator[Request]:
    """The requests of a run, which name it."""
    for request in requests():
        (question,) = request.messages
        said = Message("user", f"{question.content} {mark}")
        yield msgspec.structs.replace(request, messages=(said,))


def one(bench: Bench, server: Server, seed: int, plan: Plan, out: Path) -> tuple[Counter[str], int]:
    """One run, and how many records it has."""
    scenario, faults, passing, workers = drawn(Random(seed))
    mark = f"of run {seed}"
    plan.begin(faults, passing)
    server.asked.clear()
    run = measure(
        scenario, bench.prepared, asking(mark), response_guess_s=0.01, out=out, workers=workers
    )
    kept = read_run(out)
    own = [body for body in server.asked if mark.encode() in body]  # none of an earlier run's
    found = wrong(kept, plan, {number_of(body) for body in own})
    if [(r.request_id, r.attempt) for r in kept.records] != [
        (r.request_id, r.attempt) for r in run.records
    ]:
        found["stored otherwise"] += 1
    return found, len(kept.records)


def main() -> None:
    """All runs, one after another; the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    total: Counter[str] = Counter()
    plan = Plan()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serving(replying(plan.next)) as server:
        bench = open_bench(TargetSpec(url=server.url), WORKLOAD, PATIENT)
        for number in range(given.runs):
            out = Path(folder) / "run"
            found, records = one(bench, server, given.seed * 1_000_003 + number, plan, out)
            total += found + Counter({"runs": 1, "records": records, "faults": 0})
            for what in found.keys() - {"clean passes", "timeouts of good requests", "retries"}:
                print(f"run {number}: {what}: {found[what]}", file=sys.stderr, flush=True)
            shutil.rmtree(out)
            if (number + 1) % 50 == 0:
                told = dict(total) | {"rss_mib": psutil.Process().memory_info().rss >> 20}
                print(json.dumps(told), file=sys.stderr, flush=True)
    counted = (
        "runs", "records", "retries", "clean passes", "timeouts of good requests", "lost records",
        "twice", "gaps in tries", "errors hidden", "other outcome", "wrong clean verdicts",
    )  # fmt: skip
    figures = {name: total[name] for name in counted} | dict(total)
    figures["seconds"] = round(time.monotonic() - began_s)
    print(json.dumps(figures, indent=2))
    failed = total["lost records"] or total["wrong clean verdicts"] or total["errors hidden"]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

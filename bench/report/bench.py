"""What a report of many requests takes, part by part: `python bench/report/bench.py`.

A run of 100,000 requests of 120 chunks each is played out by arithmetic and kept in a folder, once;
then each part of `servecap report` runs on it, several times, each time in a process of its own,
and the medians of their CPU time are printed; then the whole command. With Chromium on the machine
the page is opened, too. The bars: written in 5 s, opened in 2 s.

Python keeps the bytecode of all modules, as it does of an installed package: one start before the
measured ones makes it, also where PYTHONDONTWRITEBYTECODE is set. `--no-bytecode` leaves it out.

Measured in November 2026, on a host whose speed wandered by a quarter while nothing else ran on it;
so old and new code by turns, four times each, without bytecode: 8.6 s of CPU before each figure was
read once for all (medians; least 7.3), 6.6 s after (least 5.7), and with bytecode 6.0 (least 4.5).
On a calmer day the old code took 5.3 s. The new one at a calmer hour, five times: 4.8 s of CPU
and of clock at the median (4.1 to 6.1, the longest being the first, which made the bytecode). In a
slow hour of December 2026, by turns: 5.7 s (5.6 to 6.1, five times); November's code 5.6 s (4.5 to
6.2, four times). In a calm one, with times and counts made from lists at once, and without looking
for garbage at the end: 2.5 s of CPU outside the kernel (2.5 to 2.6), 2.8 s before it (2.7 to 2.8),
by turns, seven times each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from servecap.record import Counts, Outcome, Record, Times, TokenSource, encode
from servecap.run import Header, Health, Status
from servecap.scenario import ClosedLoop, Scenario, StopRule, Target
from servecap.slo import parse
from servecap.store import RECORDS, RunWriter

PARTS = ("import", "read", "summarize", "text", "page")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)

_MEASURE = """
import json, sys, time
took, at = {}, time.process_time()
def part(name):
    global at
    now = time.process_time()
    took[name], at = now - at, now
from pathlib import Path
from servecap.report import html, text
from servecap.store import read_run, uncollected
from servecap.summarize import summarize
import servecap.cli.report
took["import"], at = time.process_time(), time.process_time()
with uncollected():  # as the command does
    run = read_run(Path(sys.argv[1])); part("read")
    summary = summarize(run); part("summarize")
    html.write_html(sys.argv[2], runs=[(run, summary)]); part("page")
    text.summary_text(run, summary); part("text")
print(json.dumps(took))
"""


def make(folder: Path, requests: int, chunks: int, users: int = 1000) -> None:
    """A run kept in *folder*: users who ask, read and think."""
    rng = random.Random(0)
    each = requests // users
    scenario = Scenario(
        load=ClosedLoop(users=users),
        slo=parse("ttft.p95<3s,tpot.mean<100ms"),
        stop=StopRule(duration_s=each * 7.0),
    )
    target = Target(url="http://127.0.0.1:8000", api="openai-chat", model="llama-13b")
    header = Header(
        scenario=scenario,
        target=target,
        source="measured",
        servecap_version="0.1.0",
        started_utc="2026-11-22T08:00:00Z",
        status=Status.COMPLETE,
        stop_reason="the time passed",
        load_end_s=each * 7.0,
        health=Health(loop_delay_p99_s=0.002, loop_delay_max_s=0.01, cpu_share=0.3),
    )
    made = (r for user in range(users) for r in _user(rng, user, each, chunks, users))
    writer = RunWriter(folder, header)
    writer.close(header)
    with open(folder / RECORDS, "wb") as lines:
        for record in sorted(made, key=lambda r: r.end_s):
            lines.write(encode(record) + b"\n")


def _user(rng: random.Random, user: int, each: int, chunks: int, users: int) -> list[Record]:
    at_s = 4.0 * user / users
    records = []
    for turn in range(each):
        first_s = at_s + rng.uniform(0.1, 0.6)
        step_s = rng.uniform(0.03, 0.04)
        times = [first_s + i * step_s * rng.uniform(0.999, 1.001) for i in range(chunks)]
        records.append(
            Record(
                request_id=user * each + turn,
                user=user,
                planned_s=at_s,
                sent_s=at_s + 0.0004,
                end_s=times[-1],
                outcome=Outcome.OK if rng.random() > 0.01 else Outcome.BROKEN_STREAM,
                first_token_s=times[0],
                chunk_s=Times(times),
                chunk_tokens=Counts([1] * chunks),
                prompt_tokens=rng.randint(20, 900),
                output_tokens=chunks,
                token_source=TokenSource.SERVER,
                status=200,
                finish_reason="length",
            )
        )
        at_s = times[-1] + rng.uniform(1, 3)
    return records


def command(folder: Path, page: Path, environment: dict[str, str]) -> tuple[float, float, float]:
    """The whole command: seconds of CPU, seconds on the clock, and MiB of memory at most."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "servecap", "report", str(folder), "--html", str(page)],
        check=True, capture_output=True, env=environment,
    )  # fmt: skip
    took_s = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return cpu_s, took_s, used.ru_maxrss / 1024


def parts(folder: Path, page: Path, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of CPU of each part."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder), str(page)],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def opened_s(page: Path) -> float:
    """Seconds until Chromium has loaded and laid out the page, without its own start."""

    def seconds(path: str) -> float:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            command = [
                str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                f"--user-data-dir={profile}", "--dump-dom", path,
            ]  # fmt: skip
            started = time.monotonic()
            subprocess.run(command, check=True, capture_output=True)
            return time.monotonic() - started

    return seconds(page.as_uri()) - seconds("about:blank")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=100_000)
    options.add_argument("--chunks", type=int, default=120)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--keep", type=Path, help="Folder of the run; made where it is not there.")
    options.add_argument("--no-bytecode", action="store_true", help="Compile at every start.")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        folder = given.keep or Path(aside) / "run"
        if not (folder / RECORDS).is_file():
            make(folder, given.requests, given.chunks)
        page = Path(aside) / "report.html"
        environment = os.environ | {"PYTHONPYCACHEPREFIX": str(Path(aside) / "bytecode")}
        environment["PYTHONDONTWRITEBYTECODE"] = "1" if given.no_bytecode else ""
        command(folder, page, environment)
        rounds = [parts(folder, page, environment) for _ in range(given.rounds)]
        wholes = [command(folder, page, environment) for _ in range(given.rounds)]
        cpu_s, took_s, memory = map(statistics.median, zip(*wholes, strict=True))
        size = (folder / RECORDS).stat().st_size
        print(f"{given.requests:,} requests x {given.chunks} chunks, {size / 2**20:,.0f} MiB")
        told = {name: statistics.median(r[name] for r in rounds) for name in PARTS}
        for name, part_s in told.items():
            print(f"{name:10} {part_s:6.2f} s CPU")
        print(f"{'command':10} {cpu_s:6.2f} s CPU, {took_s:.2f} s on the clock (bar: 5 s)")
        print(f"{'memory':10} {memory:6.0f} MiB at most")
        print(f"page       {page.stat().st_size / 2**20:6.2f} MiB       (bar: 2 MB)")
        if CHROMIUM is not None:
            print(f"opened     {opened_s(page):6.2f} s       (bar: 2 s)")


if __name__ == "__main__":
    main()

"""Are asked rates delivered? Open loops against a null server that answers at once.

    python bench/rate/bench.py [--rates 500,1000,2000,5000] [--seconds 10] [--workers 1,2]

Needs cc. Each level is a whole run (feed, client, records on disk) at a constant rate, on all
cores; the null server is one process among them. Printed are the rates asked, scheduled and
achieved, and how late requests were sent. One token per answer.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from servecap.measure import measure
from servecap.preflight import Prepared
from servecap.record import Message, Outcome, Record, Request
from servecap.scenario import OpenLoop, Scenario, StopRule, Target
from servecap.summarize import summarize
from servecap.wire.endpoint import resolve
from servecap.wire.openai import OpenAi

SERVER = Path(__file__).parents[1] / "wire" / "null_server.c"


def requests() -> Iterator[Request]:
    for number in count():
        message = Message("user", f"stream {number % 65536}")
        yield Request(request_id=number, messages=(message,), max_output_tokens=1)


def level(port: str, rate_rps: float, seconds: float, workers: int, folder: Path) -> str:
    """One line of the table."""
    url = f"http://127.0.0.1:{port}"
    trial = Record(
        request_id=0,
        user=0,
        planned_s=0,
        sent_s=0,
        end_s=0.001,
        outcome=Outcome.OK,
        output_tokens=1,
    )
    run = measure(
        Scenario(
            load=OpenLoop(rate_rps=rate_rps, arrivals="constant"),
            stop=StopRule(duration_s=seconds),
        ),
        Prepared(
            endpoint=resolve(url),
            api=OpenAi(chat=True),
            target=Target(url=url, api="openai-chat", model="null"),
            trial=trial,
        ),
        requests(),
        response_guess_s=0.001,
        out=folder / f"{rate_rps:g}-{workers}",
        workers=workers,
    )
    summary = summarize(run)
    lag_ms = 1e3 * np.asarray([r.lag_s for r in run.records])
    p50, p99 = np.quantile(lag_ms, (0.5, 0.99))
    failed = sum(not r.ok and r.outcome is not Outcome.CENSORED for r in run.records)
    return (
        f"{rate_rps:>8,.0f} {workers:>8} {summary.scheduled_rps or 0:>10,.1f}"
        f" {summary.achieved_rps or 0:>10,.1f} {p50:>9.2f} {p99:>9.2f} {lag_ms.max():>9.2f}"
        f" {failed:>7} {run.header.health.cpu_share or 0:>6.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="500,1000,2000,5000")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", default="1")
    given = parser.parse_args()
    head = (
        "asked",
        "workers",
        "scheduled",
        "achieved",
        "lag p50",
        "p99",
        "max ms",
        "failed",
        "CPU",
    )
    widths = (8, 8, 10, 10, 9, 9, 9, 7, 6)
    print(" ".join(f"{name:>{width}}" for name, width in zip(head, widths, strict=True)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        binary = folder / "null_server"
        subprocess.run(["cc", "-O2", "-o", str(binary), str(SERVER)], check=True)
        server = subprocess.Popen(
            [str(binary), "0", "0", "0", "/dev/null"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            for workers in map(int, given.workers.split(",")):
                for rate in map(float, given.rates.split(",")):
                    print(level(port, rate, given.seconds, workers, folder), flush=True)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()

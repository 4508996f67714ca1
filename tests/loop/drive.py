"""Sends requests of the real client to a scripted server."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import uvloop

from servecap.measure import measure
from servecap.probe import TargetSpec, open_bench
from servecap.record import Arrival, Message, Outcome, Record, Request
from servecap.run import Run
from servecap.scenario import Scenario, StopRule, Timeouts, WorkloadSpec
from servecap.wire.api import Api
from servecap.wire.client import Client
from servecap.wire.clock import Clock
from servecap.wire.endpoint import Security, resolve
from servecap.wire.openai import OpenAi

QUICK = Timeouts(connect_s=5.0, first_token_s=5.0, gap_s=5.0, total_s=5.0)
WORKLOAD = WorkloadSpec(source="fixed:8/2")


def requests() -> Iterator[Request]:
    for number in count():
        yield Request(
            request_id=number,
            messages=(Message("user", f"question {number}"),),
            max_output_tokens=2,
        )


def ask(
    url: str,
    n: int = 1,
    *,
    at_once: bool = False,
    api: Api | None = None,
    stream: bool = True,
    timeouts: Timeouts = QUICK,
    security: Security | None = None,
    proxy: str | None = None,
    clock: Clock | None = None,
    on_start: Callable[[asyncio.AbstractEventLoop], object] = lambda _: None,
) -> list[Record]:
    """The records of *n* requests, sent one after another unless *at_once*."""
    clock = clock or Clock()

    async def talk() -> list[Record]:
        loop = asyncio.get_running_loop()
        found = list[Record]()
        on_start(loop)
        more = asyncio.Event()

        def on_record(record: Record) -> None:
            found.append(record)
            more.set()

        client = Client(
            loop,
            clock,
            resolve(url, security=security, proxy=proxy),
            api or OpenAi(chat=True),
            model="scripted",
            stream=stream,
            timeouts=timeouts,
            on_record=on_record,
        )
        feed = requests()

        async def ended(wanted: int) -> None:
            while len(found) < wanted:
                more.clear()
                client.sweep()
                try:
                    await asyncio.wait_for(more.wait(), 0.05)
                except TimeoutError:
                    continue

        for number in range(n):
            client.send(Arrival(next(feed), number, clock.now()))
            if not at_once:
                await ended(number + 1)
        await asyncio.wait_for(ended(n), 30)
        client.end(Outcome.CENSORED)
        return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(talk())


def measured(
    url: str, scenario: Scenario, out: Path | None = None, *, target: TargetSpec | None = None
) -> Run:
    """A whole run, preflight and all."""
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(target or TargetSpec(url=url), scenario.workload, scenario.timeouts)
        return measure(
            scenario,
            bench.prepared,
            bench.workload.requests(scenario.seed),
            response_guess_s=0.05,
            out=out or Path(folder) / "run",
        )


def for_s(duration_s: float) -> StopRule:
    return StopRule(duration_s=duration_s)


def rank(values: list[float], share: float) -> float:
    """The nearest-rank percentile."""
    return sorted(values)[math.ceil(share * len(values)) - 1]

"""Whole runs against a scripted server: queueing laws, freezes, ends, and what breaks them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from drive import WORKLOAD, for_s, measured, rank, requests
from scripted import Call, serving

from servecap import measure as measuring
from servecap import process
from servecap.errors import ServecapError, UsageError
from servecap.probe import TargetSpec, open_bench
from servecap.record import Outcome, Request
from servecap.run import Run
from servecap.scenario import ClosedLoop, OpenLoop, Scenario, StopRule
from servecap.slo import parse
from servecap.store import read_run
from servecap.summarize import summarize


def closed(users: int, **more: object) -> Scenario:
    load = ClosedLoop(users=users, think_s=(0.0, 0.0))
    return Scenario(load=load, workload=WORKLOAD, **more)  # type: ignore[arg-type]


def test_closed_loop_keeps_its_law() -> None:
    """X = N / (R + Z) and X R in flight, at a server that takes a fixed time."""

    async def fixed(call: Call) -> None:
        await call.answer(first_s=0.1)

    asked = Scenario(
        load=ClosedLoop(users=12, think_s=(0.1, 0.3)), workload=WORKLOAD, stop=for_s(2.5)
    )
    with serving(fixed) as server:
        summary = summarize(measured(server.url, asked))
    response_s = summary.client["e2e"].mean
    assert response_s >= 0.1
    assert summary.qps == pytest.approx(12 / (response_s + 0.2), rel=0.15)
    assert summary.in_flight_mean == pytest.approx(summary.qps * response_s, rel=0.15)
    assert summary.in_flight_mean < 12 * 0.75, "users who think are not in flight"
    assert summary.in_flight_max <= 12


def test_freeze_of_one_second_shows_in_the_tail() -> None:
    """No coordinated omission: what was due during the freeze waited for it."""
    thawed = threading.Event()

    async def freezes_once(call: Call) -> None:
        if len(call.server.asked) == 40:
            await asyncio.sleep(1.0)
            thawed.set()
        elif len(call.server.asked) > 40 and not thawed.is_set():
            await asyncio.to_thread(thawed.wait, 10)
        await call.answer()

    asked = Scenario(
        load=OpenLoop(rate_rps=80, arrivals="constant"), workload=WORKLOAD, stop=for_s(2.6)
    )
    with serving(freezes_once) as server:
        run = measured(server.url, asked)
    ttft_s = [r.ttft_s for r in run.records if r.ttft_s is not None]
    assert 180 <= len(ttft_s) <= 210, "arrivals go on during the freeze"
    assert rank(ttft_s, 0.99) > 0.9
    assert sum(t > 0.5 for t in ttft_s) > 30, "those who came in its first half waited longer"
    planned = [r.planned_s for r in run.records]
    assert sorted(planned) == pytest.approx([k / 80 for k in range(len(planned))])


def test_classic_queue_ends_by_itself_while_others_still_think() -> None:
    """The last user to wake finds the queue empty: nobody answers any more, and yet it must end."""
    asked = Scenario(
        load=ClosedLoop(users=3, think_s=(0.05, 0.4), queue=7),
        workload=WORKLOAD,
        stop=StopRule(max_duration_s=20),
    )
    with serving() as server:
        for seed in range(3):
            run = measured(server.url, msgspec.structs.replace(asked, seed=seed))
            assert run.header.stop_reason == "every request was sent and answered"
            assert len(run.records) == 7
    assert len(server.asked) == 21


def test_each_user_sends_exactly_so_many() -> None:
    load = ClosedLoop(users=6, think_s=(0.0, 0.0), each=2)
    with serving() as server:
        run = measured(server.url, Scenario(load=load, workload=WORKLOAD))
    assert sorted(r.user for r in run.records) == sorted([*range(6)] * 2)
    assert summarize(run).requests == 12


def test_users_never_have_two_requests_in_flight() -> None:
    load = ClosedLoop(users=5, think_s=(0.0, 0.02), queue=60)
    with serving() as server:
        run = measured(server.url, Scenario(load=load, workload=WORKLOAD))
    of_user: dict[int, list[tuple[float, float]]] = {}
    for r in run.records:
        of_user.setdefault(r.user, []).append((r.planned_s, r.end_s))
    assert sum(map(len, of_user.values())) == 60
    for spans in of_user.values():
        for (_, end_s), (next_s, _) in pairwise(spans):
            assert next_s >= end_s


def test_dead_server_is_given_up_and_fails() -> None:
    async def dead(call: Call) -> None:
        await call.whole(b'{"error":"no"}', status="500 No")

    with serving(dead) as server:
        summary = summarize(measured(server.url, closed(8)))
    assert summary.error_rate == 1.0
    assert summary.errors == {"http_500": summary.requests}
    assert summary.verdict == "fail"
    assert summary.valid, summary.invalid_reasons


def test_too_many_in_flight_are_turned_away_and_not_sent_late() -> None:
    async def never(call: Call) -> None:
        await call.write(b"")
        await asyncio.sleep(60)

    load = OpenLoop(rate_rps=100, arrivals="constant", max_in_flight=5)
    with serving(never) as server:
        run = measured(server.url, Scenario(load=load, workload=WORKLOAD, stop=for_s(0.5)))
    assert len(server.asked) == 5
    refused = [r for r in run.records if r.outcome is Outcome.REFUSED]
    assert refused
    assert all(r.error == "not sent: 5 requests were in flight already" for r in refused)
    assert sum(r.outcome is Outcome.CENSORED for r in run.records) == 5


def test_run_on_disk_is_the_run_in_memory(tmp_path: Path) -> None:
    load = ClosedLoop(users=3, think_s=(0.0, 0.0), queue=9)
    with serving() as server:
        run = measured(server.url, Scenario(load=load, workload=WORKLOAD), tmp_path / "run")
    back = read_run(tmp_path / "run")
    assert back.header == run.header
    assert [r.request_id for r in back.records] == [r.request_id for r in run.records]
    assert back.records[0].e2e_s == run.records[0].e2e_s


def run_with(requests_: Iterator[Request], url: str, out: Path) -> Run:
    asked = closed(2, stop=for_s(20.0))
    bench = open_bench(TargetSpec(url=url), asked.workload, asked.timeouts)
    return measuring.measure(asked, bench.prepared, requests_, response_guess_s=0.05, out=out)


@pytest.mark.parametrize("error", [UsageError("no such prompt"), ZeroDivisionError("a bug")])
def test_workload_that_breaks_in_the_middle_ends_the_run(tmp_path: Path, error: Exception) -> None:
    def breaks() -> Iterator[Request]:
        feed = requests()
        for _ in range(5):
            yield next(feed)
        raise error

    with serving() as server, pytest.raises(type(error), match=str(error)):
        run_with(breaks(), server.url, tmp_path / "run")
    assert len(read_run(tmp_path / "run").records) >= 3
    assert read_run(tmp_path / "run").header.status == "partial"


def test_error_inside_another_loop_is_not_lost() -> None:
    async def outer() -> None:
        async def fails() -> None:
            raise ServecapError("told")

        process.run_async(fails())

    with pytest.raises(ServecapError, match="told"):
        asyncio.run(outer())


def test_slo_is_judged_by_the_servers_clock_where_asked() -> None:
    """The client sees milliseconds; the server says that 2 s went by in its queue."""

    async def tgi(call: Call) -> None:
        await call.whole(
            b'{"generated_text":"a b","details":{"finish_reason":"length","generated_tokens":2}}',
            "x-inference-time: 600", "x-time-per-token: 100", "x-queue-time: 2000",
            "x-prefill-time: 500", "x-prompt-tokens: 8", "x-generated-tokens: 2",
        )  # fmt: skip

    asked = Scenario(
        load=ClosedLoop(users=10, think_s=(0.0, 0.0), queue=80),
        workload=WORKLOAD,
        slo=parse("ttft.mean<1s,tpot.mean<150ms"),
        timings="server",
    )
    with serving(tgi) as server:
        server.trial = tgi
        target = TargetSpec(url=server.url, api="tgi", stream=False)
        summary = summarize(measured(server.url, asked, target=target))
    assert [c.verdict for c in summary.checks] == ["fail", "pass"]
    assert summary.checks[0].value_s == pytest.approx(2.5)
    assert summary.checks[1].value_s == pytest.approx(0.1)
    assert summary.client["e2e"].mean < 2


def test_more_users_than_sockets_is_told_before_the_run(tmp_path: Path) -> None:
    load = ClosedLoop(users=50_000_000)
    with serving() as server, pytest.raises(UsageError, match="ulimit"):
        measured(server.url, Scenario(load=load, workload=WORKLOAD), tmp_path / "run")
    assert not (tmp_path / "run").exists()

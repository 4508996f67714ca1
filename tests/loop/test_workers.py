"""Load from several processes: one queue, one clock, and what happens when one of them dies."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from drive import WORKLOAD, for_s, requests
from hypothesis import given
from hypothesis import strategies as st
from scripted import Call, serving

from servecap.measure import Progress, measure
from servecap.pipe import Bye, Done, Frames, Message, Send, Start, encoded
from servecap.probe import TargetSpec, open_bench
from servecap.record import Arrival, Counts, Outcome, Record, Times
from servecap.run import Health, Run, Status
from servecap.scenario import ClosedLoop, OpenLoop, Replay, Scenario, WorkloadSpec
from servecap.store import read_run
from servecap.summarize import summarize
from servecap.workers import USERS_EACH, wanted


async def prompt(call: Call) -> None:
    await call.answer()


def by_workers(
    url: str,
    load: ClosedLoop | OpenLoop,
    out: Path,
    *,
    duration_s: float = 60.0,
    on_progress: object = None,
) -> Run:
    scenario = Scenario(load=load, workload=WORKLOAD, stop=for_s(duration_s))
    bench = open_bench(TargetSpec(url=url), scenario.workload, scenario.timeouts)
    return measure(
        scenario,
        bench.prepared,
        requests(),
        response_guess_s=0.05,
        out=out,
        on_progress=on_progress,  # type: ignore[arg-type]
        workers=2,
    )


def test_queue_is_shared_exactly(tmp_path: Path) -> None:
    """Each of the queue's requests is sent once, by the worker of its user, at its time."""
    with serving(prompt) as server:
        run = by_workers(
            server.url, ClosedLoop(users=7, think_s=(0.0, 0.02), queue=60), tmp_path / "run"
        )
        asked = Counter(body for body in server.asked if b"question" in body)
    assert sorted(r.request_id for r in run.records) == list(range(60))
    assert len(asked) == 60
    assert set(asked.values()) == {1}
    assert {r.user for r in run.records} == set(range(7))
    assert all(r.ok and r.lag_s >= 0 and r.token_source == "server" for r in run.records)
    assert run.header.health.processes == 2
    assert run.header.health.failure is None
    assert run.header.health.cpu_share is not None
    kept = read_run(tmp_path / "run").records
    assert [r.request_id for r in kept] == [r.request_id for r in run.records]


def test_users_have_one_request_at_a_time(tmp_path: Path) -> None:
    with serving(prompt) as server:
        run = by_workers(
            server.url, ClosedLoop(users=5, think_s=(0.01, 0.03), each=6), tmp_path / "run"
        )
    for user in range(5):
        own = sorted((r for r in run.records if r.user == user), key=lambda r: r.planned_s)
        assert len(own) == 6
        assert all(a.end_s <= b.planned_s for a, b in pairwise(own))


def test_trace_is_replayed_row_by_row_by_two_workers(tmp_path: Path) -> None:
    """Each row once, at its time, with its lengths, sessions and turns, whichever sends it."""
    file = tmp_path / "trace.csv"
    rows = [(0.02 * i, 8 + i % 5, 2) for i in range(60)]
    file.write_text("timestamp,in,out\n" + "".join(f"{t!r},{a},{b}\n" for t, a, b in rows))
    spec = WorkloadSpec(source=str(file), replay=Replay(time_scale=2))
    scenario = Scenario(load=OpenLoop(rate_rps=100, arrivals="trace"), workload=spec)
    with serving(prompt) as server:
        bench = open_bench(TargetSpec(url=server.url), spec, scenario.timeouts, workers=2)
        run = bench.run(scenario, tmp_path / "run")
    assert run.header.stop_reason == "every request was sent and answered"
    assert run.header.health.processes == 2
    records = sorted(run.records, key=lambda r: r.request_id)
    assert [r.planned_s for r in records] == pytest.approx([t / 2 for t, _, _ in rows])
    assert [r.asked_output_tokens for r in records] == [out for _, _, out in rows]
    assert all(r.ok and r.lag_s >= 0 for r in records)
    assert {r.user % 2 for r in records} == {0, 1}


def test_what_is_in_flight_at_the_end_is_censored(tmp_path: Path) -> None:
    async def never(call: Call) -> None:
        if len(call.server.asked) > 8:
            await asyncio.sleep(30)
        await call.answer()

    with serving(never) as server:
        run = by_workers(server.url, OpenLoop(rate_rps=40.0), tmp_path / "run", duration_s=0.6)
    kinds = Counter(r.outcome for r in run.records)
    assert kinds[Outcome.CENSORED] > 3
    assert set(kinds) == {Outcome.OK, Outcome.CENSORED}
    assert len({r.request_id for r in run.records}) == len(run.records)
    assert run.header.status is Status.COMPLETE


def test_dead_worker_ends_the_run_which_is_invalid(tmp_path: Path) -> None:
    """Its finished requests are kept, and those it had in flight are accounted for."""

    async def slow(call: Call) -> None:
        await call.answer(first_s=0.15)

    killed: list[int] = []

    def on_progress(progress: Progress) -> None:
        if not killed and progress.ended >= 8:
            killed.append(children()[0])
            os.kill(killed[0], signal.SIGKILL)

    with serving(slow) as server:
        run = by_workers(
            server.url,
            ClosedLoop(users=8, think_s=(0.0, 0.0), ramp_s=0.0),
            tmp_path / "run",
            on_progress=on_progress,
        )
    assert killed
    health = run.header.health
    assert health.failure is not None
    assert "SIGKILL" in health.failure
    assert run.header.status is Status.PARTIAL
    assert any(r.ok for r in run.records)
    lost = [r for r in run.records if r.error == health.failure]
    assert lost
    assert {r.outcome for r in lost} == {Outcome.CANCELLED}
    assert len({r.request_id for r in run.records}) == len(run.records)
    summary = summarize(run)
    assert any("client_failed" in reason for reason in summary.invalid_reasons)
    assert children() == [], "no process is left behind"


def children() -> list[int]:
    """The load processes of this test; not the servers that other tests have started."""
    return sorted(child.pid for child in multiprocessing.active_children() if child.pid)


def test_auto_counts_users_and_leaves_a_core_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))

    def auto(users: int) -> int:
        return wanted(Scenario(load=ClosedLoop(users=users)))

    assert [auto(n) for n in (1, USERS_EACH, USERS_EACH + 1, 100 * USERS_EACH)] == [1, 1, 2, 3]
    assert wanted(Scenario(load=OpenLoop(rate_rps=0.1))) == 1


RECORD = Record(
    request_id=3,
    user=1,
    planned_s=0.25,
    sent_s=0.5,
    end_s=2.0,
    outcome=Outcome.OK,
    chunk_s=Times([0.125, 1 / 3]),
    chunk_tokens=Counts([1, 2]),
)
MESSAGES: list[Message] = [
    Start(12.5),
    Send(Arrival(next(requests()), 4, 0.75)),
    Done(RECORD),
    Bye(Health(cpu_share=0.5)),
]


@given(st.lists(st.integers(0, 4000), max_size=12))
def test_messages_survive_any_cut(cuts: list[int]) -> None:
    data = b"".join(encoded(message) for message in MESSAGES)
    edges = [0, *sorted(c % len(data) for c in cuts), len(data)]
    frames = Frames()
    found: list[Message] = []
    for a, b in pairwise(edges):
        frames.feed(data[a:b])
        found += frames.take()
    assert found == MESSAGES


def test_message_is_given_out_once_even_to_who_asks_again_meanwhile() -> None:
    frames = Frames()
    frames.feed(b"".join(encoded(message) for message in MESSAGES))
    outer = frames.take()
    assert [next(outer), *frames.take(), *outer] == MESSAGES

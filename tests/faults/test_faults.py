"""Every fault ends as the right outcome, in time, and disturbs no other request."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import msgspec
import pytest
from drive import WORKLOAD, ask, requests
from scripted import DONE, HELLO, STOP, USAGE, Call, chunk, refused_port, serving

from faults import FAULTS, LIMITS, PATIENT, replying
from servecap.measure import measure
from servecap.probe import TargetSpec, open_bench
from servecap.pulse import TICK_S
from servecap.record import Outcome, Record, TokenSource
from servecap.run import Run
from servecap.scenario import ClosedLoop, Scenario
from servecap.store import read_run
from servecap.summarize import summarize
from servecap.wire.endpoint import Security

USERS, REQUESTS, FAULTY = 4, 12, (2, 7)
SWEEP_BEATS = 4  # timeouts are looked at with every fourth beat of the client
READ_S = 0.001  # by which the kernel's stamps may differ from the clock that they are put on


def run_with(name: str, out: Path, *, workers: int = 1) -> Run:
    """A run of four users, two of whose requests meet the fault."""
    with serving(replying(lambda number: name if number in FAULTY else None)) as server:
        scenario = Scenario(
            load=ClosedLoop(users=USERS, think_s=(0.0, 0.0), queue=REQUESTS),
            workload=WORKLOAD,
            timeouts=LIMITS if FAULTS[name].within_s else PATIENT,
        )
        bench = open_bench(TargetSpec(url=server.url), scenario.workload, scenario.timeouts)
        return measure(
            scenario, bench.prepared, requests(), response_guess_s=0.05, out=out, workers=workers
        )


@pytest.mark.parametrize("name", FAULTS)
def test_fault_ends_as_it_should_and_disturbs_nobody(tmp_path: Path, name: str) -> None:
    fault = FAULTS[name]
    run = run_with(name, tmp_path / "run")
    by_id = {record.request_id: record for record in run.records}
    assert sorted(by_id) == list(range(REQUESTS)), "each request once"
    for number, record in by_id.items():
        assert record.error is None or (record.error and record.error.isprintable())
        if number not in FAULTY:
            assert record.outcome is Outcome.OK, record.error
            continue
        assert record.outcome is fault.outcome, record.error
        if fault.said is not None:
            assert fault.said in (record.error or "")
        if fault.within_s is not None:
            assert 0 <= beyond_s(record, fault.within_s) <= latest_s(run)
    kept = read_run(tmp_path / "run").records
    assert [(r.request_id, r.outcome) for r in kept] == [
        (r.request_id, r.outcome) for r in run.records
    ]
    summary = summarize(run)
    bad = 0 if fault.outcome is Outcome.OK else len(FAULTY)
    assert sum(summary.errors.values()) == bad


def beyond_s(record: Record, limit_s: float) -> float:
    """How long after its limit it was ended: a limit on gaps runs from the last thing that came."""
    since_s = record.sent_s
    if limit_s == LIMITS.gap_s and record.chunk_s:
        since_s = record.chunk_s[-1] - READ_S
    return record.end_s - since_s - limit_s


def latest_s(run: Run) -> float:
    """The longest that the client may take to notice.

    It looks with every fourth beat, and a beat comes as late as the run's health says that one ever
    was: the next is then due at once, and may be as late again.
    """
    late_s = run.header.health.loop_delay_max_s
    assert late_s is not None
    return SWEEP_BEATS * max(TICK_S, late_s) + late_s + 2 * READ_S


def test_fault_of_one_worker_disturbs_neither(tmp_path: Path) -> None:
    run = run_with("reset after headers", tmp_path / "run", workers=2)
    bad = {r.request_id for r in run.records if not r.ok}
    assert bad == set(FAULTY)
    assert len(run.records) == REQUESTS


def test_refuse() -> None:
    (record,) = ask(f"http://127.0.0.1:{refused_port()}", timeouts=LIMITS)
    assert (record.outcome, record.error) == (Outcome.REFUSED, "Connection refused")
    assert record.e2e_s < LIMITS.connect_s, "at once, and not by a timeout"


def test_slow_tls() -> None:
    """The connection stands, but the server never takes up TLS."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}"
        limits = msgspec.structs.replace(LIMITS, connect_s=0.3)
        (record,) = ask(url, timeouts=limits, security=Security(insecure=True))
    assert (record.outcome, record.error) == (Outcome.TIMEOUT, "no connection within 0.3 s")


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 0.5])
def test_clock_jump(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    """The wall clock is set in the middle of an answer: no time of the record follows it."""
    real = time.time

    async def answer(call: Call) -> None:
        await call.head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        for number in range(6):
            await call.write(chunk(HELLO))
            await asyncio.sleep(0.05)
            if number == 2:
                monkeypatch.setattr(time, "time", lambda: real() + step_s)
        await call.write(chunk(STOP), chunk(USAGE), chunk(DONE), b"0\r\n\r\n")

    with serving(answer) as server:
        began_s = time.monotonic()
        (record,) = ask(server.url, timeouts=LIMITS)
        took_s = time.monotonic() - began_s
    assert record.outcome is Outcome.OK
    assert len(record.chunk_s) == 6
    times = [record.sent_s, *record.chunk_s, record.end_s]
    assert times == sorted(times)
    assert 0.25 <= record.e2e_s <= took_s
    assert all(gap >= 0 for gap in record.gaps_s())


def test_counts_below_zero_are_not_believed(tmp_path: Path) -> None:
    run = run_with("less than no tokens told", tmp_path / "run")
    told = [r for r in run.records if r.request_id in FAULTY]
    assert [r.output_tokens for r in told] == [3, 3], "its chunks, for want of anything better"
    assert {r.token_source for r in told} == {TokenSource.ESTIMATE}


def test_fewer_tokens_than_chunks_are_told_in_the_report(tmp_path: Path) -> None:
    summary = summarize(run_with("too few tokens told", tmp_path / "run"))
    said = [*summary.invalid_reasons, *summary.warnings]
    assert any("fewer tokens than chunks" in reason for reason in said), said


def test_server_that_recovers_is_used_again() -> None:
    """After any fault the next request over the same client is well."""
    names = [name for name, fault in FAULTS.items() if fault.within_s is None]
    with serving(replying(lambda n: None if n % 2 else names[n // 2])) as server:
        records = ask(server.url, 2 * len(names), timeouts=PATIENT)
    assert [r.outcome for r in records[::2]] == [FAULTS[name].outcome for name in names]
    assert all(record.ok for record in records[1::2]), [r.error for r in records[1::2]]

"""What a run keeps in memory: everything, or of a soak so much and no more."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import msgspec
import pytest
from made import record, run, scenario

from servecap import kept
from servecap.columns import Columns
from servecap.kept import LATEST, SLICES, Kept, Slicer
from servecap.record import Outcome, Record, Times
from servecap.report.charts import run_charts
from servecap.run import Run
from servecap.scenario import ClosedLoop, Scenario, StopRule
from servecap.store import RunWriter, read_run
from servecap.summarize import summarize

SOAK_S = 960.0
EVERY_S = 0.25


def soak(soak_s: float = SOAK_S) -> Scenario:
    return scenario(
        load=ClosedLoop(users=2, think_s=(0.0, 0.0)), stop=StopRule(duration_s=soak_s, soak=True)
    )


def steady(number: int) -> Record:
    """Two users in turn, each with answers of half a second."""
    return record(
        EVERY_S * (number + 1), e2e_s=2 * EVERY_S, ttft_s=0.1, user=number % 2, number=number
    )


def test_a_run_that_is_no_soak_keeps_all() -> None:
    held = Kept(scenario())
    for number in range(LATEST + 10):
        held.add(steady(number))
    found = held.run(run([], scenario()).header, "x")
    assert len(found.records) == LATEST + 10
    assert (found.slices, found.dropped) == ((), 0)


def test_a_soak_keeps_the_latest_and_figures_of_all(tmp_path: Path) -> None:
    number = 12_000
    asked = soak(EVERY_S * number)
    header = run([], asked, end_s=EVERY_S * number).header
    held, writer = Kept(asked), RunWriter(tmp_path / "run", header)
    for i in range(number):
        one = steady(i) if i != 500 else record(EVERY_S * 501, outcome=Outcome.TIMEOUT, number=500)
        held.add(one)
        writer.add(one)
    writer.close(header)
    live = held.run(header, str(tmp_path / "run"))
    assert [r.request_id for r in live.records] == list(range(number - LATEST, number))
    assert live.dropped == number - LATEST
    assert len(live.slices) == SLICES
    assert sum(s.requests for s in live.slices) == pytest.approx(number, abs=1)
    assert sum(s.failed for s in live.slices) == 1, "also of records that are gone"
    assert live.slices[0].ttft_mean_s == pytest.approx(0.1)
    again = read_run(tmp_path / "run")
    assert (again.slices, again.dropped) == (live.slices, live.dropped)
    assert [r.request_id for r in again.records] == [r.request_id for r in live.records]


def test_memory_of_a_soak_does_not_grow() -> None:
    """Four times the requests, the same memory."""
    held = Kept(soak(40_000 * EVERY_S))
    tracemalloc.start()
    seen = []
    for number in range(40_000):
        held.add(steady(number))
        if number in (11_000, 39_999):
            seen.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert seen[1] <= 1.05 * seen[0]


def test_long_answers_are_held_in_smaller_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LATEST_CHUNKS", 1000)
    held = Kept(soak())
    for number in range(100):
        one = steady(number)
        one.chunk_s[:] = Times([0.0] * 100)
        held.add(one)
    assert len(held.latest()[0]) == 10


def soaked(monkeypatch: pytest.MonkeyPatch, number: int = 3840) -> Run:
    monkeypatch.setattr(kept, "LATEST", 400)
    held = Kept(soak())
    for i in range(number):
        held.add(steady(i))
    return held.run(run([], soak(), end_s=SOAK_S).header, "x")


def test_figures_of_a_soak_are_those_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are by the time of the requests that are held, not by all time."""
    found = soaked(monkeypatch)
    summary = summarize(found)
    assert summary.valid, summary.invalid_reasons
    assert summary.qps == pytest.approx(1 / EVERY_S, rel=0.02)
    assert summary.in_flight_mean == pytest.approx(2, rel=0.02)
    assert summary.window.start_s > SOAK_S - 400 * EVERY_S
    assert any("soak: the figures are of the last" in w for w in summary.warnings)
    charts = {chart.name: chart for chart in run_charts(found, summary)}
    first = charts["run-load"].table.rows[0][0]
    assert float(first.split(" to ")[0].replace(",", "")) > 800, "no empty time before it"


def test_failures_early_in_a_soak_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LATEST", 400)
    held = Kept(soak())
    for i in range(3840):
        bad = 300 < i < 1500
        held.add(steady(i) if not bad else record(EVERY_S * (i + 1), outcome=Outcome.HTTP_ERROR))
    summary = summarize(held.run(run([], soak(), end_s=SOAK_S).header, "x"))
    assert summary.error_rate == 0, "of what is held"
    assert summary.verdict == "fail"
    assert any("errors came in a burst from 70 to 380 s" in w for w in summary.warnings)


def test_slices_end_where_they_should() -> None:
    one_by_one, at_once = Slicer(10.0, 100.0), Slicer(10.0, 100.0)
    told = [record(end_s) for end_s in (101.0, 109.0, 110.0, 131.0)]
    for one in told:
        one_by_one.add(one)
    at_once.take(Columns(told))
    for slicer in (one_by_one, at_once):
        assert [(s.start_s, s.requests) for s in slicer.slices(140.0)] == [
            (100.0, 2),
            (110.0, 1),
            (120.0, 0),
            (130.0, 1),
        ]


def test_slices_of_records_at_once_are_those_of_one_by_one() -> None:
    """Also where requests failed, were tried again, stood still, or are not fully known."""
    told = []
    for i in range(300):
        one = record(100.0 + i / 4, ttft_s=None if i % 7 == 0 else 0.1 + i / 1000, number=i)
        if i % 10 == 0:
            one = msgspec.structs.replace(one, outcome=Outcome.HTTP_ERROR, status=500 + i % 4)
        if i % 9 == 0:
            one = msgspec.structs.replace(one, attempt=2, first_planned_s=90.0)
        if i % 8 == 0:
            one = msgspec.structs.replace(one, output_tokens=None)
        if i % 50 == 1:
            one.chunk_s[:] = Times([one.end_s - 3.0, one.end_s - 1.5, one.end_s])
        told.append(one)
    one_by_one, at_once = Slicer(10.0, 100.0), Slicer(10.0, 100.0)
    for one in told:
        one_by_one.add(one)
    at_once.take(Columns(told))
    found = at_once.slices(180.0)
    assert found == one_by_one.slices(180.0)
    assert sum(s.stalled for s in found) == 6
    assert sum(s.failed for s in found) == 30

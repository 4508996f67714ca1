"""From a search's result to a cell."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from servecap.cell import Capacity
from servecap.matrix.document import parse
from servecap.matrix.job import CellJob
from servecap.matrix.measured import cell_of
from servecap.matrix.spec import from_document
from servecap.metrics import Summary, Verdict, Window
from servecap.search import Level, SearchResult
from servecap.stats import Distribution, describe

EMULATED = "emulate: {}"


def job(how: str = "url: 'http://h:1'", settings: str = "") -> CellJob:
    text = f"cells: [{{model: llama-13b, gpu: a100-40gb, tp: 4, {how}, settings: {{{settings}}}}}]"
    return from_document(parse(text, name="t.yaml"), Path()).jobs[0]


def around(value: float) -> Distribution:
    found = describe([value - 1, value, value + 1])
    assert found is not None
    return found


def level(users: int, verdict: Verdict, *, valid: bool = True, source: str = "server") -> Level:
    summary = Summary(
        window=Window(start_s=0, end_s=60, rule="test"), users=users, rate_rps=None,
        in_flight_mean=users / 2, in_flight_max=users, benchmark_time_s=60, requests=300,
        requests_ok=297, requests_censored=0, errors={"timeout": 3}, error_rate=0.01,
        qps=users / 10, output_tps=users * 20, total_tps=users * 50, goodput_rps=1,
        client={"ttft": around(users / 10), "tpot": around(3), "prompt_tokens": around(300),
                "output_tokens": around(200)},
        server={"ttft": around(users / 20)},
        token_sources={source: 297}, checks=(), verdict=verdict,
    )  # fmt: skip
    return Level(users=users, verdict=verdict, valid=valid, summary=summary, why="test")


def result(cell: CellJob, *levels: Level, users: int, high: int | None) -> SearchResult:
    return SearchResult(
        capacity=Capacity(users=users, users_high=high, confidence=0.95),
        levels=levels, scenario=cell.scenario, stop_reason="no level up to --max-users 40 failed",
    )  # fmt: skip


def test_the_figures_are_those_of_the_largest_level_that_held() -> None:
    levels = (
        level(20, Verdict.PASS), level(80, Verdict.FAIL), level(40, Verdict.PASS),
        level(60, Verdict.UNSURE), level(50, Verdict.PASS, valid=False),
    )  # fmt: skip
    cell = cell_of(job(), result(job(), *levels, users=40, high=79), provenance="runs/7")
    assert cell.capacity == Capacity(users=40, users_high=79, confidence=0.95)
    assert (cell.ttft_s, cell.tpot_s) == pytest.approx((4, 3))
    assert (cell.requests_per_s, cell.output_tokens_per_s, cell.total_tokens_per_s) == (
        4,
        800,
        2000,
    )
    assert (cell.avg_context_tokens, cell.avg_output_tokens) == pytest.approx((500, 200))
    assert (cell.error_rate, cell.origin, cell.provenance) == (0.01, "measured", "runs/7")
    assert cell.slo == "ttft.mean<3s,tpot.mean<100ms,error_rate<5%"
    assert cell.notes == ()


def test_the_servers_own_clock_is_used_where_it_judges() -> None:
    cell = job(settings="timings: server")
    found = cell_of(cell, result(cell, level(40, Verdict.PASS), users=40, high=41), provenance="r")
    assert found.ttft_s == pytest.approx(2)
    assert found.tpot_s is None  # the server did not tell


def test_what_the_emulator_answered_is_a_prediction() -> None:
    cell = job(EMULATED)
    found = cell_of(cell, result(cell, level(40, Verdict.PASS), users=40, high=41), provenance="r")
    assert found.origin == "predicted"


def test_what_is_not_certain_is_noted() -> None:
    estimated = level(40, Verdict.PASS, source="estimate")
    found = cell_of(job(), result(job(), estimated, users=40, high=None), provenance="r")
    assert found.notes == (
        "token counts are not all the server's own: estimate",
        "no upper end: no level up to --max-users 40 failed",
    )


def test_a_cell_that_serves_nobody_has_a_capacity_of_zero_and_no_figures() -> None:
    found = cell_of(job(), result(job(), level(1, Verdict.FAIL), users=0, high=0), provenance="r")
    assert found.capacity is not None
    assert found.capacity.users == 0
    assert (found.ttft_s, found.requests_per_s, found.error_rate) == (None, None, None)
    assert "no number of users was seen" in found.notes[0]
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


def test_a_search_that_decided_nothing_leaves_no_capacity() -> None:
    levels = (level(8, Verdict.UNSURE), level(16, Verdict.UNSURE))
    found = cell_of(job(), result(job(), *levels, users=0, high=None), provenance="r")
    assert found.capacity is None
    assert found.invalid_reason is not None
    assert "no level was decided (users tried: 8, 16)" in found.invalid_reason

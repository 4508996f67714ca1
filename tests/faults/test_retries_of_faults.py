"""Requests that are turned away and tried again: every try is told, and no error is hidden."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from commands import Shell
from drive import WORKLOAD, requests
from scripted import Call, serving

from faults import FAULTS, number_of
from servecap import slo
from servecap.measure import measure
from servecap.metrics import Verdict
from servecap.probe import TargetSpec, open_bench
from servecap.record import Outcome, Record
from servecap.run import Run
from servecap.scenario import ClosedLoop, Scenario
from servecap.store import read_run
from servecap.summarize import summarize

REQUESTS, FAULTY = 12, (4, 7)  # not among the first, so over connections that were kept open
BUSY = b'{"error":{"message":"come again"}}'


class Failing:
    """The requests in `FAULTY` meet the fault the first *times*; all else is answered."""

    def __init__(self, name: str, times: int = 1, *, wait: str = "0") -> None:
        self.name, self.times, self.wait = name, times, wait
        self.met: dict[int, int] = defaultdict(int)

    async def __call__(self, call: Call) -> None:
        number = number_of(call.body)
        self.met[number] += 1
        if number not in FAULTY or self.met[number] > self.times:
            await call.answer()
        elif self.name == "503":
            headers = (f"Retry-After: {self.wait}",)
            await call.whole(BUSY, *headers, status="503 Service Unavailable")
        else:
            await FAULTS[self.name].reply(call)


def tried(
    reply: Failing, out: Path, retries: int, *, workers: int = 1, limits: str = "error_rate<20%"
) -> Run:
    with serving(reply) as server:
        scenario = Scenario(
            load=ClosedLoop(users=3, think_s=(0.0, 0.0), queue=REQUESTS),
            workload=WORKLOAD,
            slo=slo.parse(f"ttft.p90<30s,{limits}"),
            retries=retries,
        )
        bench = open_bench(TargetSpec(url=server.url), scenario.workload, scenario.timeouts)
        return measure(
            scenario, bench.prepared, requests(), response_guess_s=0.05, out=out, workers=workers
        )


def by_request(run: Run) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for record in run.records:
        found[record.request_id].append(record)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_503_with_retry_after_is_tried_again(tmp_path: Path, workers: int) -> None:
    run = tried(Failing("503", wait="1"), tmp_path / "run", 2, workers=workers)
    told = by_request(read_run(tmp_path / "run"))
    assert sorted(told) == list(range(REQUESTS))
    for number, tries in told.items():
        outcomes = [r.outcome for r in tries]
        if number not in FAULTY:
            assert outcomes == [Outcome.OK]
            continue
        assert outcomes == [Outcome.HTTP_ERROR, Outcome.OK]
        first, second = tries
        assert (first.attempt, first.status, first.retry_after_s) == (1, 503, 1.0)
        assert (second.attempt, second.first_planned_s) == (2, first.planned_s)
        assert second.sent_s >= first.end_s + 1.0, "as long as the server asked for"
        assert second.user == first.user
        assert second.ttft_s is not None
        assert second.ttft_s > 1.0, "what its user saw"
        assert second.lag_s < 0.9, "not the client's fault"
    summary = summarize(run)
    assert (summary.requests, summary.requests_ok) == (REQUESTS + 2, REQUESTS)
    assert (summary.retries, summary.retries_ok) == (2, 2)
    assert summary.errors == {"http_503": 2}
    assert summary.error_rate == pytest.approx(2 / REQUESTS), "of the requests, not of the tries"
    assert not any("had ended when the run did" in said for said in summary.invalid_reasons)


@pytest.mark.parametrize("name", ["reset before headers", "closed without an answer"])
def test_closed_before_the_first_byte_is_tried_again(tmp_path: Path, name: str) -> None:
    run = tried(Failing(name, times=2), tmp_path / "run", 2)
    told = by_request(run)
    for number in FAULTY:  # over a connection that was kept open, a try reaches the server twice
        *bad, good = [r.outcome for r in told[number]]
        assert good is Outcome.OK
        assert set(bad) == {Outcome.REFUSED}
    assert summarize(run).errors == {"refused": len(run.records) - REQUESTS}


def test_sent_again_over_a_fresh_connection_is_told(tmp_path: Path) -> None:
    """Closed where it was kept open: that is no retry of ours, but it is not hidden either."""
    run = tried(Failing("closed without an answer"), tmp_path / "run", 0)
    again = {r.request_id for r in run.records if r.resent}
    assert again == set(FAULTY)
    assert all(r.ok for r in run.records)
    said = summarize(run).warnings
    assert any("2 requests were sent again over a fresh connection" in text for text in said), said


@pytest.mark.parametrize("name", ["reset after headers", "500", "error in the stream",
                                  "cut in mid chunk"])  # fmt: skip
def test_what_had_begun_is_not_tried_again(tmp_path: Path, name: str) -> None:
    run = tried(Failing(name), tmp_path / "run", 3)
    assert len(run.records) == REQUESTS
    assert {r.attempt for r in run.records} == {1}
    assert summarize(run).retries == 0


def test_a_server_that_never_recovers_is_asked_so_often_and_no_more(tmp_path: Path) -> None:
    reply = Failing("503", times=99)
    run = tried(reply, tmp_path / "run", 2)
    assert [reply.met[n] for n in FAULTY] == [3, 3]
    summary = summarize(run)
    assert (summary.retries, summary.retries_ok) == (4, 0)
    assert summary.errors == {"http_503": 6}
    assert summary.error_rate == pytest.approx(6 / (REQUESTS - 2 + 6))


def test_nothing_is_tried_again_unless_it_is_asked_for(tmp_path: Path) -> None:
    run = tried(Failing("503"), tmp_path / "run", 0)
    assert len(run.records) == REQUESTS
    assert [r.retry_after_s for r in run.records if not r.ok] == [0.0, 0.0], "but it is recorded"


def test_retries_turn_no_verdict_into_a_pass(tmp_path: Path) -> None:
    """Every request was answered in the end, and yet two of them had failed."""
    for retries in (0, 2):
        run = tried(Failing("503"), tmp_path / str(retries), retries, limits="error_rate<0%")
        assert summarize(run).verdict is Verdict.FAIL


def test_report_and_files_tell_of_retries(shell: Shell) -> None:
    seen = 0

    async def busy(call: Call) -> None:
        nonlocal seen
        seen += 1
        if seen in (3, 6, 9):
            await call.whole(BUSY, "Retry-After: 0", status="503 Service Unavailable")
        else:
            await call.answer()

    with serving(busy) as server:
        said = shell(
            "run", "--url", server.url, "--users", "2", "--queue", "20", "--think", "0..0",
            "--workload", "fixed:8/2", "--retries", "1", "--slo", "ttft<30s", "--quiet",
            "--no-telemetry", "--out", "run",
        )  # fmt: skip
    assert said.code in (0, 1, 4), said.err
    assert "3 retries, of which 3 succeeded" in " ".join(said.out.split())
    assert "15% (3 of 20): http_503 3" in said.out
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["retries"], summary["retries_ok"]) == (3, 3)
    assert "3 retries, of which 3 succeeded" in Path("run/report.html").read_text()
    assert shell("report", "run", "--html", "zh.html", "--lang", "zh").code == 0
    assert "重试 3 次，其中 3 次成功" in Path("zh.html").read_text()
    table = shell("export", "run").out.splitlines()
    at = table[0].split(",").index("attempt")
    assert sorted(row.split(",")[at] for row in table[1:]) == ["1"] * 20 + ["2"] * 3

"""Result files of other tools: the same test gives the same figures, whoever wrote it down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import written
from click.testing import CliRunner, Result

from servecap import cli, slo
from servecap.audit import identities
from servecap.errors import UsageError
from servecap.foreign.read import read
from servecap.foreign.rows import Load, Row, records, replayed
from servecap.foreign.runs import our_load, run_of
from servecap.matrix import files as matrix_files
from servecap.metrics import Summary
from servecap.record import Outcome
from servecap.run import Run
from servecap.scenario import ClosedLoop, OpenLoop
from servecap.summarize import summarize

NAMES = (
    "vllm.json", "vllm-old.json", "sglang.jsonl", "benchmarks.json", "benchmarks-0.2.json",
    "profile_export.jsonl", "profile_export.json",
)  # fmt: skip
REQUESTS = written.asked()
GOOD = written.good(REQUESTS)
TOKENS = sum(sum(r.tokens) for r in GOOD) / len(GOOD)


def brought(path: Path) -> tuple[Run, Summary]:
    (found,) = read(path)
    run = run_of(found, name=path.name, slo=slo.DEFAULT)
    return run, summarize(run)


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli.cli, ["import", *args], standalone_mode=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_tool_gives_the_figures_of_the_test_that_it_wrote_down(
    name: str, tmp_path: Path
) -> None:
    run, summary = brought(written.files(tmp_path)[name])
    assert run.header.source == "imported"
    assert isinstance(run.scenario.load, ClosedLoop)
    assert (run.scenario.load.users, run.scenario.load.queue) == (8, 120)
    assert (summary.requests_ok, summary.requests) == (118, 120)
    mean = {n: d.mean for n, d in summary.client.items()}
    assert mean["ttft"] == pytest.approx(sum(r.ttft_s for r in GOOD) / 118, rel=1e-4)
    assert mean["e2e"] == pytest.approx(sum(r.latency_s for r in GOOD) / 118, rel=1e-4)
    assert mean["tpot"] == pytest.approx(sum(map(written.tpot_s, GOOD)) / 118, rel=1e-4)
    assert mean["output_tokens"] == pytest.approx(sum(sum(r.tokens) for r in GOOD) / 118)
    assert summary.qps == pytest.approx(118 / written.duration_s(REQUESTS), rel=1e-4)
    assert summary.in_flight_max == 8
    assert all(check.holds for check in identities(run, summary)), identities(run, summary)
    assert not any("the file says" in note for note in run.header.notes)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_told_is_not_known(name: str, tmp_path: Path) -> None:
    run, summary = brought(written.files(tmp_path)[name])
    health = run.header.health
    assert health.loop_delay_p99_s is health.cpu_share is None
    assert "lag" not in summary.client
    assert any("whether that tool's client kept up" in text for text in summary.warnings)
    gaps = "gap" in summary.client
    assert gaps == ("benchmarks" not in name)  # guidellm times the first and last token only
    assert {str(r.outcome) for r in run.records} <= {"ok", "http_error", "broken_stream"}


def test_chunks_are_put_together_from_the_shares_that_sglang_writes(tmp_path: Path) -> None:
    run, _ = brought(written.files(tmp_path)["sglang.jsonl"])
    record = next(r for r in run.records if r.request_id == 0)
    assert list(record.chunk_tokens) == REQUESTS[0].tokens
    assert record.gaps_s() == pytest.approx(REQUESTS[0].gaps_s)
    assert run.header.target.model == "Qwen/Qwen3-8B"
    assert run.scenario.workload.source == "random 1024/128"


def test_warm_up_and_cancelled_requests_are_not_counted(tmp_path: Path) -> None:
    text, _ = written.aiperf(REQUESTS)
    lines = [json.loads(line) for line in text.splitlines()]
    lines[5]["metadata"]["was_cancelled"] = True
    lines[5]["error"] = {"code": 499, "type": "RequestCancellationError", "message": "x"}
    path = tmp_path / "profile_export.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    (found,) = read(path)
    assert len(found.rows) == 120
    assert sum(row.outcome is Outcome.CANCELLED for row in found.rows) == 1
    with pytest.raises(UsageError, match="--users N"):  # the file beside it told the load
        run_of(found, name="x", slo=slo.DEFAULT)


def test_starts_are_only_told_where_latencies_reproduce_the_length() -> None:
    rows = [Row(latency_s=r.latency_s) for r in REQUESTS]
    span_s = written.duration_s(REQUESTS)
    placed = replayed(rows, 8, span_s)
    assert placed is not None
    assert [row.sent_s for row in placed] == pytest.approx([r.sent_s for r in REQUESTS], abs=1e-3)
    assert replayed(rows, 8, span_s * 1.2) is None
    assert replayed([*rows, Row()], 8, span_s) is None


def test_open_loops_keep_their_rate_and_need_their_times(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    rate: dict[str, Any] = {"request_rate": 4.0, "max_concurrency": None, "burstiness": 0.25}
    path.write_text(json.dumps(written.vllm(REQUESTS, **rate)))
    run, _ = brought(path)
    assert run.scenario.load == OpenLoop(rate_rps=4.0, arrivals="gamma", cv=2.0)
    path.write_text(json.dumps(written.vllm(REQUESTS, starts=False, **rate)))
    with pytest.raises(UsageError, match="when requests were sent"):
        brought(path)


def test_waiting_in_the_tools_own_client_counts_into_latency(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(written.vllm(REQUESTS, queue_times=[0.5] * 120)))
    _, summary = brought(path)
    assert summary.client["ttft"].mean - summary.client["ttft_sent"].mean == pytest.approx(0.5)
    assert any("the other tool's own times" in reason for reason in summary.invalid_reasons)


def test_a_file_that_contradicts_its_requests_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(written.vllm(REQUESTS, mean_ttft_ms=9000.0, completed=120)))
    run, _ = brought(path)
    told = [note for note in run.header.notes if "the file says" in note]
    assert len(told) == 2
    assert "mean TTFT of 9" in told[1]


def test_a_burst_is_as_many_users_as_requests() -> None:
    made = records([Row(sent_s=1.0, latency_s=1.0)] * 5)
    load = our_load(Load(at_once=True), made, "x")
    assert load == ClosedLoop(users=5, think_s=(0.0, 0.0), queue=5)
    assert sorted(r.user for r in made) == [0, 1, 2, 3, 4]


# The command


def test_an_imported_run_is_reported_audited_compared_and_never_called_valid(
    tmp_path: Path,
) -> None:
    made = written.files(tmp_path)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    done = invoke(str(made["vllm.json"]), "--out", one)
    assert done.return_value == 0, done.exception
    assert done.stdout.startswith("IMPORTED, ")
    assert "VALID" not in done.stdout
    assert "imported from vllm bench serve" in done.stdout
    assert invoke(str(made["sglang.jsonl"]), "--out", two).return_value == 0
    page = (tmp_path / "one" / "report.html").read_text()
    assert "IMPORTED" in page
    assert "VALID," not in page
    run = CliRunner().invoke(cli.cli, ["audit", one], standalone_mode=False)
    assert run.return_value == 0, run.output
    assert "whether that tool's client kept up" in " ".join(run.output.split())
    run = CliRunner().invoke(cli.cli, ["compare", one, two], standalone_mode=False)
    assert run.return_value == 0, run.exception
    assert "No difference shown" in run.output


def test_several_tests_in_a_file_become_several_runs(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(written.sglang(REQUESTS)) for _ in range(2))
    path = tmp_path / "x.jsonl"
    path.write_text(lines)
    assert invoke(str(path), "--out", str(tmp_path / "both")).return_value == 0
    assert (tmp_path / "both" / "02" / "run.json").is_file()
    assert invoke(str(path), "--only", "2", "--out", str(tmp_path / "b")).return_value == 0
    assert (tmp_path / "b" / "run.json").is_file()


def aggregates(folder: Path) -> list[str]:
    """Tests without requests at 8, 16 and 32 in flight; the last breaks the SLO."""
    paths = []
    for users, ttft_ms in ((8, 250.0), (16, 900.0), (32, 5000.0)):
        path = folder / f"c{users}.json"
        given: dict[str, Any] = {
            "mean_ttft_ms": ttft_ms,
            "mean_e2el_ms": 2000.0,
            "request_throughput": users / 2.0,
        }
        given |= {"output_throughput": users / 2.0 * TOKENS, "total_token_throughput": None}
        document = written.vllm(REQUESTS, detailed=False, max_concurrency=users, **given)
        path.write_text(json.dumps(document))
        paths.append(str(path))
    return paths


def test_aggregates_become_a_cell_and_no_run(tmp_path: Path) -> None:
    paths = aggregates(tmp_path)
    refused = invoke(paths[0], "--out", str(tmp_path / "run"))
    assert isinstance(refused.exception, UsageError)
    assert "--save-detailed" in str(refused.exception)
    cell = tmp_path / "cells.csv"
    done = invoke(*paths, "--cell", str(cell), "--gpu", "h100", "--tp", "1")
    assert done.return_value == 0, done.exception
    (found,) = matrix_files.read(cell).cells
    assert found.capacity is not None
    # 16 in flight and 8 requests/s are 32 users who think 2 s; 32 in flight are 64.
    assert (found.capacity.users, found.capacity.users_high) == (32, 63)
    assert found.capacity.limited_by == "ttft.mean<3s"
    assert found.ttft_s == pytest.approx(0.9)
    assert found.requests_per_s == pytest.approx(8.0)
    plan = ["plan", str(cell), "--users", "1000"]
    assert CliRunner().invoke(cli.cli, plan, standalone_mode=False).return_value == 0
    assert CliRunner().invoke(cli.cli, ["audit", str(cell)]).exit_code == 0


def test_requests_become_a_cell_too_and_csv_needs_its_load(tmp_path: Path) -> None:
    made = written.files(tmp_path)
    cell = tmp_path / "cells.json"
    args = ["--cell", str(cell), "--gpu", "h100", "--tp", "1", "--think-mean", "0"]
    args += ["--slo", "ttft.mean<3s,error_rate<10%"]
    done = invoke(str(made["vllm.json"]), *args)
    assert done.return_value == 0, done.exception
    (found,) = matrix_files.read(cell).cells
    assert found.capacity is not None
    assert (found.capacity.users, found.capacity.users_high) == (8, None)
    table = tmp_path / "profile_export_genai_perf.csv"
    table.write_text(written.GENAI_CSV)
    (told,) = read(table)
    assert (told.told.ttft["mean"], told.told.e2e["mean"], told.told.qps) == (0.25, 1.25, 6.4)
    unknown = invoke(str(table), *args, "--model", "m").exception
    assert isinstance(unknown, UsageError)
    assert "--users N" in str(unknown)
    assert invoke(str(table), *args, "--model", "m", "--users", "8").return_value == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no result file"),
        ("{}", "no result file"),
        ("[1]", "no result file"),
        ('{"data": []}', "prompts, not results"),
        ('{"request_throughput": 1, "model_id": "m", "ttfts": "x"}', "damaged"),
        ('{"experiments": [1], "service_kind": "openai"}', "damaged"),
        ('{"experiments": []}', "no load test"),
        ('{"benchmarks": [{"metrics": {}}]}', "--users N|per request|all requests"),
    ],
)
def test_other_files_are_refused_in_one_line(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    error = invoke(str(path), "--out", str(tmp_path / "r")).exception
    assert isinstance(error, UsageError), error
    assert any(part in str(error) for part in why.split("|"))
    assert "\n" not in str(error)


def test_a_missing_file_and_options_that_exclude_each_other(tmp_path: Path) -> None:
    wrong: list[tuple[Any, ...]] = [
        (str(tmp_path / "none"),),
        (*aggregates(tmp_path), "--cell", "x.csv", "--gpu", "a", "--tp", "1", "--out", "y"),
        (*aggregates(tmp_path), "--users", "1", "--rate", "1"),
        (*aggregates(tmp_path), "--only", "9"),
        (*aggregates(tmp_path), "--cell", "x.csv"),
    ]
    for args in wrong:
        assert isinstance(invoke(*args).exception, UsageError)

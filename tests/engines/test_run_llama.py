"""`servecap run` and `find` against a real llama.cpp server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from servecap import cli
from servecap.record import Outcome, Record
from servecap.store import read_run

pytestmark = pytest.mark.engine


def servecap(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of a command."""
    monkeypatch.setattr(sys, "argv", ["servecap", *words, "--json", "--quiet"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int), err
    return caught.value.code, json.loads(out)


def checked(record: Record) -> float:
    """The client's decode time over llama.cpp's own, for a whole answer of 24 tokens."""
    assert record.outcome is Outcome.OK
    assert record.output_tokens == record.asked_output_tokens == 24
    assert record.token_source == "server"
    assert record.first_token_s is not None
    assert record.planned_s <= record.sent_s < record.first_token_s <= record.end_s
    told = record.server
    assert told is not None
    assert told.prefill_s is not None
    assert told.inference_s is not None
    assert told.tpot_s is not None
    assert record.ttft_sent_s is not None
    assert record.tpot_s is not None
    assert record.ttft_sent_s > told.prefill_s - 0.002, "the client cannot see it any earlier"
    assert record.end_s - record.sent_s > told.inference_s - 0.005
    return record.tpot_s / told.tpot_s


@pytest.mark.parametrize("api", ["openai-chat", "openai-completions"])
def test_run_agrees_with_the_servers_own_clock(
    api: str,
    slow_llama_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three users on four slots: TPOT is the server's within 10% for half of the answers.

    A user without a queue before it sees the server's prefill as its TTFT; prompts of others are
    read in between, so only the lower side holds for every single one.
    """
    out = tmp_path / "run"
    code, told = servecap(
        monkeypatch, capsys, "run", "--url", slow_llama_url, "--api", api, "--users", "3",
        "--think", "0.1..0.3", "--workload", "fixed:42/24", "--queue", "12", "--out", str(out),
        "--slo", "ttft<30s,tpot<5s",
    )  # fmt: skip
    assert code in (0, 4), "4: this machine was too busy to be believed"
    run = read_run(out)
    assert len(run.records) == 12
    ratios = sorted(checked(record) for record in run.records)
    assert ratios[6] == pytest.approx(1.0, abs=0.1)
    assert {r.user for r in run.records} == {0, 1, 2}
    prompts = [r.prompt_tokens or 0 for r in run.records]
    assert min(prompts) >= 42, "words of the workload are several tokens in so small a vocabulary"
    summary = told["summary"]
    assert summary["requests_ok"] == 12
    assert summary["client"]["output_tokens"]["mean"] == 24
    assert summary["output_tps"] == pytest.approx(24 * summary["qps"])
    assert summary["in_flight_max"] <= 3
    assert not summary["errors"]


def test_run_to_its_own_end(
    llama_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The default stop rule: enough requests in a stationary window."""
    code, told = servecap(
        monkeypatch, capsys, "run", "--url", llama_url, "--users", "4", "--think", "0.05..0.15",
        "--workload", "fixed:16/8", "--requests", "100", "--max-duration", "30",
        "--slo", "ttft<20s,tpot<5s", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    summary = told["summary"]
    assert summary["requests"] >= 100
    assert summary["error_rate"] == 0
    assert summary["window"]["start_s"] > 0
    assert code == (4 if summary["invalid_reasons"] else 0)
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_find_ends_with_a_capacity(
    slow_llama_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four slots that a few users with short thinking fill: then requests wait, and TTFT breaks.

    The limit is eight times what one user sees, so that the speed of the machine does not matter.
    Five per cent of errors could not be ruled out by so few requests, so more are allowed.
    """
    load = ("--url", slow_llama_url, "--workload", "fixed:8/16", "--think", "0.1..0.3")
    _, alone = servecap(
        monkeypatch, capsys, "run", *load, "--users", "1", "--each", "8",
        "--out", str(tmp_path / "alone"), "--slo", "ttft<30s",
    )  # fmt: skip
    slo = f"ttft.mean<{8e3 * alone['summary']['client']['ttft']['mean']:.0f}ms"
    code, told = servecap(
        monkeypatch, capsys, "find", *load, "--slo", f"{slo},error_rate<20%", "--start", "4",
        "--max-users", "64", "--precision", "30%", "--requests", "40", "--max-duration", "10",
        "--out", str(tmp_path / "find"),
    )  # fmt: skip
    levels = [
        (x["users"], x["verdict"], x["summary"]["checks"], x["summary"]["invalid_reasons"])
        for x in told["levels"]
    ]
    capacity = told["capacity"]
    assert code == 0, levels
    assert 1 <= capacity["users"] <= 63, levels
    assert capacity["users_high"] is not None, levels
    assert capacity["users_high"] >= capacity["users"]
    assert capacity["limited_by"].startswith("ttft.mean<")
    assert (tmp_path / "find" / "search.json").exists()

"""Real vLLM that rejects, joins tokens, stands still, and is stopped in the middle of answers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from commands import Shell, started
from histograms import read_histogram
from prometheus_client.parser import text_string_to_metric_families
from vllm_fixtures import TOKENS_PER_CHUNK
from vllm_server import Vllm, running_vllm

from servecap.record import Outcome, Record
from servecap.store import read_run

pytestmark = pytest.mark.vllm

WAIT_S = 120.0
LONG_TOKENS = 1200
GIVEN_UP = (Outcome.HTTP_ERROR, Outcome.BROKEN_STREAM, Outcome.TIMEOUT)
QUIET = ("--quiet", "--slo", "ttft<60s,tpot<5s", "--out", "run")


def running(server: Vllm) -> float:
    """Requests that are being decoded, as vLLM says."""
    for family in text_string_to_metric_families(server.metrics()):
        if family.name == "vllm:num_requests_running":
            return sum(sample.value for sample in family.samples)
    raise KeyError("vllm:num_requests_running")


def wait_until(true: Callable[[], bool]) -> None:
    """Look until it is so: of another process there is no word when it becomes so."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def long_answers(server: Vllm, *, requests: int, timeout_s: int) -> subprocess.Popen[str]:
    """A run, as a process of its own, of eight users whose answers are long enough to meet in."""
    return started(
        "run", "--url", server.url, "--users", "8", "--queue", str(requests), "--think", "0..0.1",
        "--workload", f"fixed:20/{LONG_TOKENS}", "--request-timeout", str(timeout_s), "--ramp", "0",
        *QUIET,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, tuple[Record, ...]]:
    """Exit code and records of a run that is a process of its own."""
    _, err = process.communicate(timeout=WAIT_S)
    assert "Traceback" not in err
    return process.returncode, tuple(read_run(Path("run")).records)


def test_joined_tokens_are_counted_by_the_server(shell: Shell, strict_vllm: Vllm) -> None:
    """Four tokens in a chunk: TPOT is still that of vLLM's histogram, and is not the gap."""
    name = "vllm:request_time_per_output_token_seconds"
    before = read_histogram(strict_vllm.metrics(), name)
    said = shell(
        "run", "--url", strict_vllm.url, "--users", "2", "--think", "0.05..0.1", "--queue", "16",
        "--workload", "fixed:20/65", *QUIET,
    )  # fmt: skip
    assert said.code in (0, 4), said.err
    told = read_histogram(strict_vllm.metrics(), name) - before
    records = read_run(Path("run")).records
    assert {r.output_tokens for r in records} == {65}
    for record in records:
        assert len(record.chunk_s) <= 2 + 65 // TOKENS_PER_CHUNK
    tpot_s = sum(r.tpot_s or 0.0 for r in records) / len(records)
    assert tpot_s == pytest.approx(told.mean_s, rel=0.1)


def test_rejections_are_told_as_503_and_disturb_nobody(shell: Shell, strict_vllm: Vllm) -> None:
    """48 users on 16 + 4 places: HTTP 503, or HTTP 200 with the error in the stream.

    They come one after the other, and slowly: a run ends early where none of the first requests
    succeeds, and on a busy machine an answer takes many times as long as a rejection.
    """
    said = shell(
        "run", "--url", strict_vllm.url, "--users", "48", "--queue", "240", "--ramp", "40",
        "--think", "0.2..0.6", "--workload", "fixed:20/64", *QUIET,
    )  # fmt: skip
    assert said.code in (1, 4), "many requests failed"
    records = read_run(Path("run")).records
    assert len(records) == 240
    outcomes = Counter((r.outcome, r.status) for r in records)
    rejected = {(Outcome.HTTP_ERROR, 503), (Outcome.HTTP_ERROR, 200)}  # 200: told in the stream
    assert set(outcomes) & rejected
    outcomes_seen = {r.outcome for r in records}
    assert outcomes_seen == {Outcome.OK, Outcome.HTTP_ERROR}
    assert {(o, s) for o, s in outcomes if o is Outcome.HTTP_ERROR} <= rejected
    assert outcomes[Outcome.OK, 200] >= 16
    for record in records:
        if record.outcome is Outcome.OK:
            assert record.output_tokens == 64
        elif record.outcome is Outcome.HTTP_ERROR:
            assert record.error is not None
            assert "busy" in record.error
            assert record.status == 503 or record.error.startswith("503: ")
            assert record.first_token_s is None
    assert "503" in said.out


def test_a_server_that_stands_still_ends_in_timeouts(shell: Shell, vllm: Vllm) -> None:
    """Stopped like a hung one, it keeps its connections and says nothing; then it goes on."""
    del shell  # only for its folder
    process = long_answers(vllm, requests=16, timeout_s=10)
    try:
        wait_until(lambda: running(vllm) >= 4)
        os.killpg(vllm.process.pid, signal.SIGSTOP)
        code, records = ended(process)
    finally:
        os.killpg(vllm.process.pid, signal.SIGCONT)
        process.kill()
        process.wait()
    assert code in (1, 4)
    late = [r for r in records if r.outcome is Outcome.TIMEOUT]
    assert len(late) >= 4
    assert all(r.end_s - r.sent_s >= 10.0 for r in late)
    assert {r.outcome for r in records} <= {Outcome.OK, Outcome.TIMEOUT, Outcome.CENSORED}
    wait_until(lambda: running(vllm) == 0)  # it has seen that nobody reads any more


def test_sigterm_in_the_middle_of_answers_fails_them(
    shell: Shell, vllm_model: Path, tmp_path: Path
) -> None:
    """No answer that the server gave up counts as one, and the run is not clean.

    vLLM ends its streams with an error, or says no more and keeps the connections: then it is the
    client's timeout that ends them, and the server is gone only when it is killed.
    """
    del shell  # only for its folder
    with running_vllm(vllm_model, tmp_path / "ending.log") as server:
        group = [psutil.Process(server.process.pid)]
        group += group[0].children(recursive=True)
        process = long_answers(server, requests=24, timeout_s=30)
        try:
            wait_until(lambda: running(server) >= 4)
            os.kill(server.process.pid, signal.SIGTERM)
            code, records = ended(process)
        finally:
            process.kill()
            process.wait()
    assert code in (1, 4)
    assert 8 <= len(records) <= 24, "a run in which none of the first succeeds ends early"
    told = Counter((r.outcome, r.status) for r in records)
    in_flight = [r for r in records if r.first_token_s is not None]
    assert len(in_flight) >= 4
    for record in in_flight:
        if record.outcome is Outcome.OK:
            assert record.output_tokens == LONG_TOKENS, told
        else:
            assert record.outcome in GIVEN_UP, told
    assert sum(r.outcome is not Outcome.OK for r in in_flight) >= 4, told
    assert not [p for p in group if p.is_running()], "vLLM left processes behind"

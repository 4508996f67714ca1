"""Runs that are ended from outside: Ctrl-C, a kill, a full disk, a second load on one folder."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import started
from scripted import Call, Server, serving

from servecap.run import Status
from servecap.store import read_run

LOAD = ("--workload", "fixed:8/2", "--think", "0..0.02", "--quiet")


class After:
    """Answers, and sets an event once so many requests were answered."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.reached = threading.Event()
        self._answered = 0

    async def __call__(self, call: Call) -> None:
        await call.answer()
        self._answered += 1
        if self._answered >= self.wanted:
            self.reached.set()


@contextmanager
def loaded(after: int, out: Path, *words: str, before: str = "") -> Iterator[
    tuple[subprocess.Popen[str], Server]
]:  # fmt: skip
    """A run in a process of its own that has had so many answers."""
    reply = After(after)
    with serving(reply) as server:
        process = started(
            "run", "--url", server.url, "--users", "8", "--duration", "60", *LOAD,
            "--out", out, *words, before=before,
        )  # fmt: skip
        try:
            assert reply.reached.wait(60), "the load did not start"
            yield process, server
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=60)


@pytest.mark.parametrize("seed", range(3))
def test_killed_run_leaves_its_finished_records_readable(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    after = rng.randint(20, 400)
    with loaded(after, tmp_path / "run") as (process, _):
        process.kill()
        process.wait(30)
    run = read_run(tmp_path / "run")
    assert run.header.status is Status.PARTIAL
    assert len(run.records) >= after - 8 - 8, "all but those in flight, at most one per user"
    assert all(r.ok for r in run.records)
    assert run.header.scenario.users == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_run_early_and_still_reports(
    tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    with loaded(300, out, "--json") as (process, _):
        process.send_signal(number)
        said, erred = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in erred
    run = read_run(out)
    assert run.header.status is Status.INTERRUPTED
    assert run.header.stop_reason == f"ended early by {number.name}"
    told = json.loads(said)
    assert told["run"]["status"] == "interrupted"
    assert json.loads((out / "summary.json").read_text())["requests"] > 0
    assert (out / "report.html").stat().st_size > 10_000


def test_signal_before_the_load_ends_without_a_traceback(tmp_path: Path) -> None:
    """Ctrl-C while the server takes its time over the first request."""
    asked = threading.Event()

    async def slow(call: Call) -> None:
        asked.set()
        await call.write(b"")
        await asyncio.sleep(60)

    with serving() as server:
        server.trial = slow
        process = started("run", "--url", server.url, *LOAD, "--out", tmp_path / "run")
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        _, erred = process.communicate(timeout=60)
    assert process.returncode == 130
    assert erred.strip() == "ended by Ctrl-C"
    assert not (tmp_path / "run").exists()


def test_full_disk_is_one_line_and_keeps_the_finished_records(tmp_path: Path) -> None:
    """No file of this process may grow beyond 40 kB."""
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (40_000, 40_000))"
    with loaded(60, tmp_path / "run", before=limit) as (process, _):
        out, erred = process.communicate(timeout=60)
    assert process.returncode == 2
    assert erred.count("\n") == 1, erred
    assert "the run was stopped" in erred
    assert out == ""
    run = read_run(tmp_path / "run")
    assert f"{len(run.records)} finished records are kept" in erred
    assert len(run.records) > 50


def test_interrupted_search_reports_the_levels_it_had(tmp_path: Path) -> None:
    """The first level passes; Ctrl-C comes in the second, which then does not count."""
    out = tmp_path / "find"
    second = threading.Event()

    async def reply(call: Call) -> None:
        await call.answer()
        if len(list(out.glob("*-users-*"))) > 1:
            second.set()

    with serving(reply) as server:
        process = started(
            "find", "--url", server.url, *LOAD, "--start", "2", "--requests", "50",
            "--slo", "ttft<9s", "--out", out, "--json",
        )  # fmt: skip
        try:
            assert second.wait(60), "there was no second level"
            process.send_signal(signal.SIGINT)
            said, erred = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(30)
    assert process.returncode == 130, erred
    result = json.loads(said)
    assert result["interrupted"]
    assert [level["users"] for level in result["levels"]][:1] == [2]
    assert json.loads((out / "search.json").read_text())["interrupted"]
    assert (out / "report.html").exists()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        folder = Path("/proc/servecap-cannot-be-here")  # root may write anywhere else
    else:
        folder = tmp_path / "read-only"
        folder.mkdir(mode=0o500)
    with serving() as server:
        process = started("run", "--url", server.url, *LOAD, "--out", folder / "run")
        _, erred = process.communicate(timeout=60)
    assert process.returncode == 2
    assert erred.count("\n") == 1, erred
    assert "cannot be written" in erred

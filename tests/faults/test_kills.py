"""SIGKILL at any moment: what had finished can be read, nothing is left running, work goes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import psutil
import pytest
from scripted import Call, serving

from servecap import cli
from servecap.matrix.journal import read_journal
from servecap.record import Record, decode
from servecap.run import Run, Status
from servecap.store import HEADER, LATER, RECORDS, read_run

USERS, MOST_USERS = 3, 6
LOAD = ("--workload", "fixed:8/2", "--think", "0..0.01", "--quiet")
START_S = 60.0
EARLY = 120  # answers; a search of `find_words` has three levels and some 370, never under 200
GONE_S = 20.0  # that processes without a parent have to find out and go


class Counted:
    """How many answers were given; says when there are *awaited* of them."""

    def __init__(self, awaited: int) -> None:
        self.answered = 0
        self._awaited = awaited
        self.reached = threading.Event()

    async def __call__(self, call: Call) -> None:
        await call.answer()
        self.answered += 1
        if self.answered >= self._awaited:
            self.reached.set()


@contextmanager
def counting(awaited: int = 1) -> Iterator[tuple[str, Counted]]:
    reply = Counted(awaited)
    with serving(reply) as server:
        yield server.url, reply


def forked(words: list[str]) -> int:
    """The command line in a forked process with a group of its own; a start takes no time so."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        sys.argv = ["servecap", *words]
        cli.main()
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    finally:
        os._exit(99)


def killed_after(pid: int, delay_s: float) -> bool:
    """SIGKILL for the process alone, unless it ended before; then its group must be empty.

    Whether it was killed.
    """
    killed = False
    deadline = time.monotonic() + delay_s
    waiting = threading.Event()
    while (left_s := deadline - time.monotonic()) > 0:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        waiting.wait(min(0.01, left_s))
    else:
        os.kill(pid, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    until = time.monotonic() + GONE_S
    while left := group(pid):
        assert time.monotonic() < until, f"left behind: {left}"
        waiting.wait(0.02)
    return killed


def group(pid: int) -> list[str]:
    """The living processes of a group."""
    found = []
    for process in psutil.process_iter(["pid", "status", "name"]):
        try:
            if os.getpgid(process.pid) == pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(f"{process.info['name']} {process.pid}")
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def readable(folder: Path) -> Run | None:
    """The run in a folder, if it had begun; all whole lines must be records."""
    if not (folder / HEADER).exists():
        assert not (folder / RECORDS).exists() or (folder / RECORDS).stat().st_size == 0
        return None
    run = read_run(folder)
    assert all(r.ok or r.outcome in ("censored", "cancelled") for r in run.records)
    assert len({r.request_id for r in run.records}) == len(run.records)
    return run


def later(out: Path) -> list[Record]:
    """What waits between two levels."""
    lines = [line for path in out.glob(f"*/{LATER}") for line in path.read_bytes().split(b"\n")]
    return [decode(line) for line in lines if line]


def run_words(url: str, out: Path, workers: int) -> list[str]:
    return ["run", "--url", url, *LOAD, "--users", str(USERS), "--duration", "60",
            "--workers", str(workers), "--out", str(out)]  # fmt: skip


def find_words(url: str, out: Path, _: int) -> list[str]:
    return ["find", "--url", url, *LOAD, "--start", "2", "--max-users", str(MOST_USERS),
            "--requests", "400", "--slo", "ttft<9s", "--out", str(out)]  # fmt: skip


def kill_many(
    folder: Path, words: Callable[[str, Path, int], list[str]], seeds: range, most_s: float = 1.5
) -> tuple[int, int]:
    """So many commands killed at random moments: the answers they kept, and the kills in a load.

    Half of them are killed at a random time after their start, which on a busy machine may be
    before there is any load, and of a search after its end. The others are killed at one of the
    first `EARLY` answers, however long that takes, so that these kills surely meet it alive.

    A user asks again only when the last answer is on the disk. So of all that was answered at
    most one for each user may be missing: what had reached the socket and was not yet read.
    Between two levels of a search they wait for the next one in the folder of the last.
    """
    total = in_load = 0
    for seed in seeds:
        rng = Random(seed)
        out = folder / str(seed)
        users = USERS if words is run_words else MOST_USERS
        with counting(rng.randint(1, EARLY)) as (url, reply):
            pid = forked(words(url, out, rng.choice((1, 1, 2))))
            if seed % 2:
                assert reply.reached.wait(START_S)
                assert killed_after(pid, 0.0), "it was in the middle of its work"
            else:
                killed_after(pid, rng.uniform(0.0, most_s))
            runs = [out, *out.glob("*-users-*")]
            kept = [run for folder in runs if folder.is_dir() and (run := readable(folder))]
            records = [r for run in kept for r in run.records] + later(out)
            answered = {r.request_id for r in records if r.ok}
            open_ = any(run.header.status is Status.PARTIAL for run in kept)
            living = open_ or bool(list(out.glob(f"*/{LATER}")))
            in_load += living
            if living:  # else the load was over, or not yet there, or nothing came between levels
                assert len(answered) >= reply.answered - users, seed
        total += len(answered)
    return total, in_load


def test_killed_runs(tmp_path: Path) -> None:
    kept, in_load = kill_many(tmp_path, run_words, range(4))
    assert kept > 0
    assert in_load >= 2


@pytest.mark.slow
def test_run_killed_at_a_hundred_moments(tmp_path: Path) -> None:
    kept, in_load = kill_many(tmp_path, run_words, range(100, 200))
    assert kept > 100
    assert in_load >= 50, "those killed at an answer"


@pytest.mark.slow
def test_find_killed_at_forty_moments(tmp_path: Path) -> None:
    kept, in_load = kill_many(tmp_path, find_words, range(40), 4.0)
    assert kept > 40
    assert in_load >= 18, "of 20 killed at an answer, but for the blink between two levels"


@pytest.mark.slow
def test_matrix_killed_again_and_again_comes_to_its_end(tmp_path: Path) -> None:
    """Each start goes on where the last one was killed; cells that were filled stay."""
    rng = Random(5)
    with counting() as (url, _):
        spec = tmp_path / "m.yaml"
        spec.write_text(
            "scenarios: {s: {workload: 'fixed:8/2', think_s: [0, 0.01], slo: 'ttft<9s',"
            " requests: 40, start: 2, max_users: 2}}\n"
            f"cells:\n  - {{model: m, gpu: [a, b, c], tp: [1, 2], scenario: s, url: '{url}'}}\n"
        )
        kept = 0
        for attempt in range(30):
            most_s = 4.0 * 1.2**attempt  # a busy machine may take longer for a cell
            killed_after(forked(["matrix", str(spec), "--quiet"]), rng.uniform(0.3, most_s))
            entries = read_journal(tmp_path / "m" / "cells.jsonl")
            filled = len({e.place for e in entries if e.cell is not None})
            assert filled >= kept, "a filled cell was lost"
            kept = filled
            if kept == 6:
                break
        assert kept == 6

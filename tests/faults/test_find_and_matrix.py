"""`find` and `matrix` under fire: a full disk, no descriptors, signals, servers of their own."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import psutil
import pytest
from click.testing import CliRunner
from commands import started
from scripted import Call, serving

from servecap.cli import cli
from servecap.cli.find import SEARCH
from servecap.matrix.journal import Entry, read_journal
from servecap.record import Outcome, decode
from servecap.run import Status
from servecap.store import HEADER, LATER, RECORDS, read_run

GONE_S = 60.0
LOAD = ("--workload", "fixed:8/2", "--think", "0..0.01", "--quiet", "--no-telemetry")
CELLS = """\
scenarios: {s: {workload: 'fixed:8/2', think_s: [0, 0.01], slo: 'ttft<9s', requests: 40, start: 2,
                max_users: 2}}
cells:
  - {model: m, gpu: [a, b], tp: 1, scenario: s, SOURCE}
"""
# A server of OpenAI's API in a process of its own, with a child beside it as real ones have.
SERVER = """
import json, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", sys.argv[2]])
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def say(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.say(b'{"object":"list","data":[{"id":"m"}]}')
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        said = [{"choices": [{"delta": {"content": "a"}}]}] * 2
        said += [{"choices": [{"delta": {}, "finish_reason": "length"}]}]
        said += [{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}]
        lines = [json.dumps(part) for part in said] + ["[DONE]"]
        self.say("".join(f"data: {line}\\n\\n" for line in lines).encode(), "text/event-stream")
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


async def proper(call: Call) -> None:
    await call.answer()


def wait_until(true: Callable[[], object]) -> None:
    """Look until it is so: of another process there is no word when it becomes so."""
    deadline, pause = time.monotonic() + GONE_S, threading.Event()
    while not true():
        assert time.monotonic() < deadline
        pause.wait(0.02)


def spec(folder: Path, source: str) -> Path:
    path = folder / "m.yaml"
    path.write_text(CELLS.replace("SOURCE", source))
    return path


def own_server(folder: Path) -> str:
    """The source of cells whose server is started by us."""
    path = folder / "server.py"
    path.write_text(SERVER)
    return f"command: ['{sys.executable}', '{path}', '{{port}}', '{path}'], stop_timeout_s: 1"


def family(folder: Path) -> list[int]:
    """The living processes of the cells' servers."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if str(folder / "server.py") in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=GONE_S)


def entries(folder: Path) -> list[Entry]:
    return read_journal(folder / "m" / "cells.jsonl")


def filled(folder: Path) -> int:
    return len({e.place for e in entries(folder) if e.cell is not None})


def levels(out: Path) -> list[Path]:
    return [path for path in sorted(out.glob("*-users-*")) if (path / HEADER).exists()]


# a disk that is full


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "servecap-test", str(folder)],
        check=False, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


FIND = ("--start", "2", "--max-users", "6", "--requests", "100000", "--slo", "ttft<9s")


def whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


SIZES = [("run", "64k"), ("find", "48k"), ("find", "56k"), ("find", "64k"), ("find", "128k")]


@pytest.mark.parametrize(("command", "size"), SIZES)
def test_full_disk_keeps_the_finished_records(tmp_path: Path, command: str, size: str) -> None:
    """Wherever `find` meets it: in a level's records, its header, the search's file, a new folder.

    At 48 kB that is in the first level and at 64 kB almost always between two of them.
    """
    more = FIND if command == "find" else ("--users", "4", "--duration", "60")
    with small_disk(tmp_path / "disk", size) as disk, serving(proper) as server:
        out = disk / "out"
        process = started(command, "--url", server.url, *LOAD, *more, "--out", out)
        with ended(process):
            said, erred = process.communicate(timeout=GONE_S)
        assert process.returncode == 2, erred
        assert erred.count("\n") == 1, erred
        assert "No space left on device" in erred
        assert said == ""
        runs = [read_run(path) for path in ([out] if command == "run" else levels(out))]
        *before, last = runs
        assert all(run.header.status is Status.COMPLETE for run in before)
        inside = any(f"'{last.path}{name}' (" in erred for name in ("", f"/{RECORDS}"))
        assert last.header.status is (Status.PARTIAL if inside else Status.COMPLETE), erred
        assert (last.header.load_end_s is None) == inside
        if f"'{last.path}/{RECORDS}'" in erred:
            assert f"{len(last.records)} finished records are kept" in erred
        if inside:  # else any number may have come after the last level, and are nobody's
            whole = [line for path in out.glob(f"*/{LATER}") for line in whole_lines(path)]
            stored = [r for run in runs for r in run.records] + [decode(line) for line in whole]
            most = max(run.header.scenario.users or 0 for run in runs)
            # A user asks again only when the last answer is on the disk.
            assert len({r.request_id for r in stored if r.ok}) >= len(server.asked) - most


def test_find_that_may_write_no_more_keeps_the_finished_records(tmp_path: Path) -> None:
    """No file of this process may grow beyond 12 kB: as a full disk, but for whoever is no root."""
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (12_000, 12_000))"
    out = tmp_path / "out"
    with serving(proper) as server:
        process = started("find", "--url", server.url, *LOAD, *FIND, "--out", out, before=limit)
        with ended(process):
            _, erred = process.communicate(timeout=GONE_S)
    assert process.returncode == 2
    assert erred.count("\n") == 1, erred
    (level,) = levels(out)
    run = read_run(level)
    assert f"{len(run.records)} finished records are kept" in erred
    assert len(run.records) > 20


@pytest.mark.slow
def test_matrix_goes_on_when_a_full_disk_has_room_again(tmp_path: Path) -> None:
    """The first cell fits; the second does not, and is filled once there is room."""
    with small_disk(tmp_path / "disk", "512k") as disk, serving(proper) as server:
        path = spec(disk, f"url: '{server.url}'")
        words = ("matrix", path, "--quiet", "--no-telemetry")
        filler = disk / "filler"

        def only(gpu: str) -> subprocess.Popen[str]:
            return started(*words, "--only", f"gpu={gpu}")

        with ended(only("a")) as process:
            assert process.wait(GONE_S) == 0
        assert filled(disk) == 1
        with suppress(OSError):
            filler.write_bytes(bytes(2**20))
        with ended(started(*words)) as process:
            _, erred = process.communicate(timeout=GONE_S)
        assert process.returncode in (1, 2)  # the cell's records or the journal have no room
        assert erred
        assert "Traceback" not in erred
        assert "No space left on device" in erred
        assert filled(disk) == 1
        filler.unlink()
        with ended(started(*words)) as process:
            assert process.wait(GONE_S) == 0
        assert filled(disk) == 2


# a folder that cannot be written, and descriptors that have run out


@pytest.mark.parametrize("command", ["find", "matrix"])
def test_read_only_folder(tmp_path: Path, command: str) -> None:
    if os.geteuid() == 0:
        folder = Path("/proc/servecap-cannot-be-here")  # root may write anywhere else
    else:
        folder = tmp_path / "read-only"
        folder.mkdir(mode=0o500)
    with serving(proper) as server:
        if command == "find":
            words: tuple[str | Path, ...] = ("--url", server.url, *LOAD, *FIND)
        else:
            words = (spec(tmp_path, f"url: '{server.url}'"), "--quiet")
        with ended(started(command, *words, "--out", folder / "out")) as process:
            _, erred = process.communicate(timeout=GONE_S)
        asked = len(server.asked)
    assert process.returncode == 2
    assert erred.count("\n") == 1, erred
    assert "cannot be" in erred
    assert asked == 0, "known before there was any load"


def test_run_that_is_out_of_descriptors_fails_those_requests_and_no_others(tmp_path: Path) -> None:
    """From the 60th on, 120 requests/s take a second each on 90 descriptors: some get no socket."""

    async def slow(call: Call) -> None:
        await call.answer(first_s=0.0 if len(call.server.asked) < 60 else 1.0)

    limit = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (90, 90))"
    out = tmp_path / "out"
    with serving(slow) as server:
        process = started(
            "run", "--url", server.url, "--workload", "fixed:8/2", "--quiet", "--no-telemetry",
            "--rate", "120", "--duration", "3", "--workers", "1", "--slo", "ttft<60s", "--out", out,
            before=limit,
        )  # fmt: skip
        with ended(process):
            _, erred = process.communicate(timeout=GONE_S)
    assert process.returncode in (1, 4), erred
    assert "Traceback" not in erred
    assert (out / "report.html").exists()
    records = read_run(out).records
    without = [r for r in records if r.outcome is Outcome.REFUSED]
    assert without
    assert {r.error for r in without} == {"no socket can be had: Too many open files"}
    assert sum(r.ok for r in records) > 40
    assert {r.outcome for r in records} <= {Outcome.OK, Outcome.REFUSED, Outcome.CENSORED}


def test_find_without_descriptors_for_its_users_says_how_many_it_needs(tmp_path: Path) -> None:
    limit = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (90, 90))"
    with serving(proper) as server:
        process = started(
            "find", "--url", server.url, *LOAD, "--start", "200", "--out", tmp_path / "out",
            before=limit,
        )  # fmt: skip
        with ended(process):
            _, erred = process.communicate(timeout=GONE_S)
    assert process.returncode == 2
    assert erred.count("\n") == 1, erred
    assert "200 users need as many sockets" in erred


def test_cell_without_descriptors_fails_with_its_reason_and_the_others_follow(
    tmp_path: Path,
) -> None:
    limit = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (90, 90))"
    with serving(proper) as server:
        path = spec(tmp_path, f"url: '{server.url}'")
        path.write_text(path.read_text().replace("max_users: 2", "max_users: 200, seed: 1"))
        path.write_text(path.read_text().replace("start: 2", "start: 200"))
        with ended(started("matrix", path, "--quiet", "--no-telemetry", before=limit)) as process:
            _, erred = process.communicate(timeout=GONE_S)
    assert process.returncode == 1
    assert "Traceback" not in erred
    told = entries(tmp_path)
    assert len(told) == 2
    assert all("200 users need as many sockets" in (entry.error or "") for entry in told)


# signals


def test_find_that_is_told_to_go_reports_the_levels_it_had(tmp_path: Path) -> None:
    out = tmp_path / "out"
    second = threading.Event()

    async def reply(call: Call) -> None:
        await call.answer()
        if len(levels(out)) > 1:
            second.set()

    with serving(reply) as server:
        process = started(
            "find", "--url", server.url, *LOAD, "--start", "2", "--requests", "50",
            "--slo", "ttft<9s", "--out", out, "--json",
        )  # fmt: skip
        with ended(process):
            assert second.wait(GONE_S)
            process.send_signal(signal.SIGTERM)
            said, erred = process.communicate(timeout=GONE_S)
    assert process.returncode == 130, erred
    assert "Traceback" not in erred
    assert json.loads(said)["interrupted"]
    for path in levels(out):
        assert read_run(path).header.status in (Status.COMPLETE, Status.INTERRUPTED)


@pytest.mark.parametrize("by", [(), ("--rate", "--start", "60")])
def test_find_that_is_killed_leaves_what_it_knew(tmp_path: Path, by: tuple[str, ...]) -> None:
    """SIGKILL between two levels or within one, for users and for rates."""
    out = tmp_path / "out"
    load = [x for x in LOAD if x not in ("--think", "0..0.01")] if by else LOAD
    with serving(proper) as server:
        process = started(
            "find", "--url", server.url, *load, *by, "--requests", "30", "--slo", "ttft<9s",
            "--out", out,
        )  # fmt: skip
        with ended(process):
            wait_until((out / SEARCH).exists)
            process.kill()
            process.communicate(timeout=GONE_S)
    done = CliRunner().invoke(cli, ["report", str(out)])
    assert done.exit_code == 0, done.output
    assert "cut off after" in " ".join(done.output.split())
    assert "cut off after" in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_matrix_with_a_server_of_its_own_takes_it_along(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = spec(tmp_path, own_server(tmp_path))
    path.write_text(path.read_text().replace("requests: 40", "requests: 100000"))
    process = started("matrix", path, "--quiet", "--no-telemetry")
    with ended(process):
        wait_until(lambda: list((tmp_path / "m").glob("cells/*/find-1/*/records.jsonl")))
        assert family(tmp_path)
        process.send_signal(number)
        _, erred = process.communicate(timeout=GONE_S)
    assert process.returncode in (130, 128 + number), erred
    assert "Traceback" not in erred
    assert not family(tmp_path)
    assert entries(tmp_path) == [], "the cell in hand is not called filled"


def kill_matrix(folder: Path, rng: Random, most_s: float) -> None:
    """Once, at a random moment; whatever it had started goes with it."""
    process = started("matrix", folder / "m.yaml", "--quiet", "--no-telemetry")
    with ended(process), suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0.2, most_s))
    wait_until(lambda: not family(folder))


def test_killed_matrix_leaves_no_server_behind(tmp_path: Path) -> None:
    spec(tmp_path, own_server(tmp_path)).write_text(
        CELLS.replace("SOURCE", own_server(tmp_path)).replace("requests: 40", "requests: 100000")
    )
    process = started("matrix", tmp_path / "m.yaml", "--quiet", "--no-telemetry")
    with ended(process):
        wait_until(lambda: len(family(tmp_path)) == 2)
        process.kill()
    wait_until(lambda: not family(tmp_path))


@pytest.mark.slow
def test_matrix_with_servers_killed_at_thirty_moments_comes_to_its_end(tmp_path: Path) -> None:
    rng = Random(11)
    spec(tmp_path, own_server(tmp_path))
    kept = 0
    for _ in range(30):
        kill_matrix(tmp_path, rng, 4.0)
        now = filled(tmp_path)
        assert now >= kept, "a filled cell was lost"
        kept = now
    with ended(started("matrix", tmp_path / "m.yaml", "--quiet", "--no-telemetry")) as process:
        assert process.wait(GONE_S) == 0
    assert filled(tmp_path) == 2
    assert not family(tmp_path)


# terminals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", ["run", pytest.param("find", marks=pytest.mark.slow)])
def test_terminal_is_left_as_it_was(tmp_path: Path, command: str, number: signal.Signals) -> None:
    """The cursor is never hidden and no mode is changed, so that even SIGKILL leaves it well."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(ours)
    seen = bytearray()
    drawn = threading.Event()

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while data := os.read(ours, 65536):
                seen.extend(data)
                if b"\x1b[" in seen:  # a board is drawn
                    drawn.set()

    reader = threading.Thread(target=read, daemon=True)
    more = FIND if command == "find" else ("--users", "4", "--duration", "60")
    with serving(proper) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "servecap", command, "--url", server.url, "--workload",
             "fixed:8/2", "--think", "0..0.01", "--no-telemetry", *more, "--out", "out"],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        )  # fmt: skip
        reader.start()
        assert drawn.wait(GONE_S)
        process.send_signal(number)
        process.wait(GONE_S)
    assert termios.tcgetattr(ours) == before
    os.close(theirs)
    reader.join(GONE_S)
    os.close(ours)
    assert b"\x1b[?" not in seen, "no private mode: no hidden cursor, no other screen"
    if number is not signal.SIGKILL:
        assert b"Traceback" not in seen

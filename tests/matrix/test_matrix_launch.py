"""Servers started for a cell: readiness, failure, and that none is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from servecap.errors import EndpointError
from servecap.matrix.document import parse
from servecap.matrix.job import CellJob
from servecap.matrix.launch import LOG, endpoint, tail
from servecap.matrix.spec import from_document

# A server that answers each GET with its arguments, or with 503 as often as `after` says.
SERVER = """
import http.server, os, signal, subprocess, sys
host, port, after, manners = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if manners == "rude":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if manners == "parent":
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    print("child", child.pid, flush=True)
left = after
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global left
        left -= 1
        self.send_response(503 if left >= 0 else 200)
        self.end_headers()
        self.wfile.write(f"{self.path} {os.environ.get('CARDS')} {sys.argv[5]}".encode())
    def log_message(self, *_): pass
print("serving", os.getpid(), flush=True)
http.server.HTTPServer((host, port), Handler).serve_forever()
"""
BROKEN = "import sys; print('loading'); print('out of memory\\n', file=sys.stderr); sys.exit(3)"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return path


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) == before


def job(command: list[str], *, more: str = "") -> CellJob:
    text = f"cells: [{{model: m, gpu: g, tp: 4, command: {command!r} {more}}}]"
    return from_document(parse(text, name="t.yaml"), Path("/")).jobs[0]


def serving(server: Path, *, after: int = 0, manners: str = "polite", more: str = "") -> CellJob:
    words = [sys.executable, str(server), "{host}", "{port}", str(after), manners, "{model} tp{tp}"]
    return job(words, more=more)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def logged_pid(folder: Path, word: str) -> int:
    lines = (folder / LOG).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(word)).split()[1])


def test_a_server_is_started_awaited_used_and_stopped(server: Path, tmp_path: Path) -> None:
    cell = serving(server, after=2, more=", env: {CARDS: '{tp} cards'}")
    with endpoint(cell, tmp_path) as url:
        with urllib.request.urlopen(f"{url}/hello") as answer:
            assert answer.read() == b"/hello 4 cards m tp4"
        pid = logged_pid(tmp_path, "serving")
        assert not gone(pid)
    assert gone(pid)


def test_the_whole_group_is_stopped(server: Path, tmp_path: Path) -> None:
    with endpoint(serving(server, manners="parent"), tmp_path):
        child = logged_pid(tmp_path, "child")
        assert not gone(child)
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=10)
    assert gone(child)


def test_a_server_that_will_not_go_is_killed(server: Path, tmp_path: Path) -> None:
    with endpoint(serving(server, manners="rude", more=", stop_timeout_s: 0.1"), tmp_path):
        pid = logged_pid(tmp_path, "serving")
    assert gone(pid)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_it_is_stopped_whatever_happens_inside(
    server: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), endpoint(serving(server), tmp_path):
        raise error
    assert gone(logged_pid(tmp_path, "serving"))


def test_a_server_that_dies_is_told_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(EndpointError) as caught,
        endpoint(job([sys.executable, "-c", BROKEN]), tmp_path),
    ):
        pytest.fail("it never was ready")
    assert "exited with code 3 before it was ready" in str(caught.value)
    assert str(caught.value).endswith(f"({tmp_path / LOG}): out of memory")


def test_a_server_that_never_gets_ready_is_given_up(server: Path, tmp_path: Path) -> None:
    cell = serving(server, after=10**9, more=", ready_timeout_s: 0.5")
    with pytest.raises(EndpointError, match=r"not ready after 0\.5 s .*(503|refused)"):  # noqa: SIM117
        with endpoint(cell, tmp_path):
            pytest.fail("it never was ready")


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="cannot start 'no-such-server'"):  # noqa: SIM117
        with endpoint(job(["no-such-server"]), tmp_path):
            pytest.fail("it never was ready")


def test_a_port_that_is_taken_is_told_before_anything_starts(server: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EndpointError, match=f"port {port} is taken already"):  # noqa: SIM117
            with endpoint(serving(server, more=f", port: {port}"), tmp_path):
                pytest.fail("another server would have been tested")
    assert not (tmp_path / LOG).exists()


def test_sigterm_to_servecap_stops_the_server_too(server: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_matrix_launch import serving; from servecap.matrix.launch import endpoint\n"
        "with endpoint(serving(Path(sys.argv[2])), Path(sys.argv[3])):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(server), str(tmp_path)],
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM
    assert gone(logged_pid(tmp_path, "serving"))


def test_a_url_is_filled_in_and_nothing_is_started(tmp_path: Path) -> None:
    text = "cells: [{model: m, gpu: g, tp: 4, url: 'http://{gpu}-tp{tp}:8000'}]"
    cell = from_document(parse(text, name="t.yaml"), Path("/")).jobs[0]
    with endpoint(cell, tmp_path) as url:
        assert url == "http://g-tp4:8000"
    assert os.listdir(tmp_path) == []


def test_the_emulator_is_started_and_stopped(tmp_path: Path) -> None:
    text = "cells: [{model: llama-13b, gpu: a100-40gb, tp: 4, emulate: {}}]"
    cell = from_document(parse(text, name="t.yaml"), Path("/")).jobs[0]
    with endpoint(cell, tmp_path) as url, urllib.request.urlopen(f"{url}/health") as answer:
        assert answer.status == 200
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{url}/health", timeout=5)


def test_the_tail_of_a_log_is_its_last_line_with_words(tmp_path: Path) -> None:
    log = tmp_path / LOG
    assert tail(log) == f"its log ({log}) is empty"
    log.write_bytes(b"x\n" * 10_000 + b"\x1b[31mbad\xff\x1b[0m news\n\n \n")
    assert tail(log).endswith("bad\ufffd [0m news")

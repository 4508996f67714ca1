"""A started process never outlives who started it, whatever ends that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil
import pytest

from servecap import guarded

GONE_S = 30.0
# A server with a child of its own; both say so when they are there. "rude": SIGTERM is ignored.
FAMILY = """
import os, signal, subprocess, sys
if sys.argv[2] == "rude":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 3:
    subprocess.Popen([sys.executable, __file__, sys.argv[1], sys.argv[2], "child"])
with open(sys.argv[1] + "/" + str(os.getpid()), "w") as file:
    file.write("here")
signal.pause()
signal.pause()
"""
# What starts it, and then waits to be killed.
STARTER = """
import signal, subprocess, sys, time
from servecap import guarded
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have us ignore
guarded.start(sys.argv[1:], output=subprocess.DEVNULL, stop_timeout_s=0.3)
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    path = tmp_path / "family.py"
    path.write_text(FAMILY)
    (tmp_path / "here").mkdir()
    return path


def words(family: Path, manners: str = "polite") -> list[str]:
    return [sys.executable, str(family), str(family.parent / "here"), manners]


def here(family: Path) -> list[int]:
    """The processes of the family that have said that they are there."""
    folder = family.parent / "here"
    return [int(path.name) for path in folder.iterdir() if path.read_text() == "here"]


def alive(family: Path) -> list[int]:
    """All of its processes that live, told by their command lines."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if str(family) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def wait_until(true: Callable[[], bool]) -> None:
    """Look until it is so: nobody tells when a stranger's process ends."""
    deadline = time.monotonic() + GONE_S
    pause = threading.Event()
    while not true():
        assert time.monotonic() < deadline
        pause.wait(0.02)


@pytest.mark.parametrize("manners", ["polite", "rude"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_family_goes_with_a_starter_that_is_killed(
    family: Path, manners: str, number: signal.Signals
) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, *words(family, manners)], stdout=subprocess.PIPE
    )
    wait_until(lambda: len(here(family)) == 2)
    starter.send_signal(number)
    assert starter.wait(GONE_S) == -number
    wait_until(lambda: not alive(family))


@pytest.mark.slow
def test_no_moment_of_the_start_leaves_anything_behind(family: Path) -> None:
    rng = Random(7)
    for _ in range(60):
        starter = subprocess.Popen(
            [sys.executable, "-c", STARTER, *words(family)], stdout=subprocess.PIPE
        )
        assert starter.stdout is not None
        with pytest.raises(subprocess.TimeoutExpired):
            starter.wait(rng.uniform(0.03, 0.5))
        starter.kill()
        starter.wait()
        wait_until(lambda: not alive(family))


def test_it_is_ended_by_whoever_started_it(family: Path) -> None:
    found = guarded.start(words(family), output=subprocess.DEVNULL)
    wait_until(lambda: len(here(family)) == 2)
    assert os.getpgid(found.process.pid) == found.process.pid
    found.end(GONE_S)
    assert found.process.returncode == -signal.SIGTERM
    wait_until(lambda: not alive(family))


def test_the_command_has_no_child_that_it_does_not_know(tmp_path: Path) -> None:
    code = "import os\ntry: os.waitpid(-1, os.WNOHANG)\nexcept ChildProcessError: print('none')"
    with (tmp_path / "said").open("wb") as said:
        found = guarded.start([sys.executable, "-c", code], output=said)
        assert found.process.wait(GONE_S) == 0
        found.end(0.0)
    assert (tmp_path / "said").read_text() == "none\n"


def test_the_command_is_told_of_broken_pipes_as_ever(tmp_path: Path) -> None:
    shell = ["sh", "-c", "kill -PIPE $$; echo it was ignored"]
    with (tmp_path / "said").open("wb") as said:
        for command, wanted in ((shell, -signal.SIGPIPE),):
            found = guarded.start(command, output=said)
            assert found.process.wait(GONE_S) == wanted
            found.end(0.0)


@pytest.mark.parametrize("command", ["no-such-command", "/", "./no-such-file"])
def test_what_cannot_be_started_is_told(command: str, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(OSError, match=r"No such file|Permission denied|Is a directory") as caught:
        guarded.start([command], output=subprocess.DEVNULL, folder=tmp_path)
    assert caught.value.filename == command
    assert set(psutil.Process().children(recursive=True)) == before


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        guarded.start(["true"], output=subprocess.DEVNULL, folder=tmp_path / "none")

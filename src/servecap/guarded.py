"""Processes that never outlive this one, however it ends; also with all that they have started.

SIGKILL leaves no time to clean up. So beside each process there is a guard: a few lines of Python
that wait for the end of a pipe which only this process holds open, and then end the whole process
group. The guard is there before the command is, so that there is no moment without it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_RELEASED = b"."  # written to the guard's pipe: the group has ended already

# Runs in an interpreter without site packages, which is up in 15 ms. Forked twice, so that the
# command has no child which it does not know of; exec keeps the process and its group.
_GUARD = """
import os, signal, sys, time
life, told, stop, wait_s = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
words, group = sys.argv[5:], os.getpid()

def end(number):
    try:
        os.killpg(group, number)
        return True
    except (ProcessLookupError, PermissionError):
        return False

def guard():
    os.setsid()
    if os.fork():
        return
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(told)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(life, 1):
        return
    until_s = time.monotonic() + wait_s
    end(stop)
    while time.monotonic() < until_s and end(0):
        time.sleep(0.05)
    end(signal.SIGKILL)

child = os.fork()
if not child:
    try:
        guard()
    finally:
        os._exit(0)
os.waitpid(child, 0)
os.close(life)
os.set_inheritable(told, False)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec would keep that
try:
    os.execvp(words[0], words)
except OSError as error:
    os.write(told, str(error.errno).encode())
    os._exit(127)
"""


class Guarded:
    """A process in a group of its own, which is ended with everything in it."""

    def __init__(self, process: subprocess.Popen[bytes], life: int, stop: int) -> None:
        self.process = process
        self._life = life
        self._stop = stop

    def end(self, wait_s: float) -> None:
        """End the whole group: first politely, and after *wait_s* for certain."""
        process = self.process
        try:
            if process.poll() is None:
                self._signal(self._stop)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(wait_s)
        finally:  # also when a second Ctrl-C cuts the waiting short
            # Whatever the leader has left behind, and the leader itself if it would not go.
            self._signal(signal.SIGKILL)
            process.wait()
            with contextlib.suppress(OSError):
                os.write(self._life, _RELEASED)  # the group's number may be another's soon
            os.close(self._life)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def start(
    words: Sequence[str],
    *,
    output: int | IO[bytes],
    errors: int | IO[bytes] = subprocess.STDOUT,
    stop: signal.Signals = signal.SIGTERM,
    stop_timeout_s: float = 30.0,
    folder: Path | str | None = None,
    env: Mapping[str, str] | None = None,
) -> Guarded:
    """The command, running; the caller must `end` it.

    Args:
        stop: the signal that asks the group to go where this process has died.
        stop_timeout_s: what it then has before SIGKILL, in seconds.
    Raises:
        OSError: it cannot be started.
    """
    guards, life = os.pipe()
    failed, told = os.pipe()
    numbers = [str(number) for number in (guards, told, int(stop), stop_timeout_s)]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, *numbers, *words],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            pass_fds=(guards, told),
        )
    except BaseException:
        os.close(life)
        os.close(failed)
        raise
    finally:
        os.close(guards)
        os.close(told)
    with os.fdopen(failed, "rb") as pipe:
        said = pipe.read()
    found = Guarded(process, life, stop)
    if said:
        found.end(0.0)
        raise OSError(int(said), os.strerror(int(said)), words[0])
    return found

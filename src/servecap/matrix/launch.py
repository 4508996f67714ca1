"""The server behind a cell: started if need be, waited for, and always stopped again."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from servecap.emulate.launch import running
from servecap.errors import EndpointError
from servecap.guarded import Guarded, start
from servecap.matrix.job import CellJob, Command, Emulate, Predict, Url

LOG = "server.log"
_POLL_S = (0.02, 1.0)  # first and longest pause between looks
_LOOK_S = 2.0  # a look at the readiness URL may take this long
_TAIL_BYTES = 4096
_TAIL_CHARS = 300


@contextlib.contextmanager
def endpoint(job: CellJob, folder: Path) -> Iterator[str]:
    """The URL of the cell's server, which is ready inside the block and stopped after it.

    Args:
        folder: where a started server's output goes, as `server.log`.
    Raises:
        EndpointError: the server does not start or does not get ready; the message names its
            exit code and the last line of its log.
    """
    match job.source:
        case Url(url=url):
            yield url.format(**job.values())
        case Emulate(config=config):
            with running(config) as url:
                yield url
        case Predict():
            yield ""  # nothing listens: the engine model answers in virtual time
        case Command() as command:
            with _started(job, command, folder) as url:
                yield url


@contextlib.contextmanager
def _started(job: CellJob, command: Command, folder: Path) -> Iterator[str]:
    port = _port(command)
    values = job.values(command.host, port)
    words = [word.format(**values) for word in command.command]
    env = os.environ | {name: text.format(**values) for name, text in command.env.items()}
    log_path = folder / LOG
    with _exits_on_sigterm(), log_path.open("wb") as log:
        server = _spawn(words, command, env, log.fileno())
        try:
            _wait_ready(server.process, words, command.ready.format(**values), command, log_path)
            yield command.url.format(**values)
        finally:
            server.end(command.stop_timeout_s)


def _spawn(words: list[str], command: Command, env: dict[str, str], log: int) -> Guarded:
    try:
        return start(
            words,
            output=log,
            stop=getattr(signal, command.stop),
            stop_timeout_s=command.stop_timeout_s,
            folder=command.folder,
            env=env,
        )
    except OSError as error:
        raise EndpointError(f"cannot start {words[0]!r}: {error.strerror}") from None


def _port(command: Command) -> int:
    """The port to serve on.

    Raises:
        EndpointError: a fixed one is taken already; the test would meet another server there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((command.host, command.port or 0))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise EndpointError(
                    f"port {command.port} is taken already: stop what serves there, or leave the "
                    "port out of the spec to get a free one"
                ) from None
            raise EndpointError(
                f"cannot serve on {command.host}:{command.port or 0}: {error.strerror}"
            ) from None
        port: int = probe.getsockname()[1]
        return port


def _wait_ready(
    process: subprocess.Popen[bytes],
    words: list[str],
    ready: str,
    command: Command,
    log_path: Path,
) -> None:
    deadline = time.monotonic() + command.ready_timeout_s
    pause, longest = _POLL_S
    answer = "no answer"
    while True:
        code = process.poll()
        if code is not None:
            raise EndpointError(
                f"{words[0]!r} {_ended(code)} before it was ready; {tail(log_path)}"
            )
        answer = _look(ready)
        if answer == "ready":
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise EndpointError(
                f"{words[0]!r} was not ready after {command.ready_timeout_s:g} s ({ready}: "
                f"{answer}); {tail(log_path)}"
            )
        # Waiting for the process, not merely sleeping: its end is seen at once.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(pause, left))
        pause = min(2 * pause, longest)


def _look(url: str) -> str:
    """ "ready", or what is in the way."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_LOOK_S):
            return "ready"
    except urllib.error.HTTPError as error:
        error.close()
        return f"status {error.code}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def _ended(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code}"
    return f"exited with code {code}"


def tail(log_path: Path) -> str:
    """The last line that the server wrote, in words."""
    with contextlib.suppress(FileNotFoundError):
        with log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").split("\n")
        for line in reversed(lines):
            plain = "".join(char if char.isprintable() else " " for char in line).strip()
            if plain:
                return f"the last line of its log ({log_path}): {plain[:_TAIL_CHARS]}"
    return f"its log ({log_path}) is empty"


@contextlib.contextmanager
def _exits_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends servecap by way of its clean-up, so that no server is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

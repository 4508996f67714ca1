"""Console examples in Markdown: found, run, and compared with what is recorded below them.

A fenced block marked `console` is run when the line above it is an HTML comment:

    <!-- run -->                    output must be equal, character by character
    <!-- run: shape -->             equal but for digits, the width of gaps and of ruled lines
    <!-- run: shape, exit 1 -->     ... and the command ends with that code (otherwise 0)
    <!-- run: stderr -->            what is written to standard error follows standard output
    <!-- run: slow -->              the whole document's test is marked slow

In the block, lines with `$ ` are commands (of `servecap` only, without a shell), a trailing
backslash continues one, and what follows is its output. A line `...` stands for any lines. A
command with ` &` at its end is a server: it runs until the document is through, on a free port
instead of the one written in its `--port`; wherever that number appears it is exchanged.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

START_S = 30.0
COMMAND_S = 300.0

_BLOCK = re.compile(
    r"^<!-- run(?::(?P<how>[^>]*))? -->\n```console\n(?P<body>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Example:
    """One command with its recorded output."""

    command: str
    output: str
    line: int
    shape: bool = False
    stderr: bool = False
    slow: bool = False
    exit_code: int = 0

    @property
    def is_server(self) -> bool:
        return self.command.endswith(" &")


def examples(text: str) -> list[Example]:
    """The examples of a document that are to be run, in order.

    Raises:
        ValueError: a marker or a block cannot be understood.
    """
    found: list[Example] = []
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("body")) + 1
        found += _of_block(block["body"], line, _flags(block["how"] or "", line))
    return found


def _flags(how: str, line: int) -> dict[str, int | bool]:
    flags: dict[str, int | bool] = {}
    for word in filter(None, (part.strip() for part in how.split(","))):
        if word in ("shape", "stderr", "slow"):
            flags[word] = True
        elif re.fullmatch(r"exit \d+", word):
            flags["exit_code"] = int(word.removeprefix("exit "))
        else:
            raise ValueError(f"line {line}: {word!r} is not shape, stderr, slow or exit N")
    return flags


def _of_block(body: str, line: int, flags: dict[str, int | bool]) -> list[Example]:
    found: list[Example] = []
    lines = body.splitlines()
    at = 0
    while at < len(lines):
        start = line + at
        if not lines[at].startswith("$ "):
            raise ValueError(f"line {start}: expected a command that begins with '$ '")
        command = lines[at][2:]
        at += 1
        while command.endswith("\\"):
            command = command[:-1].rstrip() + " " + lines[at].strip()
            at += 1
        output = []
        while at < len(lines) and not lines[at].startswith("$ "):
            output.append(lines[at])
            at += 1
        if shlex.split(command)[0] != "servecap":
            raise ValueError(f"line {start}: only servecap is run, not {command!r}")
        found.append(Example(command, "\n".join(output), start, **flags))  # type: ignore[arg-type]
    return found


def shape(text: str) -> str:
    """The text with every number as #, every gap one blank wide and every ruled line short."""
    text = re.sub(r"\d+(?:[.,:]\d+)*", "#", text)
    text = re.sub(r"([─━═=_*#.-])\1{2,}", r"\1\1\1", text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def agrees(recorded: str, real: str) -> bool:
    """Whether the outputs are equal, where a recorded line `...` stands for any lines."""
    want = [line.rstrip() for line in recorded.strip("\n").splitlines()]
    pattern = ""
    for is_gap, group in groupby(want, key=lambda line: line == "..."):
        pattern += r"(?:.*\n)*" if is_gap else "".join(re.escape(line) + r"\n" for line in group)
    have = "".join(line.rstrip() + "\n" for line in real.strip("\n").splitlines())
    return re.fullmatch(pattern, have) is not None


class Session:
    """Runs the examples of one document in one folder, and ends its servers."""

    def __init__(self, folder: Path, program: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._program = program or (sys.executable, "-m", "servecap")
        self._servers: list[subprocess.Popen[bytes]] = []
        self._ports: dict[str, str] = {}  # as written -> as used
        self._env = os.environ | {
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
            "PYTHONUTF8": "1",
        }

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.send_signal(signal.SIGTERM)
        for server in self._servers:
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def complaint(self, example: Example) -> str | None:
        """What is wrong with the example; None when the program does what is recorded."""
        if example.is_server:
            return self._start(example)
        done = subprocess.run(
            self._argv(example.command),
            cwd=self._folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if done.returncode != example.exit_code:
            return (
                f"line {example.line}: {example.command} ended with {done.returncode}, "
                f"not {example.exit_code}:\n{done.stdout}{done.stderr}"
            )
        real = self._as_written(done.stdout + (done.stderr if example.stderr else ""))
        same = (
            agrees(shape(example.output), shape(real))
            if example.shape
            else agrees(example.output, real)
        )
        if same:
            return None
        how = "differs in shape from" if example.shape else "differs from"
        return (
            f"line {example.line}: the output of {example.command} {how} the recorded one; "
            f"now it is\n{real}\nnot\n{example.output}\nRecord it anew if this is right."
        )

    def _argv(self, command: str) -> list[str]:
        for written, used in self._ports.items():
            command = re.sub(rf"\b{written}\b", used, command)
        return [*self._program, *shlex.split(command)[1:]]

    def _as_written(self, text: str) -> str:
        for written, used in self._ports.items():
            text = re.sub(rf"\b{used}\b", written, text)
        return text

    def _start(self, example: Example) -> str | None:
        command = example.command.removesuffix("&").strip()
        port = re.search(r"--port[ =](\d+)", command)
        if port is None:
            return f"line {example.line}: {command} needs a --port, to know when it is ready"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._ports[port[1]] = str(free.getsockname()[1])
        server = subprocess.Popen(
            self._argv(command), cwd=self._folder, env=self._env, stdin=subprocess.DEVNULL
        )
        self._servers.append(server)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", int(self._ports[port[1]])), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return None
        return f"line {example.line}: {command} did not listen within {START_S:g} s"

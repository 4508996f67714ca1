"""What is told on stderr while a run goes on: a living board on a terminal, else lines at times.

A thread does the writing: a terminal that is held (Ctrl-S) or a pipe that nobody reads must not
hold up the run. On a terminal, frames that cannot be written in time are dropped.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from servecap.cli.board import ASCII_SPARKS, SPARKS, Board, Line, Tried

__all__ = ["Display", "Frame", "Mode", "Tried", "mode", "option", "say"]

if TYPE_CHECKING:
    from servecap.measure import Progress
    from servecap.scenario import Scenario

Mode = Literal["auto", "plain", "json", "none"]
_KEY = "servecap.progress"
_PLAIN_EVERY_S = 5.0
_JSON_EVERY_S = 1.0
_LEAST_LINES, _LEAST_COLUMNS = 14, 50  # of a terminal that a board fits in
_PATIENCE_S = 1.0  # at the end, for a reader that is slow


def _keep(ctx: click.Context, _: click.Parameter, value: Mode) -> None:
    choose(ctx, value)


def choose(ctx: click.Context, value: Mode) -> None:
    """From now on the command tells its progress so."""
    ctx.meta[_KEY] = value


option = click.option(
    "--progress",
    type=click.Choice(["auto", "plain", "json", "none"]),
    default="auto",
    show_default=True,
    expose_value=False,
    callback=_keep,
    help="On stderr: a board on a terminal, else lines; plain lines; JSON lines; nothing.",
)


def mode(quiet: bool) -> Mode:
    """How the command that is running shall tell of its progress."""
    if quiet:
        return "none"
    ctx = click.get_current_context(silent=True)
    return cast("Mode", ctx.meta.get(_KEY, "auto")) if ctx is not None else "auto"


class Display:
    """Shows a run's progress; call it with each `Progress`, and `close` when the run is over."""

    def __init__(self, scenario: Scenario, *, quiet: bool, tried: Tried | None = None) -> None:
        self._mode = mode(quiet)
        self._living = self._mode == "auto" and _is_terminal()
        self._board = Board(scenario, tried) if self._mode != "none" else None
        self._every_s = _JSON_EVERY_S if self._mode == "json" else _PLAIN_EVERY_S
        self._said_s = -self._every_s
        self._frame = Frame()
        self._pen: _Pen | None = None

    def __call__(self, progress: Progress) -> None:
        if self._board is None:
            return
        self._board.note(progress)
        if self._pen is None:
            self._pen = _Pen()
        if self._living:
            if self._pen.idle:
                self._pen.write(self._frame.drawn(self._board, *_size()))
        elif progress.elapsed_s - self._said_s >= self._every_s:
            self._said_s = progress.elapsed_s
            self._pen.write(self._said(self._board))

    def _said(self, board: Board) -> str:
        if self._mode == "json":
            return json.dumps({"event": "progress"} | board.facts()) + "\n"
        return "".join(text for text, _ in board.line()) + "\n"

    def close(self) -> None:
        """Take the board away, and wait until what was said has been written."""
        if self._pen is not None:
            if self._living:
                self._pen.write(self._frame.wiped())
            self._pen.close()
            self._pen = None


class Frame:
    """Draws a board over the one before."""

    def __init__(self) -> None:
        self._height = 0

    def drawn(self, board: Board, columns: int, rows: int) -> str:
        """Terminal codes that replace the last frame by the board as it is now."""
        small = columns < _LEAST_COLUMNS or rows < _LEAST_LINES
        lines = [board.line()] if small else board.lines(_sparks())
        texts = [_painted(line, columns - 1) for line in lines]
        before = self.wiped()
        self._height = len(texts)
        return before + "".join(f"{text}\n" for text in texts)

    def wiped(self) -> str:
        """Terminal codes that remove the last frame."""
        height, self._height = self._height, 0
        return f"\x1b[{height}A\r\x1b[J" if height else ""


def _painted(line: Line, columns: int) -> str:
    """The line in colour, cut to so many columns."""
    out, left = [], columns
    colour_is_on = "NO_COLOR" not in os.environ
    for text, colour in line:
        shown = text[:left]
        left -= len(shown)
        out.append(click.style(shown, fg=colour) if colour and colour_is_on else shown)
    return "".join(out)


def _sparks() -> str:
    encoding = (getattr(sys.stderr, "encoding", None) or "ascii").lower()
    return SPARKS if "utf" in encoding else ASCII_SPARKS


def _size() -> tuple[int, int]:
    """Columns and rows of the terminal; it may be resized at any time."""
    return shutil.get_terminal_size((100, 24))


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


class _Pen:
    """A thread that writes to stderr what it is given, in order."""

    def __init__(self) -> None:
        self._texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stream: Any = sys.stderr
        self._thread = threading.Thread(target=self._write, name="progress", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        return self._texts.empty()

    def write(self, text: str) -> None:
        self._texts.put(text)

    def close(self) -> None:
        self._texts.put(None)
        self._thread.join(_PATIENCE_S)

    def _write(self) -> None:
        while (text := self._texts.get()) is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more, or it was closed
                return


def say(text: str, *, quiet: bool = False) -> None:
    """One line of progress on stderr."""
    match mode(quiet):
        case "none":
            return
        case "json":
            line = {"event": "note", "text": click.unstyle(text)}
            click.echo(json.dumps(line, ensure_ascii=False), err=True)
        case _:
            click.echo(text, err=True)

"""How progress reaches stderr: a board on a terminal, lines elsewhere, and never a held-up run."""

from __future__ import annotations

import io
import json
import re
import sys

import click
import pytest
from click.testing import CliRunner

from servecap.cli import progress
from servecap.cli.board import Board
from servecap.measure import Progress
from servecap.scenario import ClosedLoop, Scenario

SCENARIO = Scenario(load=ClosedLoop(users=4))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, args: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run of 20 s tells on *stream*."""

    @click.command()
    @progress.option
    def command() -> None:
        display = progress.Display(SCENARIO, quiet=False)
        for second in range(1, 21):
            display(Progress(elapsed_s=float(second), in_flight=2, ended=second))
        display.close()

    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        command.main(args, standalone_mode=False)
    return stream.getvalue()


def test_a_file_gets_a_plain_line_every_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), [], monkeypatch).splitlines()
    assert [line.split()[0] for line in lines] == ["1.0", "6.0", "11.0", "16.0"]
    assert all("\x1b" not in line for line in lines)


def test_json_lines_can_be_read_by_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(io.StringIO(), ["--progress", "json"], monkeypatch)
    found = [json.loads(line) for line in text.splitlines()]
    assert [item["elapsed_s"] for item in found] == [float(s) for s in range(1, 21)]
    assert {item["event"] for item in found} == {"progress"}


def test_none_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(Terminal(), ["--progress", "none"], monkeypatch) == ""


def test_plain_is_plain_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in shown(Terminal(), ["--progress", "plain"], monkeypatch)


def test_a_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), [], monkeypatch)
    assert "4 users" in text
    row = highest = 0
    for up, newline in re.findall(r"\x1b\[(\d+)A|(\n)", text):
        row += 1 if newline else -int(up)
        assert row >= 0
        highest = max(highest, row)
    assert highest > 5
    assert row == 0
    assert text.endswith("\x1b[J")


def test_frames_are_cut_to_the_terminal_and_small_ones_get_one_line() -> None:
    board = Board(SCENARIO)
    board.note(Progress(elapsed_s=3.0, in_flight=2))
    for columns, rows, lines in [(60, 24, 6), (30, 24, 1), (100, 5, 1)]:
        text = click.unstyle(progress.Frame().drawn(board, columns, rows))
        assert text.count("\n") >= lines if lines > 1 else text.count("\n") == 1
        assert max(map(len, text.splitlines())) < columns


def test_colour_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(SCENARIO)
    board.note(Progress(elapsed_s=3.0, in_flight=2, ended=2, failed=2))
    assert "\x1b[31m" in progress.Frame().drawn(board, 100, 24)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in progress.Frame().drawn(board, 100, 24)


def test_a_closed_pipe_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    assert shown(Closed(), [], monkeypatch) == ""


def test_notes_keep_to_the_form_that_was_asked_for() -> None:
    @click.command()
    @progress.option
    def command() -> None:
        progress.say(click.style("note", fg="red"))

    run = CliRunner().invoke
    assert run(command, []).stderr == "note\n"
    assert json.loads(run(command, ["--progress", "json"]).stderr) == {
        "event": "note",
        "text": "note",
    }
    assert run(command, ["--progress", "none"]).stderr == ""

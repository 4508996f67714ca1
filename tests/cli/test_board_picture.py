"""The picture of the board in the documents: a terminal's last screen, in its colours."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import click
import pytest
from test_board import fed, record, scenario

from servecap.cli.board import Board, Tried
from servecap.cli.progress import Frame

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "make_board_picture.py"
    spec = importlib.util.spec_from_file_location("make_board_picture", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_only_the_last_frame_stands_below_the_lines_that_were_said(tool: ModuleType) -> None:
    board = Board(scenario(), Tried())
    frame = Frame()
    written = "level one\r\n"
    for end_s in (5.0, 9.0):
        fed(board, [record(end_s)])
        written += frame.drawn(board, 100, 30).replace("\n", "\r\n")
    lines = [click.unstyle(line) for line in tool.screen(written)]
    assert lines[0] == "level one"
    assert len([line for line in lines if line.startswith("TTFT")]) == 1
    assert len(lines) == 1 + len(board.lines())


def test_a_frame_that_is_wiped_leaves_nothing(tool: ModuleType) -> None:
    board, frame = fed(Board(scenario()), [record(5.0)]), Frame()
    written = "kept\n" + frame.drawn(board, 100, 30) + frame.wiped() + "after\n"
    assert tool.screen(written) == ["kept", "after"]


def test_the_picture_is_text_in_colours_and_nothing_else(tool: ModuleType) -> None:
    made = ET.fromstring(tool.svg([click.style("FAIL <b>", fg="red") + " & more"]))
    words = "".join(made.itertext()).replace("\N{NO-BREAK SPACE}", " ")
    assert "FAIL <b> & more" in words
    (span,) = made.iter("{http://www.w3.org/2000/svg}tspan")
    assert span.get("fill") == tool.COLOURS["31"]


def test_the_picture_in_the_documents_is_small_and_shows_a_board() -> None:
    path = ROOT / "docs" / "board.svg"
    words = " ".join("".join(ET.parse(path).getroot().itertext()).split())
    assert path.stat().st_size < 10_000
    for shown in ("servecap find", "in flight", "TTFT", "TPOT", "QPS", "client", "search"):
        assert shown in words

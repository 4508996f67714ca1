"""Errors may hold names of files and words of servers: they have no power over a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from servecap.cli.audit import Audit, runs_text

CODE = "import sys; from servecap.cli import main; sys.argv[0] = 'servecap'; main()"
NAME = "cells\x1b[31m\x07\u202e.csv"


def said_to_a_terminal(*words: str) -> str:
    """All that the command writes to a terminal; without one, escapes would be left out anyway."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *words], stdout=theirs, stderr=theirs, close_fds=True
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 65536):
                said += chunk
        except OSError:  # Linux says so that the other side is closed
            pass
        finally:
            os.close(ours)
    assert process.returncode == 2
    return said.decode()


@pytest.mark.parametrize("command", [("report",), ("audit",), ("plan", "--users", "10")])
def test_names_of_files_cannot_move_the_cursor(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / NAME
    path.write_text("model\x1b]0;title\x07,gpu\n")
    said = said_to_a_terminal(*command, str(path))
    assert "column" in said
    assert "\\x1b[31m" in said
    assert not any(char in said for char in "\x1b\x07\u202e")


def test_an_audit_fits_on_a_terminal_and_has_no_power_over_it() -> None:
    hostile = "the server said \x1b[2J " + "and so on " * 30
    told = Audit(
        folder=Path(NAME), what="8 users", invalid=(hostile,), notes=(hostile,), identities=()
    )
    said = runs_text([told])
    assert not any(char in said for char in "\x1b\x07\u202e")
    assert max(map(len, said.splitlines())) <= 100
    assert said.split().count("on") == 60

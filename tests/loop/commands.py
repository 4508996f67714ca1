"""Runs the command line: inside this process for its words, as a process of its own for signals."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from servecap import cli


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its only line on standard error."""
        assert self.err.count("\n") == 1, f"not one line: {self.err!r}"
        assert "Traceback" not in self.err
        return self.err.strip()


class Shell:
    """Calls `servecap` with arguments, in a folder of its own."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self._patch = monkeypatch
        self._capsys = capsys
        monkeypatch.chdir(folder)

    def __call__(self, *words: str | Path) -> Said:
        self._patch.setattr(sys, "argv", ["servecap", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code
        out, err = self._capsys.readouterr()
        return Said(code if isinstance(code, int) else -1, out, err)


def started(*words: str | Path, before: str = "") -> subprocess.Popen[str]:
    """`servecap` as a process; *before* is Python that runs in it first."""
    code = f"{before}\nimport sys; from servecap.cli import main; sys.argv[0] = 'servecap'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )

"""Fixtures of the loop tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Shell


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    for variable in ("SERVECAP_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    return Shell(tmp_path, monkeypatch, capsys)

"""What is said of an audit: an answer that was not had is not a clean one."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "audit_deps.py"

CLEAN: dict[str, Any] = {"name": "numpy", "version": "2.4", "vulns": []}
BAD: dict[str, Any] = {
    "name": "jinja2",
    "version": "3.1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.6"]}],
}
UNKNOWN: dict[str, Any] = {"name": "yarl", "skip_reason": "Dependency not found"}
OURS: dict[str, Any] = {"name": "servecap", "skip_reason": "distribution marked as editable"}


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        ([CLEAN, OURS], 0, "1 packages were looked up, 0 vulnerabilities"),
        ([CLEAN, BAD], 1, "jinja2 3.1.0: PYSEC-1 (fixed in: 3.1.6)"),
        ([BAD, UNKNOWN], 1, "partly not audited: nothing was told of 1 of 2"),
        ([CLEAN, UNKNOWN], 2, "partly not audited"),
        ([UNKNOWN, OURS], 2, "not audited: nothing was told of 1 of 1"),
        ([], 2, "0 packages"),
    ],
)
def test_verdict(
    told: list[dict[str, Any]], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said: Callable[[list[dict[str, Any]]], int] = runpy.run_path(str(TOOL))["said"]
    assert said(told) == code
    assert words in capsys.readouterr().out

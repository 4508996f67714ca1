"""The table of faults in README.md: each has its test, and the table forgets none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from faults import FAULTS

HERE = Path(__file__).parent
ROW = re.compile(r"^\| (.+?) \| `(\S+?)::(\w+)(?:\[(.+)\])?` \|$", re.M)
ROWS = ROW.findall((HERE / "README.md").read_text())
EACH = "test_fault_ends_as_it_should_and_disturbs_nobody"
# As issue 9 names them; one name may stand for several of ours.
ASKED = (
    "refuse", "reset before", "reset after", "stall", "trickle", "cut in mid chunk", "garbage SSE",
    "content-length", "429 with Retry-After", "500", "503", "slow TLS", "half-close",
    "endless stream", "10 MB line", "tokens told", "duplicate [DONE]", "clock jump", "connect",
    "first token", "gap", "total", "load process that dies", "full disk", "read-only folder",
    "no descriptors", "SIGTERM", "SIGKILL", "orphans", "stuck terminal",
)  # fmt: skip


def test_every_row_names_a_test_that_is_there() -> None:
    assert len(ROWS) > 50
    for _, file, name, which in ROWS:
        tree = ast.parse((HERE.parent / file).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{file}::{name}"
        assert not which or which in FAULTS


@pytest.mark.parametrize("name", ASKED)
def test_every_fault_that_was_asked_for_has_its_row(name: str) -> None:
    assert any(name in row[0] for row in ROWS)


def test_every_fault_of_the_proxy_has_its_row() -> None:
    assert FAULTS.keys() <= {row[0] for row in ROWS}
    tested = {which for _, _, name, which in ROWS if name == EACH}
    assert tested <= FAULTS.keys()

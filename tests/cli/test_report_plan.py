"""`servecap report` shows a plan that `plan --json` wrote as `plan` itself shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from servecap import cli
from servecap.errors import UsageError

CELLS = """\
model,gpu,tp,max_users,ttft_s,tpot_s,error_rate
m,A100,4,450,1.2,0.08,0
m,A100,8,700,1.4,0.09,0
"""


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli.cli, args, standalone_mode=False)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    (tmp_path / "cells.csv").write_text(CELLS)
    found = invoke("plan", str(tmp_path / "cells.csv"), "--users", "5000", "--json")
    (tmp_path / "plan.json").write_text(found.stdout)
    return tmp_path / "plan.json"


def test_text_and_page_are_those_of_the_plan(stored: Path) -> None:
    page = stored.with_name("p.html")
    shown = invoke("report", str(stored), "--html", str(page))
    assert shown.return_value == 0, shown.exception
    planned = invoke("plan", str(stored.with_name("cells.csv")), "--users", "5000")
    assert shown.stdout.startswith(planned.stdout)
    assert "5,000 users at the same time" in page.read_text()
    again = invoke("report", str(stored), "--html", str(page), "--json")
    assert json.loads(again.stdout)["plan"] == json.loads(stored.read_text())


def test_two_plans_and_a_damaged_one_are_refused(stored: Path) -> None:
    two = invoke("report", str(stored), str(stored)).exception
    assert isinstance(two, UsageError)
    assert "one plan" in str(two)
    bad = stored.with_name("bad.json")
    bad.write_text('{"demand": 3}')
    damaged = invoke("report", str(bad)).exception
    assert isinstance(damaged, UsageError)
    assert "no plan of this version" in str(damaged)


@pytest.mark.parametrize("command", ["plan", "report"])
def test_a_page_that_cannot_be_written_is_told(stored: Path, command: str) -> None:
    page = str(stored.with_name("none") / "p.html")
    told = [str(stored)] if command == "report" else [str(stored.with_name("cells.csv")),
                                                      "--users", "5000"]  # fmt: skip
    found = invoke(command, *told, "--html", page)
    assert isinstance(found.exception, UsageError), found.exception
    assert "cannot be written: No such file" in str(found.exception)

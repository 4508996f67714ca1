"""`servecap plan` from its options to its text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from servecap.cli.plan import command
from servecap.errors import UsageError

TABLE = """\
model,gpu,tp,max_users,ttft_s,tpot_ms,avg_output_tokens,requests_per_s
small,A30,4,45,2.5,90,200,2.0
small,A100,4,225,2.0,60,200,14
large,A100,8,90,2.9,95,200,3.7
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "cells.csv"
    path.write_text(TABLE)
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), standalone_mode=False)


def answer(*arguments: str) -> dict[str, object]:
    done = run(*arguments, "--json")
    assert done.exception is None, done.exception
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_one_command_from_a_table_to_a_plan(table: str) -> None:
    done = run(table, "--users", "10000")
    assert done.exception is None
    assert "To carry 10,000 users at the same time" in done.stdout
    for part in ("small: 23 nodes of 8 x A100", "What if", "Break-even", "does not know"):
        assert part in done.stdout


def test_every_way_to_say_the_demand(table: str, tmp_path: Path) -> None:
    day = tmp_path / "day.csv"
    day.write_text("hour,requests_per_s\n3,10\n15,60\n")
    assert answer(table, "--registered", "200000", "--activity", "5%")["users"] == 10_000
    assert answer(table, "--users", "1000", "--growth", "20%")["users"] == 1200
    by_rate = answer(table, "--profile", str(day))
    assert by_rate["users"] is None
    assert by_rate["demand"]["requests_per_s"] == 60  # type: ignore[index]
    shared = answer(table, "--users", "small=400", "--users", "large=20")
    assert shared["fleet"]["models"] == ["small", "large"]  # type: ignore[index]


def test_a_supply_file_and_reserves(table: str, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("nodes:\n  - {gpu: a100, usd_per_h: 16, at_most: 40}\n")
    done = run(table, "--users", "10000", "--supply", str(nodes), "--zones", "2", "--headroom",
               "10%", "--model", "small")  # fmt: skip
    assert done.exception is None, done.exception
    text = " ".join(done.stdout.split())
    assert "too few nodes can be had" in text
    assert "no node of it can be had" in text
    assert "10% of each instance's users is kept free; any one of 2 zones may fail" in text


def test_a_page_can_be_written(table: str, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    done = run(table, "--users", "500", "--html", str(page), "--price", "a30=0.5", "--price",
               "a100=16/node")  # fmt: skip
    assert done.exception is None, done.exception
    text = page.read_text()
    assert "What if" in text
    assert "Break-even" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "there is none of them"),
        (["--users", "5", "--registered", "9"], "there is --users and --registered"),
        (["--registered", "9"], "--registered and --activity belong together"),
        (["--users", "5", "--activity", "1%"], "belong together"),
        (["--users", "many"], "--users 'many': write a number"),
        (["--users", "5", "--users", "6"], "given twice"),
        (["--users", "5", "--users", "small=6"], "not both"),
        (["--users", "small=5", "--model", "small"], "leave --model out"),
        (["--users", "5", "--nodes", "7"], "--nodes: name the GPU"),
        (["--users", "5", "--price", "7"], "--price '7': write GPU=USD"),
        (["--users", "5", "--supply", "n", "--price", "a30=1"], "--price stands in the --supply"),
        (["--users", "5", "--headroom", "100%"], "headroom 100%"),
    ],
)
def test_options_that_make_no_sense_are_told(table: str, arguments: list[str], told: str) -> None:
    done = run(table, *arguments)
    assert isinstance(done.exception, UsageError), done.stdout
    assert told in str(done.exception)


def test_a_table_without_latencies_is_told_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("model,gpu,tp,max_users\nm,x,1,30\n")
    assert "no cell tells its TTFT; add a column ttft_ms, or a column slo" in str(
        run(str(path), "--users", "100").exception
    )
    path.write_text('model,gpu,tp,max_users,slo\nm,x,1,30,"ttft.mean<3s,tpot.mean<100ms"\n')
    assert "m: 1 node of 8 x x" in run(str(path), "--users", "100").stdout

"""`servecap report`: show what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from servecap.cli import output
from servecap.cli.find import SEARCH
from servecap.errors import UNREADABLE, UsageError
from servecap.scenario import Scenario

if TYPE_CHECKING:
    from servecap.cell import Cell
    from servecap.metrics import Summary
    from servecap.plan.answer import Plan
    from servecap.run import Run
    from servecap.search import SearchResult
    from servecap.search.rate import RateResult


class Stored(msgspec.Struct, frozen=True):
    """All that the paths of a report hold."""

    runs: list[tuple[Run, Summary]]
    search: SearchResult | RateResult | None
    cells: list[Cell]
    plan: Plan | None

    def parts(self) -> dict[str, Any]:
        """By the names under which pages and charts take them."""
        return {"runs": self.runs, "search": self.search, "cells": self.cells, "plan": self.plan}


class _Asked(msgspec.Struct, frozen=True):
    """What a search of either kind says of itself."""

    scenario: Scenario


@click.command("report")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option(
    "--html",
    type=click.Path(dir_okay=False),
    help="Where the page goes.  [default: report.html in the first folder]",
)
@click.option("--title", default="servecap report", show_default=True)
@output.charts_options
@output.lang_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
def command(paths: tuple[str, ...], **given: Any) -> int:
    """Show stored runs, searches, matrices and plans; write one HTML page, and charts as files.

    PATHS are folders made by run, import, find or matrix, a table of cells (CSV, JSON), or what
    plan --json printed. Runs that were killed are shown as far as they came.

    \b
    Examples:
      servecap report servecap-runs/run-20261122-101500 servecap-runs/find-20261122-103000
      servecap report servecap-runs/run-20261122-101500 --charts figures --format png
    """
    from servecap.store import uncollected

    with uncollected():
        _report(paths, given)
    return 0


def _report(paths: Sequence[str], given: dict[str, Any]) -> None:
    target = Path(given["html"]) if given["html"] else _default_page(paths[0])
    stored = read(paths)
    output.write_page(target, **stored.parts(), title=given["title"], lang=given["lang"])
    lines = output.write_charts(
        given["charts"], given["chart_format"], given["lang"], **stored.parts()
    )
    if given["as_json"]:
        runs = [{"run": run.header, "path": run.path, "summary": s} for run, s in stored.runs]
        told = {"runs": runs, "search": stored.search, "cells": stored.cells, "plan": stored.plan}
        output.print_json(told)
        return
    _print(stored)
    click.echo("\n".join(["", f"written: {target}", *lines]))


def _default_page(first: str) -> Path:
    path = Path(first)
    return path / "report.html" if path.is_dir() else Path("report.html")


def read(paths: Sequence[str]) -> Stored:
    """What is stored at the paths, with the figures of runs computed anew.

    Raises:
        UsageError: nothing is, or it is damaged, or there are two searches or plans.
    """
    from servecap.matrix import files
    from servecap.store import HEADER, read_run
    from servecap.summarize import summarize

    runs: list[tuple[Run, Summary]] = []
    searches: list[SearchResult | RateResult] = []
    cells: list[Cell] = []
    plans: list[Plan] = []
    for name in paths:
        path = Path(name)
        if (path / SEARCH).is_file():
            result = read_search(path / SEARCH)
            searches.append(result)
            best = result.at_capacity
            # The folder may have been moved since: levels are sought beside the search itself.
            if best is not None and best.run_path is not None:
                run = read_run(path / Path(best.run_path).name)
                runs.append((run, summarize(run)))
        elif (path / HEADER).is_file():
            run = read_run(path)
            runs.append((run, summarize(run)))
        elif (plan := _plan(path)) is not None:
            plans.append(plan)
        elif begun := sorted(path.glob("01-users-*")):
            raise UsageError(
                f"{name!r} holds a search that found no capacity: give the folder of its first "
                f"level, {str(begun[0])!r}"
            )
        elif path.is_file() or path.is_dir():
            cells += files.read(path).cells
        else:
            raise UsageError(
                f"{name!r} does not exist: give a folder of run, find or matrix, or a plan"
            )
    if len(searches) > 1:
        raise UsageError("one search at a time: give one folder made by find")
    if len(plans) > 1:
        raise UsageError("one plan at a time: give one file of plan --json")
    return Stored(runs, next(iter(searches), None), cells, next(iter(plans), None))


def _plan(path: Path) -> Plan | None:
    """The plan in the file; None where it is no JSON object with a demand in it.

    Raises:
        UsageError: it is one, but not as this version writes it.
    """
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    from servecap.plan.answer import Plan

    try:
        data = path.read_bytes()
        raw = msgspec.json.decode(data)
    except (OSError, *UNREADABLE):
        return None  # who reads tables says what is wrong with it
    if not isinstance(raw, dict) or "demand" not in raw:
        return None
    try:
        return msgspec.convert(raw, Plan)
    except msgspec.ValidationError as error:
        raise UsageError(f"{str(path)!r} is no plan of this version of servecap: {error}") from None


def read_search(path: Path) -> SearchResult | RateResult:
    """The search stored at *path*.

    Raises:
        UsageError: it cannot be read.
    """
    from servecap.search import SearchResult
    from servecap.search.rate import RateResult

    try:
        data = path.read_bytes()
        if msgspec.json.decode(data, type=_Asked).scenario.users is None:
            return msgspec.json.decode(data, type=RateResult)
        return msgspec.json.decode(data, type=SearchResult)
    except (OSError, *UNREADABLE) as error:
        raise UsageError(
            f"{str(path)!r} is no search of this version of servecap ({error}): report the runs of "
            "its levels, each in a folder beside it"
        ) from None


def _print(stored: Stored) -> None:
    from servecap.matrix import files
    from servecap.report.plan_text import plan_text
    from servecap.report.search_text import search_text
    from servecap.report.text import summary_text

    parts = []
    if stored.plan is not None:
        parts.append(plan_text(stored.plan))
    if stored.search is not None:
        parts.append(search_text(stored.search))
    parts += [summary_text(run, summary) for run, summary in stored.runs]
    if stored.cells:
        parts.append(files.to_markdown(stored.cells))
    click.echo("\n".join(parts), nl=False)

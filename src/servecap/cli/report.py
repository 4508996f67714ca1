"""`servecap report`: show what was stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap.cli import output
from servecap.cli.find import SEARCH
from servecap.errors import UNREADABLE, UsageError

if TYPE_CHECKING:
    from servecap.cell import Cell
    from servecap.metrics import Summary
    from servecap.plan.answer import Plan
    from servecap.run import Run
    from servecap.search import SearchResult

Measured = list[tuple["Run", "Summary"]]


@click.command("report")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option(
    "--html",
    type=click.Path(dir_okay=False),
    help="Where the page goes.  [default: report.html in the first folder]",
)
@click.option("--title", default="servecap report", show_default=True)
@output.lang_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
def command(paths: tuple[str, ...], html: str | None, title: str, lang: str, as_json: bool) -> int:
    """Show stored runs, searches, matrices and plans; write one HTML page.

    PATHS are folders made by run, import, find or matrix, a table of cells (CSV, JSON), or what
    plan --json printed. Runs that were killed are shown as far as they came.

    \b
    Example:
      servecap report servecap-runs/run-20261122-101500 servecap-runs/find-20261122-103000
    """
    from servecap.report import html as page

    runs, searches, cells, plans = _read(paths)
    if len(searches) > 1:
        raise UsageError("one search at a time: give one folder made by find")
    if len(plans) > 1:
        raise UsageError("one plan at a time: give one file of plan --json")
    search = searches[0] if searches else None
    plan = plans[0] if plans else None
    target = Path(html) if html else _default_page(paths[0])
    _write(page, target, runs, search, cells, plan, title=title, lang=lang)
    if as_json:
        output.print_json(
            {
                "runs": [{"run": run.header, "path": run.path, "summary": s} for run, s in runs],
                "search": search,
                "cells": cells,
                "plan": plan,
            }
        )
        return 0
    _print(runs, search, cells, plan)
    click.echo(f"\nwritten: {target}")
    return 0


def _write(
    page: Any,
    target: Path,
    runs: Measured,
    search: SearchResult | None,
    cells: list[Cell],
    plan: Plan | None,
    *,
    title: str,
    lang: str,
) -> None:
    try:
        page.write_html(
            target, runs=runs, search=search, cells=cells or None, plan=plan, title=title, lang=lang
        )
    except OSError as error:
        raise UsageError(f"--html {str(target)!r} cannot be written: {error.strerror}") from None


def _default_page(first: str) -> Path:
    path = Path(first)
    return path / "report.html" if path.is_dir() else Path("report.html")


def _read(
    paths: tuple[str, ...],
) -> tuple[Measured, list[SearchResult], list[Cell], list[Plan]]:
    from servecap.matrix import files
    from servecap.store import HEADER, read_run
    from servecap.summarize import summarize

    runs: Measured = []
    searches: list[SearchResult] = []
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
        elif path.is_file() or path.is_dir():
            cells += files.read(path).cells
        else:
            raise UsageError(
                f"{name!r} does not exist: give a folder of run, find or matrix, or a plan"
            )
    return runs, searches, cells, plans


def _plan(path: Path) -> Plan | None:
    """The plan in the file; None where it is no JSON object with a demand in it.

    Raises:
        UsageError: it is one, but not as this version writes it.
    """
    import msgspec

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


def read_search(path: Path) -> SearchResult:
    """The search stored at *path*.

    Raises:
        UsageError: it cannot be read.
    """
    import msgspec

    from servecap.search import SearchResult

    try:
        return msgspec.json.decode(path.read_bytes(), type=SearchResult)
    except (OSError, *UNREADABLE) as error:
        raise UsageError(f"{str(path)!r} is no stored search: {error}") from None


def _print(
    runs: Measured, search: SearchResult | None, cells: list[Cell], plan: Plan | None
) -> None:
    from servecap.matrix import files
    from servecap.report.plan_text import plan_text
    from servecap.report.search_text import search_text
    from servecap.report.text import summary_text

    parts = []
    if plan is not None:
        parts.append(plan_text(plan))
    if search is not None:
        parts.append(search_text(search))
    parts += [summary_text(run, summary) for run, summary in runs]
    if cells:
        parts.append(files.to_markdown(cells))
    click.echo("\n".join(parts), nl=False)

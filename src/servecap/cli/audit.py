"""`servecap audit`: what contradicts itself in a table, a run or a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from servecap import slo as slos
from servecap.cli import output
from servecap.cli.param import Finite
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.audit import Identity
    from servecap.matrix.check import Finding
    from servecap.run import Run

INVALID = 4


class Audit(msgspec.Struct, frozen=True):
    """A run held against itself."""

    folder: Path
    what: str  # load and source in words
    invalid: tuple[str, ...]
    notes: tuple[str, ...]
    identities: tuple[Identity, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing in it contradicts anything else."""
        return not self.invalid and all(c.holds for c in self.identities)


@click.command("audit")
@click.argument("path", type=click.Path())
@click.option(
    "--slo",
    default=slos.DEFAULT_SLO_TEXT,
    show_default=True,
    help="Limits that rows of a table without their own are listed under.",
)
@click.option(
    "--think-mean",
    type=Finite(min=0),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Mean think time of the users behind a table.",
)
@click.option(
    "--queue",
    type=click.IntRange(1),
    metavar="N",
    help="A table's runs were N requests each, from a finite queue.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
def command(**given: Any) -> int:
    """Hold a table (CSV), a matrix, a run or a search against itself.

    Little's law, requests x lengths = tokens, times that cannot be, exchanged columns, broken
    SLOs and the tails of finite queues. Every finding says what the figure should be.

    \b
    Examples:
      servecap audit cells.csv --queue 250
      servecap audit servecap-runs/run-20260101-120000
    Exits with 4 if something cannot be as it stands.
    """
    path = Path(given["path"])
    if path.is_dir() and not is_matrix(path):
        return _runs(path, as_json=given["as_json"])
    return _table(path, given)


def is_matrix(path: Path) -> bool:
    """Whether the folder is one that `servecap matrix` filled."""
    from servecap.matrix.journal import JOURNAL

    return (path / JOURNAL).is_file()


def _table(path: Path, given: dict[str, Any]) -> int:
    from servecap.matrix.check import WRONG

    count, findings = table_findings(path, given)
    if given["as_json"]:
        output.print_json({"cells": count, "findings": findings})
    else:
        click.echo(table_text(count, findings), nl=False)
    return INVALID if any(f.kind in WRONG for f in findings) else 0


def table_findings(path: Path, given: dict[str, Any]) -> tuple[int, list[Finding]]:
    """How many cells the table (CSV, a matrix or its JSON) has, and what is wrong with them.

    Raises:
        UsageError: it cannot be read.
    """
    from servecap.cli.progress import say
    from servecap.matrix import check, files, lines, table

    if path.suffix.lower() == ".json" or path.is_dir():
        text = table.to_csv(files.read(path).cells)
    else:
        text = lines.text_of(path)
    for header in lines.rows(text, name=str(path), required=check.NEEDED)[1]:
        say(f"note: {path}: column {header!r} is not known and was left out")
    return check.check(
        text,
        name=str(path),
        slo=slos.parse(given["slo"]),
        think_mean_s=given["think_mean"],
        queue=given["queue"],
    )


def table_text(cells: int, findings: list[Finding]) -> str:
    """Every finding: where, what is wrong and what it should be."""
    from servecap.report.table import paragraph

    many = f"{cells} cell{'' if cells == 1 else 's'}"
    if not findings:
        return f"{many}, nothing contradicts itself.\n"
    lines = [f"{many}, {len(findings)} finding{'' if len(findings) == 1 else 's'}", ""]
    for f in findings:
        place = f.where if f.line is None else f"line {f.line}, {f.where}"
        lines += [f"{f.kind:13} {place}"]
        lines += [f"  {line}" for line in paragraph(f"{f.said}.")]
        lines += [f"  {line}" for line in paragraph(f"Should be: {f.should_be}.")]
    return "\n".join(lines) + "\n"


def _runs(path: Path, *, as_json: bool) -> int:
    found = runs(path)
    if as_json:
        output.print_json(
            [
                {
                    "run": str(x.folder),
                    "invalid": x.invalid,
                    "warnings": x.notes,
                    "identities": x.identities,
                }
                for x in found
            ]
        )
    else:
        click.echo(runs_text(found), nl=False)
    return 0 if all(x.holds for x in found) else INVALID


def runs(path: Path) -> list[Audit]:
    """The run in the folder, or the runs of the levels of the search in it.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    from servecap.audit import identities
    from servecap.store import read_run
    from servecap.summarize import summarize

    found = []
    for folder in _folders(path):
        run = read_run(folder)
        summary = summarize(run)
        found.append(
            Audit(
                folder=folder,
                what=_what(run),
                invalid=summary.invalid_reasons,
                notes=tuple(dict.fromkeys((*summary.warnings, *run.header.notes))),
                identities=identities(run, summary),
            )
        )
    return found


def runs_text(found: Sequence[Audit]) -> str:
    """Every relation of each run, whether it holds, and what is to be known beside."""
    from servecap.report import units

    lines = []
    for audit in found:
        lines.append(f"{units.clean(str(audit.folder))}: {audit.what}")
        for check in audit.identities:
            lines += _entry("holds" if check.holds else "BROKEN", f"{check.name}: {check.said}")
        for text in audit.invalid:
            lines += _entry("INVALID", text)
        for text in audit.notes:
            lines += _entry("note", text)
    return "\n".join(lines) + "\n"


def _entry(mark: str, text: str) -> list[str]:
    from servecap.report import units
    from servecap.report.table import paragraph

    first, *rest = paragraph(units.clean(text, 2000), indent=" " * 10)
    return [f"  {mark:7} {first.lstrip()}", *rest]


def _folders(path: Path) -> list[Path]:
    """The run in *path*, or the runs of the levels of the search in it.

    Raises:
        UsageError: there is no run.
    """
    from servecap.store import HEADER

    if (path / HEADER).is_file():
        return [path]
    found = sorted(p.parent for p in path.glob(f"*/{HEADER}"))
    if not found:
        raise UsageError(
            f"{str(path)!r} holds no run: give a CSV file, or a folder of run, find or matrix"
        )
    return found


def _what(run: Run) -> str:
    users = run.scenario.users
    load = "open loop" if users is None else f"{users} users"
    return f"{load}, {len(run.records)} requests, {run.header.source}"

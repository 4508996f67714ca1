"""servecap from Python: the commands as functions that return what they found.

    from servecap import api

    found = api.run("http://localhost:8000", users=16, slo="ttft.p95<2s")
    found.summary.client["ttft"].p95

Options have the names that they have on the command line, with `_` for `-`, and the same defaults;
an option that may be given several times takes a list. Nothing is printed unless `progress` is
given. It works where an event loop is running already, as in a notebook, and a result shows itself
there as the report that the command would print.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import click

from servecap.api.found import (
    Audited,
    Compared,
    MatrixFound,
    PlanFound,
    Predicted,
    RateFound,
    Reported,
    RunFound,
    SearchFound,
)
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.cli.report import Stored

__all__ = [
    "Audited", "Compared", "MatrixFound", "PlanFound", "Predicted", "RateFound", "Reported",
    "RunFound", "SearchFound", "audit", "compare", "find", "find_rate", "import_cell",
    "import_results", "load", "matrix", "plan", "predict", "report", "run",
]  # fmt: skip

# Options of the command line that say what is printed or written besides the result.
_NOT_HERE = frozenset(
    {"as_json", "quiet", "html", "charts", "chart_format", "dry_run", "form", "markdown", "junit",
     "new", "table", "tables"}
)  # fmt: skip


Shown = RunFound | SearchFound | RateFound | MatrixFound | PlanFound | Compared


def run(url: str, **options: Any) -> RunFound:
    """One load test of the server at *url*, as `servecap run` does it.

    Raises:
        UsageError: an option is unknown, or two contradict each other.
        EndpointError: the server cannot be used.
    """
    from servecap.cli import run as cli_run

    with _given(cli_run.command, options | {"url": url}) as given:
        return RunFound(*cli_run.measured(given))


def find(url: str, **options: Any) -> SearchFound:
    """The most users that the server at *url* carries, as `servecap find` finds them.

    Raises:
        UsageError: an option is unknown, or two contradict each other.
        EndpointError: the server cannot be used.
        InvalidRun: no level of users could be believed.
    """
    from servecap.cli import find as cli_find
    from servecap.search import SearchResult

    if options.get("rate"):
        raise UsageError("find(rate=True): the highest rate is found by find_rate(url)")
    with _given(cli_find.command, options | {"url": url}) as given:
        result, path = cli_find.searched(given)
        assert isinstance(result, SearchResult)
        return SearchFound(result, path)


def find_rate(url: str, **options: Any) -> RateFound:
    """The highest rate of requests that the server carries, as `servecap find --rate` finds it.

    Raises:
        UsageError: an option is unknown, or two contradict each other.
        EndpointError: the server cannot be used.
        InvalidRun: no rate could be believed.
    """
    from servecap.cli import find as cli_find
    from servecap.search.rate import RateResult

    with _given(cli_find.command, options | {"url": url, "rate": True}) as given:
        result, path = cli_find.searched(given)
        assert isinstance(result, RateResult)
        return RateFound(result, path)


def matrix(spec: str | os.PathLike[str], **options: Any) -> MatrixFound:
    """The cells of the spec, filled as far as they can be, as `servecap matrix` fills them.

    Raises:
        UsageError: the spec cannot be read, or an option is unknown.
    """
    from servecap.cli import matrix as cli_matrix

    with _given(cli_matrix.command, options | {"spec": spec}) as given:
        loaded, out = cli_matrix.opened(given["spec"], given["out"])
        cells = cli_matrix.fill_spec(
            loaded,
            out,
            only=given["only"],
            quiet=given["quiet"],
            high_load=given["allow_high_load"],
        )
        return MatrixFound(tuple(cells), out)


def plan(cells: str | os.PathLike[str] | MatrixFound, **options: Any) -> PlanFound:
    """Which GPU, how split and how many nodes, as `servecap plan` says it.

    *cells*: a table of measured cells, a folder of `matrix`, or what `matrix` returned.

    Raises:
        UsageError: the table cannot be read, or an option is unknown.
    """
    from servecap.cli import plan as cli_plan

    table = cells.path if isinstance(cells, MatrixFound) else cells
    with _given(cli_plan.command, options | {"matrix": table}) as given:
        return PlanFound(*cli_plan.planned(given.pop("matrix"), given))


def predict(**options: Any) -> Predicted:
    """Figures of cells that nobody measured, as `servecap predict` says them.

    What stands between commas there may be a list: `tp=[1, 2, 4]`.

    Raises:
        UsageError: an option is unknown, or a name is.
    """
    from servecap.cli import predict as cli_predict

    for name in ("model", "gpu", "tp", "context"):
        if isinstance(several := options.get(name), list | tuple):
            options[name] = ",".join(map(str, several))
    with _given(cli_predict.command, options) as given:
        _, rules, answers = cli_predict.predicted(given)
        return Predicted(tuple(answers), rules)


def compare(
    before: RunFound | SearchFound | RateFound | str | os.PathLike[str],
    after: RunFound | SearchFound | RateFound | str | os.PathLike[str],
    *,
    metrics: Sequence[str] = (),
    confidence: float = 0.95,
    fail_on: Sequence[str] = (),
) -> Compared:
    """What changed by more than noise between two runs, or two searches, or their folders.

    Raises:
        UsageError: a folder holds neither, they are not of a kind, or a name is unknown.
    """
    from servecap.cli import compare as cli_compare
    from servecap.compare import parse_metrics
    from servecap.gate import check_gate, parse_gates

    gates = parse_gates(fail_on)
    first, second = _comparable(before), _comparable(after)
    found = cli_compare.compared_with(
        first, second, metrics=parse_metrics(",".join(metrics)), gates=gates, confidence=confidence
    )
    pair = None
    if isinstance(first, tuple) and isinstance(second, tuple):
        pair = (RunFound(*first), RunFound(*second))
    return Compared(found, tuple(check_gate(gate, found) for gate in gates), pair)


def audit(
    path: str | os.PathLike[str] | RunFound | SearchFound | RateFound, **options: Any
) -> Audited:
    """What contradicts itself in a table, a run or a search, as `servecap audit` finds it.

    Raises:
        UsageError: it cannot be read, or an option is unknown.
    """
    from servecap.cli import audit as cli_audit

    kept = path.path if isinstance(path, RunFound | SearchFound | RateFound) else Path(path)
    with _given(cli_audit.command, options | {"path": kept}) as given:
        if kept.is_dir() and not cli_audit.is_matrix(kept):
            return Audited(0, (), tuple(cli_audit.runs(kept)))
        cells, findings = cli_audit.table_findings(kept, given)
        return Audited(cells, tuple(findings), ())


def import_results(*files: str | os.PathLike[str], **options: Any) -> tuple[RunFound, ...]:
    """The load tests in other tools' result files as runs, as `servecap import` makes them.

    Raises:
        UsageError: a file cannot be read, has no requests, or an option is unknown.
    """
    from servecap.cli import importing

    if "cell" in options:
        raise UsageError("import_results makes runs: for a cell there is import_cell")
    with _given(importing.command, options | {"files": files}) as given:
        return tuple(RunFound(*pair) for pair in importing.runs(given["files"], given))


def import_cell(
    *files: str | os.PathLike[str], table: str | os.PathLike[str], **options: Any
) -> MatrixFound:
    """One cell of a matrix, of which the load tests in other tools' files are the levels.

    It is written to *table* (.csv, .json or .md), so that it can be planned with.

    Raises:
        UsageError: a file cannot be read, or `gpu`, `tp` or another option is missing or unknown.
    """
    from servecap.cli import importing

    with _given(importing.command, options | {"files": files, "cell": table}) as given:
        made, _ = importing.cell(given["files"], given)
        return MatrixFound((made,), Path(table))


def report(
    *shown: Shown | str | os.PathLike[str],
    html: str | os.PathLike[str] | None = None,
    charts: str | os.PathLike[str] | None = None,
    chart_format: Literal["svg", "png"] = "svg",
    title: str = "servecap report",
    lang: Literal["en", "zh"] = "en",
) -> Reported:
    """One page of all that is given: results of these functions, or what `servecap report` takes.

    Args:
        html: a file to write the page to.
        charts: a folder to write each chart to, as a file of its own.
    Raises:
        UsageError: nothing is given, a path holds nothing to show, or two searches or plans are.
        OSError: a file cannot be written.
    """
    from servecap.cli import report as cli_report
    from servecap.report import chart_files
    from servecap.report import html as pages

    parts = _parts(shown, cli_report.read([str(x) for x in shown if not _is_shown(x)]))
    page = pages.render(**parts, title=title, lang=lang)
    if html is not None:
        Path(html).write_text(page, encoding="utf-8")
    drawn: list[chart_files.Written] = []
    if charts is not None:
        found = chart_files.report_charts(**parts)
        drawn = chart_files.write_charts(Path(charts), found, form=chart_format, lang=lang)
    return Reported(page, None if html is None else Path(html), tuple(x.path for x in drawn))


def load(folder: str | os.PathLike[str]) -> RunFound:
    """The run that is kept in *folder*, with its figures computed anew.

    Raises:
        UsageError: it holds no run.
    """
    from servecap.store import read_run
    from servecap.summarize import summarize

    found = read_run(Path(folder))
    return RunFound(found, summarize(found))


def _comparable(given: RunFound | SearchFound | RateFound | str | os.PathLike[str]) -> Any:
    from servecap.cli import compare as cli_compare

    match given:
        case RunFound():
            return given.run, given.summary
        case SearchFound() | RateFound():
            return cli_compare.Searched(str(given.path), given.search)
        case _:
            return cli_compare.load(os.fspath(given))


def _is_shown(given: object) -> TypeGuard[Shown]:
    return isinstance(
        given, RunFound | SearchFound | RateFound | MatrixFound | PlanFound | Compared
    )


def _parts(shown: Sequence[Any], stored: Stored) -> dict[str, Any]:
    """What a page and charts are made of, in the order given; what was stored comes last."""
    from servecap.report.html import Compared as Section

    told: dict[str, list[Any]] = {"runs": [], "search": [], "cells": [], "plan": [], "compared": []}
    for given in shown:
        match given:
            case RunFound():
                told["runs"].append((given.run, given.summary))
            case SearchFound() | RateFound():
                told["search"].append(given.search)
            case MatrixFound():
                told["cells"] += given.cells
            case PlanFound():
                told["plan"].append(given.plan)
                told["cells"] += given.cells
            case Compared():
                told["compared"].append(Section(given.comparison, given.gates, given.both()))
    told["runs"] += stored.runs
    told["cells"] += stored.cells
    for name, one in (("search", stored.search), ("plan", stored.plan)):
        found = told[name] + ([] if one is None else [one])
        if len(found) > 1:
            raise UsageError(f"one {name} at a time: make a report of each")
        told[name] = found
    return told | {name: next(iter(told[name]), None) for name in ("search", "plan")}


@contextlib.contextmanager
def _given(command: click.Command, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the command would be given for these options; it is the running command meanwhile."""
    from servecap.cli import progress

    names = {_name(param): param for param in command.params if param.name not in _NOT_HERE}
    words: list[str] = []
    told = {"progress": "none"} | options
    for name, value in told.items():
        param = names.get(name)
        if param is not None:
            words += _words(name, param, value)
        elif name != "progress":
            near = difflib.get_close_matches(name, names, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{command.name} has no option {name!r}{hint}")
    try:
        ctx = command.make_context(command.name, words)
    except click.ClickException as error:
        raise UsageError(f"{command.name}: {error.format_message()}") from None
    progress.choose(ctx, told["progress"])  # also where the command itself has no such option
    with ctx:
        yield dict(ctx.params)


def _name(param: click.Parameter) -> str:
    """The option's long name in Python, or the argument's."""
    return max(param.opts, key=len).lstrip("-").replace("-", "_")


def _words(name: str, param: click.Parameter, value: Any) -> list[str]:
    """The option as it is written on the command line, for it is read as that reads it."""
    if value is None:
        return []
    if not isinstance(param, click.Option):
        return [str(x) for x in (value if param.nargs == -1 else [value])]
    if param.is_flag:
        chosen = param.opts if value else param.secondary_opts
        return chosen[:1]
    several = isinstance(value, list | tuple)
    if several and not param.multiple:
        raise UsageError(f"{name}={value!r}: it takes one value, not several")
    return [f"--{name.replace('_', '-')}={item}" for item in (value if several else [value])]

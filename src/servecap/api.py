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
import html
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from servecap.cell import Cell
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.compare import Comparison
    from servecap.gate import GateCheck
    from servecap.metrics import Summary
    from servecap.plan.answer import Plan
    from servecap.predict.answer import Answer
    from servecap.run import Run
    from servecap.search import SearchResult

_NOT_HERE = ("as_json", "quiet", "html", "dry_run", "form", "markdown", "junit", "new")


class _Shown:
    """A result that prints itself as the command line does."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


class RunFound(msgspec.Struct, _Shown, frozen=True):
    """One load test: its records and its figures."""

    run: Run
    summary: Summary

    @property
    def path(self) -> Path:
        """The folder that it is kept in."""
        return Path(self.run.path or ".")

    def __str__(self) -> str:
        from servecap.report.text import summary_text

        return summary_text(self.run, self.summary)


class SearchFound(msgspec.Struct, _Shown, frozen=True):
    """The most users for whom the SLO holds."""

    search: SearchResult
    path: Path

    @property
    def users(self) -> int:
        """How many users are carried; 0 if not even one is."""
        return self.search.capacity.users

    def __str__(self) -> str:
        from servecap.report.search_text import search_text

        return search_text(self.search)


class MatrixFound(msgspec.Struct, _Shown, frozen=True):
    """The cells of a matrix that have figures."""

    cells: tuple[Cell, ...]
    path: Path

    def __str__(self) -> str:
        from servecap.matrix import files

        return files.to_markdown(list(self.cells))


class PlanFound(msgspec.Struct, _Shown, frozen=True):
    """A deployment, and the cells that it was made from."""

    plan: Plan
    cells: tuple[Cell, ...]

    def __str__(self) -> str:
        from servecap.report.plan_text import plan_text

        return plan_text(self.plan)


class Predicted(msgspec.Struct, _Shown, frozen=True):
    """Figures of cells that nobody measured, each with an interval."""

    answers: tuple[Answer, ...]

    def __str__(self) -> str:
        from servecap.cli.predict import text

        return text(list(self.answers)) + "\n"


class Compared(msgspec.Struct, _Shown, frozen=True):
    """What changed from one run, or search, to another."""

    comparison: Comparison
    gates: tuple[GateCheck, ...]

    def __str__(self) -> str:
        from servecap.report.compare_text import comparison_text

        return comparison_text(self.comparison, self.gates)


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

    with _given(cli_find.command, options | {"url": url}) as given:
        return SearchFound(*cli_find.searched(given))


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

    Raises:
        UsageError: an option is unknown, or a name is.
    """
    from servecap.cli import predict as cli_predict

    with _given(cli_predict.command, options) as given:
        return Predicted(tuple(cli_predict.predicted(given)[2]))


def compare(
    before: RunFound | str | os.PathLike[str],
    after: RunFound | str | os.PathLike[str],
    *,
    metrics: Sequence[str] = (),
    confidence: float = 0.95,
    fail_on: Sequence[str] = (),
) -> Compared:
    """What changed from one run to another by more than noise; runs, or their folders.

    Raises:
        UsageError: a folder holds no run, or a name is unknown.
    """
    from servecap.compare import compare_runs, parse_metrics
    from servecap.gate import check_gate, parse_gates

    gates = parse_gates(fail_on)
    wanted = dict.fromkeys([*parse_metrics(",".join(metrics)), *(gate.metric for gate in gates)])
    first, second = _run_of(before), _run_of(after)
    found = compare_runs(
        (first.run, first.summary),
        (second.run, second.summary),
        metrics=tuple(wanted),
        confidence=confidence,
    )
    return Compared(found, tuple(check_gate(gate, found) for gate in gates))


def load(folder: str | os.PathLike[str]) -> RunFound:
    """The run that is kept in *folder*, with its figures computed anew.

    Raises:
        UsageError: it holds no run.
    """
    from servecap.store import read_run
    from servecap.summarize import summarize

    found = read_run(Path(folder))
    return RunFound(found, summarize(found))


def _run_of(given: RunFound | str | os.PathLike[str]) -> RunFound:
    return given if isinstance(given, RunFound) else load(given)


@contextlib.contextmanager
def _given(command: click.Command, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the command would be given for these options; it is the running command meanwhile."""
    names = {_name(param): param for param in command.params if param.name not in _NOT_HERE}
    words: list[str] = []
    for name, value in ({"progress": "none"} | options).items():
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
        return [str(value)]
    if param.is_flag:
        chosen = param.opts if value else param.secondary_opts
        return chosen[:1]
    several = isinstance(value, list | tuple)
    if several and not param.multiple:
        raise UsageError(f"{name}={value!r}: it takes one value, not several")
    return [f"--{name.replace('_', '-')}={item}" for item in (value if several else [value])]

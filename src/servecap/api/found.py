"""What the functions of the Python API return: typed objects that show themselves in notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from servecap.cell import Cell

if TYPE_CHECKING:
    from servecap.cli.audit import Audit
    from servecap.compare import Comparison
    from servecap.gate import GateCheck
    from servecap.matrix.check import Finding
    from servecap.metrics import Summary
    from servecap.plan.answer import Plan
    from servecap.predict.answer import Answer
    from servecap.predict.rows import Rules
    from servecap.run import Run
    from servecap.search import SearchResult
    from servecap.search.rate import RateResult


class _Shown:
    """A result that prints itself as the command line does, and shows the same in a notebook."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from servecap.report import notebook

        return notebook.in_lines(str(self))


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

    def _repr_html_(self) -> str:
        from servecap.report import facts, notebook, words

        slo, latency, *others = facts.tables(self.run, self.summary)
        warnings = facts.warnings(self.run, self.summary)
        return notebook.fragment(
            words.headline(self.run, self.summary),
            [slo, latency],
            lists=[("Warnings", warnings)],
            folded=others,
        )


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

    def _repr_html_(self) -> str:
        from servecap.report import notebook, overview, search_text

        table = search_text.level_table(self.search)
        return notebook.fragment(overview.search_headline(self.search), [table])


class RateFound(msgspec.Struct, _Shown, frozen=True):
    """The highest rate of requests for which the SLO holds."""

    search: RateResult
    path: Path

    @property
    def rate_rps(self) -> float:
        """How many requests/s are carried; 0 if none was shown to be."""
        return self.search.capacity.rate_rps

    def __str__(self) -> str:
        from servecap.report.search_text import search_text

        return search_text(self.search)

    def _repr_html_(self) -> str:
        from servecap.report import notebook, overview, rate_text

        table = rate_text.level_table(self.search)
        return notebook.fragment(overview.rate_headline(self.search), [table])


class MatrixFound(msgspec.Struct, _Shown, frozen=True):
    """The cells of a matrix that have figures."""

    cells: tuple[Cell, ...]
    path: Path

    def __str__(self) -> str:
        from servecap.matrix import files

        return files.to_markdown(list(self.cells))

    def _repr_html_(self) -> str:
        from servecap.report import notebook, overview

        head = overview.matrix_headline(self.cells)
        return notebook.fragment(head, [overview.matrix_table(self.cells)])


class PlanFound(msgspec.Struct, _Shown, frozen=True):
    """A deployment, and the cells that it was made from."""

    plan: Plan
    cells: tuple[Cell, ...]

    def __str__(self) -> str:
        from servecap.report.plan_text import plan_text

        return plan_text(self.plan)

    def _repr_html_(self) -> str:
        from servecap.report import notebook, overview, plan_text

        head, tables = overview.plan_headline(self.plan), plan_text.tables(self.plan)
        return notebook.fragment(head, tables, folded_lists=plan_text.lists_of(self.plan))


class Predicted(msgspec.Struct, _Shown, frozen=True):
    """Figures of cells that nobody measured, each with an interval."""

    answers: tuple[Answer, ...]
    rules: Rules  # under which the load tests are done

    def __str__(self) -> str:
        from servecap.cli.predict import text

        return text(list(self.answers), self.rules) + "\n"


class Compared(msgspec.Struct, _Shown, frozen=True):
    """What changed from one run, or search, to another."""

    comparison: Comparison
    gates: tuple[GateCheck, ...]
    pair: tuple[RunFound, RunFound] | None = None  # the runs, where it is one of runs

    def both(self) -> tuple[tuple[Run, Summary], tuple[Run, Summary]] | None:
        """The runs with their figures."""
        if self.pair is None:
            return None
        before, after = self.pair
        return (before.run, before.summary), (after.run, after.summary)

    def __str__(self) -> str:
        from servecap.report.compare_text import comparison_text

        return comparison_text(self.comparison, self.gates)

    def _repr_html_(self) -> str:
        from servecap.report import compare_text, notebook

        found, gates = self.comparison, self.gates
        lists = compare_text.lists_of(found, gates)
        head = compare_text.page_headline([(found, gates)])
        return notebook.fragment(head, [compare_text.table(found)], lists=lists)


class Audited(msgspec.Struct, _Shown, frozen=True):
    """What contradicts itself: findings in a table, or relations within runs."""

    cells: int
    findings: tuple[Finding, ...]
    runs: tuple[Audit, ...]

    @property
    def holds(self) -> bool:
        """Whether everything can be as it stands; what is only to be known does not count."""
        from servecap.matrix.check import WRONG

        wrong = any(finding.kind in WRONG for finding in self.findings)
        return not wrong and all(audit.holds for audit in self.runs)

    def __str__(self) -> str:
        from servecap.cli import audit as cli_audit

        if self.runs:
            return cli_audit.runs_text(self.runs)
        return cli_audit.table_text(self.cells, list(self.findings))


class Reported(msgspec.Struct, frozen=True):
    """A page, and where it and the charts were written; in a notebook it is shown as it is."""

    page: str
    html: Path | None
    charts: tuple[Path, ...]

    def __str__(self) -> str:
        written = [path for path in (self.html, *self.charts) if path is not None]
        return "\n".join(f"written: {path}" for path in written) or "nothing was written"

    def _repr_html_(self) -> str:
        from servecap.report import notebook

        return notebook.framed(self.page)

"""One self-contained HTML page: works offline, light and dark, on paper and on a phone.

The page says what the text report says, from the same tables, and adds the charts. It asks for
nothing from anywhere and runs no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from servecap import __version__
from servecap.cell import Cell
from servecap.compare import Comparison
from servecap.gate import GateCheck
from servecap.metrics import Summary
from servecap.plan.answer import Plan
from servecap.report import (
    canvas,
    chart_capacity,
    chart_compare,
    charts,
    compare_text,
    facts,
    language,
    overview,
    plan_text,
    rate_text,
    search_text,
    units,
    words,
)
from servecap.report.canvas import Chart
from servecap.report.method import METHOD
from servecap.report.overview import Runs
from servecap.report.table import Table
from servecap.run import Run
from servecap.search import SearchResult
from servecap.search.rate import RateResult

MOST_RUNS_DRAWN = 4  # charts of more runs would make the page slow and large
MOST_CHART_BYTES = 1_500_000  # of a page of 2 MB


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A chart as the page shows it: once for wide and once for narrow screens, or small."""

    chart: Chart
    wide: Markup
    narrow: Markup | None


class RunPart(msgspec.Struct, frozen=True, kw_only=True):
    """What the page says of one run."""

    name: str
    title: str
    head: words.Headline
    figures: list[overview.Figure]
    slo: Table
    latency: Table
    others: list[Table]
    warnings: list[str]
    pictures: list[Picture]
    drawn: bool
    command: str  # empty where it is not known
    repeat: str


class Compared(msgspec.Struct, frozen=True):
    """One comparison, its gates, and the two runs where it is one of runs."""

    found: Comparison
    gates: Sequence[GateCheck] = ()
    pair: chart_compare.Pair | None = None


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the report that is about more than one run."""

    name: str
    title: str
    tables: list[Table]
    pictures: list[Picture]
    lists: list[tuple[str, list[str]]]  # heading and items


def write_html(
    path: str | Path,
    *,
    runs: Runs = (),
    search: SearchResult | RateResult | None = None,
    cells: Sequence[Cell] | None = None,
    plan: Plan | None = None,
    compared: Sequence[Compared] = (),
    title: str = "servecap report",
    lang: str = "en",
) -> None:
    """The report of all that is given, as one HTML file at *path*.

    Raises:
        UsageError: nothing is given, or there are no texts in that language.
        OSError: the file cannot be written.
    """
    page = render(
        runs=runs, search=search, cells=cells, plan=plan, compared=compared, title=title, lang=lang
    )
    Path(path).write_text(page, encoding="utf-8")


def render(
    *,
    runs: Runs = (),
    search: SearchResult | RateResult | None = None,
    cells: Sequence[Cell] | None = None,
    plan: Plan | None = None,
    compared: Sequence[Compared] = (),
    title: str = "servecap report",
    lang: str = "en",
) -> str:
    """The page's text. The same input always gives the same text.

    Args:
        lang: "en" or "zh".
    Raises:
        UsageError: nothing is given, or there are no texts in that language.
    """
    language.check(lang)
    if compared:
        head = compare_text.page_headline([(x.found, x.gates) for x in compared])
    else:
        head = overview.headline(runs, search, cells, plan)
    sections = [
        *(_compared_section(x, f"compare{i}", lang) for i, x in enumerate(compared, start=1)),
        *([_plan_section(plan, lang)] if plan is not None else []),
        *([_search_section(search, lang)] if search is not None else []),
        *([_matrix_section(cells, lang)] if cells else []),
    ]
    environment = Environment(
        loader=PackageLoader("servecap.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["_"] = lambda text: language.say(text, lang)
    environment.globals["in_language"] = lambda table: language.table(table, lang)
    return environment.get_template("report.html.j2").render(
        html_lang={"zh": "zh-Hans"}.get(lang, lang),
        title=units.clean(title, 120),
        head=head,
        sections=sections,
        parts=_run_parts(runs, lang),
        runs_table=overview.runs_table(runs) if len(runs) > 1 else None,
        light=canvas.LIGHT,
        dark=canvas.DARK,
        version=__version__,
        method=METHOD,
    )


def _compared_section(told: Compared, name: str, lang: str) -> Section:
    found = told.found
    changes = chart_compare.change_chart(found, name)
    drawn = [] if changes is None else [changes]
    tables = [msgspec.structs.replace(compare_text.table(found), title="Figures")]
    if told.pair is not None:
        drawn += chart_compare.latency_charts(told.pair, name)
        tables.append(overview.runs_table(told.pair))
    return Section(
        name=name,
        title=compare_text.title(found),
        tables=tables,
        pictures=[picture(chart, lang) for chart in drawn],
        lists=units.clean_lists(compare_text.lists_of(found, told.gates)),
    )


def _plan_section(plan: Plan, lang: str) -> Section:
    return Section(
        name="plan",
        title=f"Plan for {units.clean(plan.demand.text)}",
        tables=plan_text.tables(plan),
        pictures=[picture(chart, lang) for chart in chart_capacity.plan_charts(plan.models)],
        lists=plan_text.lists_of(plan),
    )


def _search_section(search: SearchResult | RateResult, lang: str) -> Section:
    chart = chart_capacity.search_chart(search)
    return Section(
        name="capacity",  # not "search": that is its chart
        title="Search for the capacity",
        tables=[
            rate_text.level_table(search)
            if isinstance(search, RateResult)
            else search_text.level_table(search)
        ],
        pictures=[picture(chart, lang)] if chart else [],
        lists=[],
    )


def _matrix_section(cells: Sequence[Cell], lang: str) -> Section:
    return Section(
        name="matrix",
        title="Performance matrix",
        tables=[overview.matrix_table(cells)],
        pictures=[picture(chart, lang) for chart in chart_capacity.matrix_charts(cells)],
        lists=[],
    )


def _run_parts(runs: Runs, lang: str) -> list[RunPart]:
    budget = MOST_CHART_BYTES
    parts = []
    titles = overview.run_titles(runs)
    for i, (run, summary) in enumerate(runs):
        name = f"run{i + 1}"
        drawn = i < MOST_RUNS_DRAWN and budget > 0
        told = charts.run_charts(run, summary, name) if drawn else []
        pictures = [picture(chart, lang) for chart in told]
        budget -= sum(len(p.wide) + len(p.narrow or "") for p in pictures)
        parts.append(_run_part(name, titles[i], run, summary, pictures, drawn=drawn))
    return parts


def _run_part(
    name: str, title: str, run: Run, summary: Summary, pictures: list[Picture], *, drawn: bool
) -> RunPart:
    slo, latency, *others = facts.tables(run, summary)
    return RunPart(
        name=name,
        title=title,
        head=words.headline(run, summary),
        figures=overview.key_figures(run, summary),
        slo=slo,
        latency=latency,
        others=others,
        warnings=facts.warnings(run, summary),
        pictures=pictures,
        drawn=drawn,
        command=units.clean(run.header.command, 10_000),
        repeat=facts.repeat_json(run),
    )


def picture(chart: Chart, lang: str = "en") -> Picture:
    """The chart drawn for the page."""
    if chart.small:
        return Picture(
            chart=chart, wide=Markup(canvas.svg(chart, canvas.SMALL_PX, lang)), narrow=None
        )
    return Picture(
        chart=chart,
        wide=Markup(canvas.svg(chart, canvas.WIDE_PX, lang)),
        narrow=Markup(canvas.svg(chart, canvas.NARROW_PX, lang)),
    )

"""What stands at the top of a report: the answer, and the search, matrix and plan behind it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from servecap.cell import Capacity, Cell
from servecap.errors import UsageError
from servecap.metrics import Summary
from servecap.plan.answer import Plan
from servecap.plan.sizing import gpu_label
from servecap.report import plan_text, rate_text, search_text, units, words
from servecap.report.table import Column, Table, text_column
from servecap.report.words import Headline
from servecap.run import Run
from servecap.search import Level, SearchResult
from servecap.search.machine import CHANGED
from servecap.search.rate import RateLevel, RateResult
from servecap.search.rate_machine import CONTRADICTED

Runs = Sequence[tuple[Run, Summary]]


class Figure(msgspec.Struct, frozen=True):
    """One number that a reader looks for first."""

    label: str
    value: str
    note: str = ""


def headline(
    runs: Runs,
    search: SearchResult | RateResult | None,
    cells: Sequence[Cell] | None,
    plan: Plan | None,
) -> Headline:
    """The one answer of the whole report: the plan's, else the search's, the matrix's, the run's.

    Raises:
        UsageError: there is nothing to report.
    """
    if plan is not None:
        return plan_headline(plan)
    if search is not None:
        if isinstance(search, RateResult):
            return rate_headline(search, runs)
        return search_headline(search, runs)
    if cells:
        return matrix_headline(cells)
    if len(runs) == 1:
        return words.headline(*runs[0])
    if runs:
        return _runs_headline(runs)
    raise UsageError("nothing to report: give at least one run, search, matrix or plan")


def plan_headline(plan: Plan) -> Headline:
    """What to buy, a sentence for each model."""
    answers = [units.clean(plan_text.headline(model), 400) for model in plan.models]
    if plan.fleet is not None:
        answers = [units.clean(plan_text.fleet_headline(plan.fleet), 400)]
    plain = f"To carry {units.clean(plan.demand.text)}:"
    if len(answers) == 1:
        plain = f"{plain} {answers[0]}."
    elif not answers:
        plain = f"No plan for {units.clean(plan.demand.text)} can be made from the cells given."
    slo = _spaced(units.clean(plan.slo))
    return Headline(
        badge="PLAN",
        tone="neutral",
        plain=plain,
        quote=f"Scenario {units.clean(plan.scenario, 80)}, SLO {slo}.",
        todo=tuple(answers) if len(answers) > 1 else (),
    )


def _spaced(text: str) -> str:
    """With a blank behind each limit of an SLO, so that a narrow screen breaks the line there."""
    return re.sub(r",(?=[a-z])", ", ", text)


def search_headline(search: SearchResult, runs: Runs = ()) -> Headline:
    """The capacity in words."""
    capacity = search.capacity
    users = units.number_word(capacity.users, "user")
    changed = (search.unsure or "").startswith(CHANGED)
    if changed:
        plain = "The server changed while it was searched: its capacity is not sure."
    elif capacity.users_high == 0:
        plain = "The service did not serve even one user within its targets."
    elif capacity.users == 0:
        plain = "How many users the service carries within its targets is not known yet."
    elif capacity.users_high is None:
        plain = f"The service carries at least {users} within its targets; its limit was not found."
    else:
        plain = f"The service carries {users} at the same time within its targets."
    if any(run.header.source == "simulated" for run, _ in runs):
        plain = f"{plain} {words.SIMULATED}"
    held = search.at_capacity
    figures = "" if held is None else f"At {held.users:,} users: {_means(held.summary)}. "
    unsure = changed or (capacity.users == 0 and capacity.users_high != 0)
    least = "" if capacity.users_high is not None else "AT LEAST "
    return Headline(
        badge="UNSURE" if unsure else f"CAPACITY {least}{capacity.users:,}",
        tone="unsure" if unsure else "fail" if capacity.users == 0 else "pass",
        plain=plain,
        quote=_spaced(units.clean(search_text.headline(search))),
        todo=(figures + units.clean(search_text.meaning(search), 1000),),
    )


def rate_headline(result: RateResult, runs: Runs = ()) -> Headline:
    """The capacity in requests/s, in words."""
    changed = (result.unsure or "").startswith((CHANGED, CONTRADICTED))
    plain = rate_text.plain(result)
    if changed:
        plain = "The server changed while it was searched: its capacity is not sure."
    if any(run.header.source == "simulated" for run, _ in runs):
        plain = f"{plain} {words.SIMULATED}"
    held, named = result.at_capacity, rate_text.rate(result.capacity.rate_rps)
    figures = "" if held is None else f"At {named} requests/s: {_means(held.summary)}. "
    nothing = result.capacity.rate_rps == 0
    unsure = changed or (nothing and result.capacity.rate_high_rps != 0)
    least = "" if result.capacity.rate_high_rps is not None else "AT LEAST "
    return Headline(
        badge="UNSURE" if unsure else f"CAPACITY {least}{named}/s",
        tone="unsure" if unsure else "fail" if nothing else "pass",
        plain=plain,
        quote=_spaced(units.clean(rate_text.headline(result))),
        todo=(figures + units.clean(rate_text.meaning(result), 1200),),
    )


def _means(summary: Summary) -> str:
    told = [
        f"mean {units.SHORT[metric]} {units.seconds(summary.client[metric].mean)}"
        for metric in ("ttft", "tpot")
        if metric in summary.client
    ]
    told.append(f"{units.count(summary.qps)} QPS")
    told.append(f"{units.count(summary.output_tps)} output TPS")
    return ", ".join(told)


def matrix_headline(cells: Sequence[Cell]) -> Headline:
    """How much of the matrix is known, and how."""
    known = [c for c in cells if c.capacity is not None]
    predicted = sum(c.origin == "predicted" for c in known)
    kinds = f"{len(known) - predicted} measured, {predicted} predicted" if predicted else "measured"
    plain = (
        f"The capacity of {len(known)} of {units.number_word(len(cells), 'configuration')} is known"
    )
    best = max(known, key=lambda c: c.capacity.users if c.capacity else 0, default=None)
    quote = ""
    if best is not None and best.capacity is not None:
        quote = (
            f"Most users by one instance: {best.capacity.users:,}, {units.clean(best.model, 60)} on"
            f" {best.tp} x {units.clean(gpu_label(best), 60)} ({units.clean(best.scenario, 60)})."
        )
    return Headline(badge="MATRIX", tone="neutral", plain=f"{plain} ({kinds}).", quote=quote)


def _runs_headline(runs: Runs) -> Headline:
    counts: dict[str, int] = {}
    for _, summary in runs:
        said = summary.verdict.value.upper() if summary.valid else "INVALID"
        counts[said] = counts.get(said, 0) + 1
    told = units.listed([f"{n} {said}" for said, n in sorted(counts.items())])
    return Headline(
        badge=f"{len(runs)} RUNS", tone="neutral", plain=f"{len(runs)} runs: {told}.", quote=""
    )


def key_figures(run: Run, summary: Summary) -> list[Figure]:
    """The numbers that are looked for first. INVALID runs have none: nothing may be quoted."""
    if not summary.valid:
        return []
    load = (
        Figure("Users", f"{summary.users:,}", f"{units.count(summary.in_flight_mean)} in flight")
        if summary.users is not None
        else Figure(f"{summary.rate_of.capitalize()}/s asked", units.count(summary.rate_rps))
    )
    latencies = []
    for metric in ("ttft", "tpot", "e2e"):
        told = words.distribution(run, summary, metric)
        if told is not None:
            limit = run.scenario.slo.limit(metric)
            note = (
                f"limit {units.bound(limit.at_most_s)}"
                if limit
                else f"p99 {units.seconds(told.p99)}"
            )
            latencies.append(Figure(f"{units.SHORT[metric]}, mean", units.seconds(told.mean), note))
    return [
        load,
        *latencies,
        Figure("QPS", units.count(summary.qps), "requests/s"),
        Figure("TPS", units.count(summary.output_tps), "output tokens/s"),
        Figure(
            "Errors",
            units.share(summary.error_rate),
            f"limit {units.share(run.scenario.slo.error_share_max)}",
        ),
    ]


def run_titles(runs: Runs) -> list[str]:
    """What each run is called: target and load, with the folder where several are alike."""
    plain = [f"{words.target_name(r)} at {words.load_phrase(r.scenario.load)}" for r, _ in runs]
    return [
        f"{title}, {units.clean(Path(run.path).name, 60)}"
        if plain.count(title) > 1 and run.path
        else title
        for (run, _), title in zip(runs, plain, strict=True)
    ]


def runs_table(runs: Runs) -> Table:
    """The runs side by side."""
    rows = []
    for (_, summary), title in zip(runs, run_titles(runs), strict=True):
        said = summary.verdict.value.upper() if summary.valid else "INVALID"
        rows.append(
            (
                title,
                said,
                *_level_figures(summary),
            )
        )
    return Table(
        title="",
        columns=(text_column("run"), text_column("verdict"), *_LEVEL_COLUMNS),
        rows=tuple(rows),
    )


_LEVEL_COLUMNS = tuple(
    map(Column, ("TTFT mean", "TTFT p99", "TPOT mean", "TPOT p99", "QPS", "TPS", "errors"))
)


def _level_figures(summary: Summary) -> tuple[str, ...]:
    told: list[str] = []
    for metric in ("ttft", "tpot"):
        distribution = summary.client.get(metric)
        unit = units.time_unit(distribution.mean if distribution else None)
        told.append(unit.text(distribution.mean if distribution else None))
        told.append(unit.text(distribution.p99 if distribution else None))
    return (
        *told,
        units.count(summary.qps),
        units.count(summary.output_tps),
        units.share(summary.error_rate) if summary.requests else units.UNKNOWN,
    )


def said(level: Level | RateLevel) -> str:
    """The level's verdict in capitals; INVALID where it cannot be believed."""
    return level.verdict.value.upper() if level.valid else "INVALID"


def tone(level: Level | RateLevel) -> str:
    """The verdict's tone: "pass", "fail", "unsure" or "invalid"."""
    return level.verdict.value if level.valid else "invalid"


def matrix_table(cells: Sequence[Cell]) -> Table:
    """Every cell with its figures at capacity; what is unknown is "n/a"."""
    about: dict[str, list[str]] = {}
    for cell in cells:
        name = f"{cell.model} on {cell.tp} x {gpu_label(cell)} ({cell.scenario})"
        for reason in (*([cell.invalid_reason] if cell.invalid_reason else []), *cell.notes):
            about.setdefault(units.clean(reason, 400), []).append(units.clean(name, 120))
    notes = [
        f"{units.listed(names)}: {note}" if len(names) <= 3 else f"{len(names)} cells: {note}"
        for note, names in about.items()
    ]
    names = ("TP", "users", "TTFT", "TPOT", "errors", "QPS", "output TPS")
    return Table(
        title="Cells at their capacity, for one instance",
        columns=(
            *map(text_column, ("model", "GPU")),
            *map(Column, names),
            *map(text_column, ("scenario", "source")),
        ),
        rows=tuple(_cell_row(cell) for cell in cells),
        notes=tuple(notes),
    )


def _users(capacity: Capacity | None) -> str:
    """The users; of a prediction with the interval in which they may lie."""
    if capacity is None:
        return units.UNKNOWN
    if capacity.users_low is None:
        return f"{capacity.users:,}"
    high = "?" if capacity.users_high is None else f"{capacity.users_high:,}"
    return f"{capacity.users:,} ({capacity.users_low:,} to {high})"


def _cell_row(cell: Cell) -> tuple[str, ...]:
    return (
        units.clean(cell.model, 40),
        units.clean(gpu_label(cell), 30),
        str(cell.tp),
        _users(cell.capacity),
        units.seconds(cell.ttft_s),
        units.seconds(cell.tpot_s),
        units.share(cell.error_rate),
        units.count(cell.requests_per_s),
        units.count(cell.output_tokens_per_s),
        units.clean(cell.scenario, 30),
        cell.origin,
    )

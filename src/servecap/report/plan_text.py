"""A plan as plain text: the answer first, then the splits, the reasons and what is not known."""

from __future__ import annotations

from collections.abc import Sequence

from servecap.plan.answer import Check, Costs, Fleet, GpuPlan, ModelPlan, Outlook, Plan, Split
from servecap.report import units
from servecap.report.table import Column, Table, lines, paragraph, text_column

_MOST = 4000  # characters of one item: names from files may be long, but not without end


def plan_text(plan: Plan) -> str:
    """The whole plan as plain text of at most 100 columns, ending in a newline."""
    out = paragraph(
        f"To carry {units.clean(plan.demand.text)} (scenario {units.clean(plan.scenario)}, "
        f"SLO {plan.slo}):"
    )
    if plan.fleet is not None:
        out += _bullet(fleet_headline(plan.fleet))
        if len(plan.models) > 1:
            out += ["Each model on nodes of its own:"]
    for model in plan.models:
        out += _bullet(headline(model))
    for check in plan.checks:
        out += _bullet(check_line(check))
    for model in plan.models:
        out += ["", *_model(model)]
    out += _checks(plan.checks)
    if plan.outlook is not None:
        out += _outlook(plan.outlook)
    if plan.left_out:
        out += ["", "Cells of other scenarios, not used"]
        for cell in plan.left_out:
            out += _bullet(f"{cell.cell}: {cell.reason}")
    if plan.caveats:
        out += ["", "What this plan does not know"]
        for caveat in plan.caveats:
            out += _bullet(caveat)
    return "\n".join(out) + "\n"


def headline(model: ModelPlan) -> str:
    """The model's first choice in one sentence, or why there is none."""
    if not model.gpus:
        return f"{model.model}: no plan, every cell is left out (see below)"
    first = model.gpus[0]
    best = first.best
    if best.missing_nodes:
        return _short(model)
    cost = "" if best.usd_per_h is None else f", {best.usd_per_h:.2f} USD/h"
    among = f"of {len(model.gpus)} GPU types " if len(model.gpus) > 1 else ""
    failed = any("fails its own simulation" in text for text in model.why)
    by = f", {among}the {_ranked(model)}" if among and not failed else ""
    predicted = f" (predicted{_nodes_range(best)})" if best.origin == "predicted" else ""
    return (
        f"{model.model}: {_nodes(best.nodes)} of {first.gpus_per_node} x {first.gpu}, each split "
        f"into {best.name} for {best.users_per_node} users{predicted}; {best.gpus} GPUs{cost}{by}"
    )


def _nodes_range(split: Split) -> str:
    """How far the nodes may be off, where the prediction says so."""
    if split.nodes_range is None or split.confidence is None:
        return ""
    low, high = split.nodes_range
    return f", {split.confidence:.0%} interval {low} to {high} nodes"


def _short(model: ModelPlan) -> str:
    """No single GPU type is enough: the mixed fleet, or that there is none."""
    if model.fleet is not None:
        return f"{model.model}: no GPU type alone has enough nodes; {fleet_headline(model.fleet)}"
    first = model.gpus[0]
    return (
        f"{model.model}: no plan, too few nodes can be had; {first.gpu} alone would need "
        f"{first.best.missing_nodes} more, and all types together are not enough either"
    )


def fleet_headline(fleet: Fleet) -> str:
    """The fleet in one sentence."""
    parts = "; ".join(
        f"{_nodes(part.nodes)} of {part.gpus_per_node} x {part.gpu} as {part.split_text}"
        + (" (predicted)" if part.predicted else "")
        for part in fleet.parts
    )
    cost = "" if fleet.usd_per_h is None else f", {fleet.usd_per_h:.2f} USD/h"
    proof = "the proven optimum" if not fleet.gap_share else f"within {fleet.gap_share:.1%}"
    apart = ""
    if fleet.apart is not None:
        unit = "USD/h" if fleet.ranked_by == "usd_per_h" else "GPUs"
        apart = f"; the best single types take {fleet.apart:.6g} {unit}"
    return f"fleet of {fleet.gpus} GPUs{cost} ({proof}{apart}): {parts}"


def tables(plan: Plan) -> list[Table]:
    """One table a model: every GPU type with every usable split, best first."""
    return [_table(model) for model in plan.models]


def lists_of(plan: Plan) -> list[tuple[str, list[str]]]:
    """What stands beside the tables on a page: heading and items of each part that is not empty."""
    models = [
        (f"{model.model}: why", [
            *(f"{sentence}." for sentence in model.why),
            *(f"{sentence}." for sentence in beside(model)),
            *(f"{gpu.gpu}: {'. '.join(gpu.reasons)}." for gpu in model.gpus if gpu.reasons),
            *(f"{gpu.gpu}, mind: {warning}." for gpu in model.gpus for warning in gpu.warnings),
        ])
        for model in plan.models
    ]  # fmt: skip
    checks = [
        (f"Simulation of {check.choice}", [
            f"{check_line(check)}.", f"{check.simulated}, {check.requests} requests", *check.told,
        ])
        for check in plan.checks
    ]  # fmt: skip
    outlook = [] if plan.outlook is None else outlook_lists(plan.outlook)
    left_out = [
        (f"{model.model}: left out", [f"{x.cell}: {x.reason}" for x in model.left_out])
        for model in plan.models
    ]
    other = ("Cells of other scenarios, not used", [f"{x.cell}: {x.reason}" for x in plan.left_out])
    caveats = ("What this plan does not know", list(plan.caveats))
    return units.clean_lists([*checks, *models, *outlook, *left_out, other, caveats])


def _ranked(model: ModelPlan) -> str:
    return "lowest cost" if model.ranked_by == "usd_per_h" else "fewest GPUs"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _table(model: ModelPlan) -> Table:
    priced = any(gpu.best.usd_per_h is not None for gpu in model.gpus)
    columns = [
        text_column("GPU"), text_column("split"), Column("users/node"), Column("nodes"),
        Column("GPUs"), Column("TTFT"), Column("TPOT"), Column("errors"), text_column("source"),
    ]  # fmt: skip
    if priced:
        columns.insert(5, Column("USD/h"))
    rows = [
        _row(gpu, split, index, priced) for gpu in model.gpus
        for index, split in enumerate(gpu.splits)
    ]  # fmt: skip
    order = "by cost" if model.ranked_by == "usd_per_h" else "by GPUs"
    return Table(
        title=f"{units.clean(model.model)}: GPU types {order}, splits of a node by users",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(_legend(rows),),
    )


def _legend(rows: list[tuple[str, ...]]) -> str:
    tie = any(row[1].startswith("=") for row in rows)
    return "* the best split" + ("; = carries as many users a node" if tie else "")


def _row(gpu: GpuPlan, split: Split, index: int, priced: bool) -> tuple[str, ...]:
    tie = index > 0 and split.users_per_node == gpu.best.users_per_node
    mark = "*" if index == 0 else "=" if tie else " "
    memory_and_link = units.clean(gpu.gpu + (f" {gpu.interconnect}" if gpu.interconnect else ""))
    row = [
        memory_and_link if index == 0 else "",
        f"{mark} {split.name}",
        str(split.users_per_node),
        str(split.nodes),
        str(split.gpus),
        "n/a" if split.ttft_s is None else f"{split.ttft_s:.4g} s",
        "n/a" if split.tpot_s is None else f"{split.tpot_s * 1e3:.4g} ms",
        "n/a" if split.error_rate is None else f"{split.error_rate:.1%}",
        split.origin,
    ]
    if priced:
        row.insert(5, "n/a" if split.usd_per_h is None else f"{split.usd_per_h:.2f}")
    return tuple(row)


def _model(model: ModelPlan) -> list[str]:
    out = lines(_table(model)) if model.gpus else [units.clean(model.model)]
    if model.gpus:
        if model.why:
            out += _bullet(f"{'. '.join(model.why)}.")
        for sentence in beside(model):
            out += _bullet(f"{sentence}.")
        out.append("  Why")
        for gpu in model.gpus:
            out += _bullet(f"{gpu.gpu}: {'. '.join(gpu.reasons)}.")
            for warning in gpu.warnings:
                out += _bullet(f"{gpu.gpu}, mind: {warning}.")
    notes = _notes(model)
    if notes:
        out.append("  Notes on the cells of the best splits")
        for note in notes:
            out += _bullet(note)
    if model.left_out:
        out.append("  Left out")
        for cell in model.left_out:
            carry = ""
            if cell.users_per_node:
                carry = f" (a node of it would carry {cell.users_per_node} users)"
            out += _bullet(f"{cell.cell}: {cell.reason}{carry}")
    return out


def check_line(check: Check) -> str:
    """The verdict of one simulation in one sentence."""
    match check.verdict:
        case "pass":
            return f"simulated, {check.choice} keeps the SLO"
        case "fail":
            return (
                f"FAILS ITS OWN SIMULATION: {check.choice}: {'; '.join(check.broken)}; it is not "
                "recommended"
            )
        case "unknown":
            return f"not verified: {check.choice} cannot be simulated well enough (see below)"


def _checks(checks: Sequence[Check]) -> list[str]:
    out: list[str] = []
    for check in checks:
        out += ["", f"Simulation: {units.clean(check.choice)}, {check.verdict}"]
        for item in (f"{check.simulated}, {check.requests} requests", *check.told, *check.broken):
            out += _bullet(item)
    return out


def beside(model: ModelPlan) -> list[str]:
    """A mixed fleet that would be better, and what the choice costs, where that is known."""
    if not model.gpus or model.gpus[0].best.missing_nodes:
        return []
    first, best = model.gpus[0], model.gpus[0].best
    found = [] if model.fleet is None else [f"Mixed, {fleet_headline(model.fleet)}"]
    if best.costs is not None:
        found.append(f"{first.gpu} as {best.name}: {costs_text(best.costs)}")
    return found


def costs_text(costs: Costs) -> str:
    """The money by month, year, user and million tokens."""
    user = costs.usd_per_user_month
    each = "" if user is None else f", {user:.4g} USD a user and month"
    of = (
        (costs.usd_per_million_output_tokens, "million output tokens"),
        (costs.usd_per_million_total_tokens, "million tokens of prompts and answers"),
    )
    known = ", ".join(f"{usd:.4g} USD per {what}" for usd, what in of if usd is not None)
    tokens = f", {known}" if known else "; the cell tells no tokens/s, so nothing is said per token"
    return (
        f"{costs.usd_per_h:.2f} USD/h, {costs.usd_per_month:,.0f} a month (730 h), "
        f"{costs.usd_per_year:,.0f} a year{each}{tokens}"
    )


def outlook_lists(outlook: Outlook) -> list[tuple[str, list[str]]]:
    """Title and items of each part of the outlook that says something."""
    what_if = [f"{w.change}: {w.model}: {w.answer}" for w in outlook.what_if]
    found = [
        ("What if", what_if),
        ("Break-even", list(outlook.break_even)),
        ("Worth measuring, for it changes the answer", list(outlook.worth_measuring)),
    ]
    return [(title, items) for title, items in found if items]


def _outlook(outlook: Outlook) -> list[str]:
    out: list[str] = []
    for title, items in outlook_lists(outlook):
        out += ["", title]
        for item in items:
            out += _bullet(item)
    return out


def _notes(model: ModelPlan) -> list[str]:
    """Each note once, with the GPU types that it is about."""
    about: dict[str, list[str]] = {}
    for gpu in model.gpus:
        for note in gpu.best.notes:
            about.setdefault(note, []).append(gpu.gpu)
    return [f"{', '.join(gpus)}: {note}" for note, gpus in about.items()]


def _bullet(text: str) -> list[str]:
    first, *rest = paragraph(units.clean(text, _MOST), indent="    ")
    return ["  - " + first[4:], *rest]

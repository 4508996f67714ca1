"""A matrix or a plan as a table for other programs: Excel, Parquet, CSV, JSON or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from servecap.cell import Cell
from servecap.errors import UsageError
from servecap.matrix import files
from servecap.matrix.compare import conclusions
from servecap.matrix.table import describe
from servecap.plan.answer import Fleet, GpuPlan, ModelPlan, Plan, Split
from servecap.report import plan_text
from servecap.report.parquet import library
from servecap.report.sheets import Sheet, Value, write_xlsx
from servecap.report.units import clean

MATRIX_ENDINGS = (".xlsx", ".parquet", ".csv", ".json", ".md")
PLAN_ENDINGS = (".xlsx", ".parquet")
_LEGEND = "coloured rows are predicted, not measured"


class Column(msgspec.Struct, frozen=True):
    """One column: its head for people, its name for programs, its type, how it is read."""

    head: str
    name: str
    kind: str  # text, number, whole
    read: Callable[[Any], Value]


def _capacity(name: str) -> Callable[[Cell], Value]:
    return lambda cell: None if cell.capacity is None else getattr(cell.capacity, name)


def _own(name: str) -> Callable[[Any], Value]:
    def read(thing: Any) -> Value:
        value: Value = getattr(thing, name)
        return value

    return read


CELL_COLUMNS: tuple[Column, ...] = (
    Column("model", "model", "text", _own("model")),
    Column("GPU", "gpu", "text", _own("gpu")),
    Column("GPU memory, GB", "gpu_memory_gb", "number", _own("gpu_memory_gb")),
    Column("interconnect", "interconnect", "text", _own("interconnect")),
    Column("TP", "tp", "whole", _own("tp")),
    Column("scenario", "scenario", "text", _own("scenario")),
    Column("measured or predicted", "origin", "text", _own("origin")),
    Column("context, tokens", "avg_context_tokens", "number", _own("avg_context_tokens")),
    Column("output, tokens", "avg_output_tokens", "number", _own("avg_output_tokens")),
    Column("users", "max_users", "whole", _capacity("users")),
    Column("users, low end", "users_low", "whole", _capacity("users_low")),
    Column("users, high end", "users_high", "whole", _capacity("users_high")),
    Column("confidence, share", "confidence", "number", _capacity("confidence")),
    Column("TTFT mean, s", "ttft_s", "number", _own("ttft_s")),
    Column("TPOT mean, s", "tpot_s", "number", _own("tpot_s")),
    Column("QPS, requests/s", "requests_per_s", "number", _own("requests_per_s")),
    Column("output TPS, tokens/s", "output_tokens_per_s", "number", _own("output_tokens_per_s")),
    Column("total TPS, tokens/s", "total_tokens_per_s", "number", _own("total_tokens_per_s")),
    Column("error rate, share", "error_rate", "number", _own("error_rate")),
    Column("limited by", "limited_by", "text", _capacity("limited_by")),
    Column("SLO", "slo", "text", _own("slo")),
    Column("not valid because", "invalid_reason", "text", _own("invalid_reason")),
    Column("provenance", "provenance", "text", _own("provenance")),
    Column("notes", "note", "text", lambda cell: " | ".join(cell.notes) or None),
)


class Choice(msgspec.Struct, frozen=True):
    """A split of one GPU type's nodes, as a row of a plan; `rank` 1 is what the plan says."""

    model: ModelPlan
    gpu: GpuPlan
    split: Split
    rank: int


def _of(part: str, name: str) -> Callable[[Choice], Value]:
    def read(choice: Choice) -> Value:
        value: Value = getattr(getattr(choice, part), name)
        return value

    return read


CHOICE_COLUMNS: tuple[Column, ...] = (
    Column("model", "model", "text", _of("model", "model")),
    Column("rank", "rank", "whole", _own("rank")),
    Column("GPU", "gpu", "text", _of("gpu", "gpu")),
    Column("interconnect", "interconnect", "text", _of("gpu", "interconnect")),
    Column("GPUs a node", "gpus_per_node", "whole", _of("gpu", "gpus_per_node")),
    Column("split of a node", "split", "text", _of("split", "name")),
    Column("TP", "tp", "whole", _of("split", "tp")),
    Column("instances a node", "instances", "whole", _of("split", "instances")),
    Column("measured or predicted", "origin", "text", _of("split", "origin")),
    Column("users an instance", "users_per_instance", "whole", _of("split", "users_per_instance")),
    Column("users a node", "users_per_node", "whole", _of("split", "users_per_node")),
    Column("nodes", "nodes", "whole", _of("split", "nodes")),
    Column("nodes that cannot be had", "missing_nodes", "whole", _of("split", "missing_nodes")),
    Column("GPUs", "gpus", "whole", _of("split", "gpus")),
    Column("cost, USD/h", "usd_per_h", "number", _of("split", "usd_per_h")),
    Column("TTFT mean at capacity, s", "ttft_s", "number", _of("split", "ttft_s")),
    Column("TPOT mean at capacity, s", "tpot_s", "number", _of("split", "tpot_s")),
    Column("error rate, share", "error_rate", "number", _of("split", "error_rate")),
    Column("nearest limit", "nearest_limit", "text", _of("split", "nearest_limit")),
    Column("used of it, share", "nearest_share", "number", _of("split", "nearest_share")),
    Column("provenance", "provenance", "text", _of("split", "provenance")),
)


def write_matrix(path: Path, cells: Sequence[Cell]) -> None:
    """The cells in the format that the name ends with.

    Raises:
        UsageError: another ending, a library that is not installed, or an unwritable file.
    """
    match _ending(path, MATRIX_ENDINGS):
        case ".xlsx":
            _excel(path, matrix_sheets(cells))
        case ".parquet":
            _parquet(path, CELL_COLUMNS, cells)
        case _:
            files.write(path, cells)


def write_plan(path: Path, plan: Plan) -> None:
    """The plan as a workbook, or its choices as Parquet.

    Raises:
        UsageError: as `write_matrix`.
    """
    match _ending(path, PLAN_ENDINGS):
        case ".xlsx":
            _excel(path, plan_sheets(plan))
        case _:
            _parquet(path, CHOICE_COLUMNS, _choices(plan))


def check_ending(path: str, endings: Sequence[str]) -> None:
    """Returns if a table can be written under that name.

    Raises:
        UsageError: the ending is not one of *endings*.
    """
    _ending(Path(path), endings)


def _ending(path: Path, endings: Sequence[str]) -> str:
    ending = path.suffix.lower()
    if ending not in endings:
        raise UsageError(f"{path}: end the name of the table in one of {', '.join(endings)}")
    return ending


def matrix_sheets(cells: Sequence[Cell]) -> list[Sheet]:
    """The cells, the scenarios side by side in words, and what is to be known of cells."""
    about: list[Sequence[Value]] = [[_LEGEND, None]]
    for cell in cells:
        where = describe(cell)
        about += [[note, where] for note in (cell.invalid_reason, *cell.notes) if note]
    return [
        _sheet("Cells", CELL_COLUMNS, cells, [c.origin == "predicted" for c in cells]),
        Sheet("Conclusions", ["conclusion"], [[text] for text in conclusions(cells)]),
        Sheet("Caveats", ["what to know", "of which cell"], about),
    ]


def plan_sheets(plan: Plan) -> list[Sheet]:
    """The answer, all choices, the fleets, how firm the answer is, and what is not known."""
    choices = _choices(plan)
    predicted = [choice.split.origin == "predicted" for choice in choices]
    answer = [f"To carry {plan.demand.text}", f"scenario {plan.scenario}", f"SLO {plan.slo}"]
    if plan.fleet is not None:
        answer.append(plan_text.fleet_headline(plan.fleet))
    answer += [plan_text.headline(model) for model in plan.models]
    answer += [plan_text.check_line(check) for check in plan.checks]
    reasons = [[m.model, text] for m in plan.models for text in m.why]
    fleets = [plan.fleet, *(model.fleet for model in plan.models)]
    firm = [] if plan.outlook is None else plan_text.outlook_lists(plan.outlook)
    left = [[cell.cell, cell.reason] for m in plan.models for cell in m.left_out]
    left += [[cell.cell, cell.reason] for cell in plan.left_out]
    told = [
        [c.choice, c.verdict, x] for c in plan.checks for x in (c.simulated, *c.told, *c.broken)
    ]
    sheets = [
        Sheet("Answer", ["answer"], [[text] for text in answer]),
        _sheet("Choices", CHOICE_COLUMNS, choices, predicted),
        Sheet("Reasons", ["model", "reason"], reasons),
        _fleet_sheet([fleet for fleet in fleets if fleet is not None]),
        Sheet("How firm", ["kind", "what"], [[kind, x] for kind, items in firm for x in items]),
        Sheet("Simulation", ["choice", "verdict", "what was seen"], told),
        Sheet("Left out", ["cell", "reason"], left),
        Sheet("Caveats", ["what this plan does not know"], [[x] for x in (_LEGEND, *plan.caveats)]),
    ]
    return [sheet for sheet in sheets if sheet.rows]


def _fleet_sheet(fleets: Sequence[Fleet]) -> Sheet:
    parts = [(fleet, part) for fleet in fleets for part in fleet.parts]
    rows: list[Sequence[Value]] = [
        [", ".join(f.models), p.gpu, p.nodes, p.gpus_per_node, p.split_text, p.usd_per_h,
         "predicted" if p.predicted else "measured"] for f, p in parts
    ]  # fmt: skip
    heads = ("models", "GPU", "nodes", "GPUs a node", "instances of a node", "cost, USD/h",
             "measured or predicted")  # fmt: skip
    marked = frozenset(at for at, (_, part) in enumerate(parts) if part.predicted)
    return Sheet("Mixed fleet", heads, rows, marked)


def _choices(plan: Plan) -> list[Choice]:
    found = []
    for model in plan.models:
        pairs = [(gpu, gpu.best) for gpu in model.gpus]
        pairs += [(gpu, split) for gpu in model.gpus for split in gpu.splits[1:]]
        found += [Choice(model, gpu, split, n) for n, (gpu, split) in enumerate(pairs, start=1)]
    return found


def _sheet(
    name: str, columns: Sequence[Column], things: Sequence[Any], marked: Sequence[bool]
) -> Sheet:
    return Sheet(
        name,
        [column.head for column in columns],
        [[column.read(thing) for column in columns] for thing in things],
        frozenset(at for at, is_marked in enumerate(marked) if is_marked),
    )


def _excel(path: Path, sheets: Sequence[Sheet]) -> None:
    try:
        write_xlsx(path, sheets)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def _parquet(path: Path, columns: Sequence[Column], things: Sequence[Any]) -> None:
    pa, file_format = library("take another format")
    types = {"text": pa.string(), "number": pa.float64(), "whole": pa.int64()}
    arrays = [
        pa.array([_plain(column.read(thing)) for thing in things], types[column.kind])
        for column in columns
    ]
    table = pa.table(arrays, names=[column.name for column in columns])
    try:
        file_format.write_table(table, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def _plain(value: Value) -> Value:
    return clean(value, 32_767) if isinstance(value, str) else value

"""Cells as a CSV table: what a spreadsheet, another tool or our own export holds."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import msgspec

from servecap import slo
from servecap.cell import Capacity, Cell, Origin
from servecap.errors import UsageError
from servecap.matrix.lines import COLUMNS, REQUIRED, Row, rows, text_of
from servecap.matrix.plausible import DEFAULT_THINK_MEAN_S, Load, TokensCounted, usable_rates

NOTE_SEPARATOR = " | "
DEFAULT_SCENARIO = "default"
EXPORTED = tuple(name for name in COLUMNS if name not in ("tokens_per_s", "tokens_counted"))


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """The cells of a file, and what was odd about the file as a whole."""

    cells: tuple[Cell, ...]
    warnings: tuple[str, ...] = ()


def read_csv(
    path: Path, *, think_mean_s: float = DEFAULT_THINK_MEAN_S, loads: bool = False
) -> Table:
    """The cells of a CSV file, each figure checked against its own row.

    Args:
        path: separated by comma, semicolon or tab; UTF-8 (or UTF-16 that says so); columns by name
            (see COLUMNS and SYNONYMS) in any order. Unknown columns are left out with a warning.
        think_mean_s: mean think time of the users in the test behind the table.
        loads: rows need not be capacities: several may be of one place under different loads, and
            max_users may be missing.
    Raises:
        UsageError: the file is no such table; the message names file, line, column and value.
    """
    return parse_csv(text_of(path), name=str(path), think_mean_s=think_mean_s, loads=loads)


def parse_csv(
    text: str, *, name: str, think_mean_s: float = DEFAULT_THINK_MEAN_S, loads: bool = False
) -> Table:
    """The cells in CSV *text*; *name* stands for the file in messages and provenance.

    Raises:
        UsageError: as `read_csv`.
    """
    needed = [column for column in REQUIRED if not loads or column != "max_users"]
    found, ignored = rows(text, name=name, required=needed)
    cells = [_cell(row, think_mean_s) for row in found]
    if not cells:
        raise UsageError(f"{name}: has a header but no cells")
    if not loads:
        _once_each(cells, found)
    warnings = [f"{name}: column {h!r} is not known and was left out" for h in ignored]
    without = [
        row.line
        for cell, row in zip(cells, found, strict=True)
        if cell.requests_per_s is None and row.number("requests_per_s") is not None
    ]
    if without:
        warnings.append(
            f"{name}: the requests/s of {len(without)} of {len(cells)} rows (the first on line "
            f"{without[0]}) contradict their row and were left out; servecap audit says why"
        )
    return Table(cells=tuple(cells), warnings=tuple(warnings))


def _once_each(cells: Iterable[Cell], found: Iterable[Row]) -> None:
    seen: dict[tuple[object, ...], int] = {}
    for cell, row in zip(cells, found, strict=True):
        before = seen.setdefault(place(cell), row.line)
        if before != row.line:
            raise UsageError(
                f"{row.file}, line {row.line}: {describe(cell)} is already on line {before}; "
                "keep one"
            )


def place(cell: Cell) -> tuple[object, ...]:
    """What makes two cells the same place of the matrix, whatever their figures."""
    return (
        cell.model.casefold(), cell.gpu.casefold(), cell.gpu_memory_gb,
        (cell.interconnect or "").casefold(), cell.tp, cell.scenario, cell.origin,
    )  # fmt: skip


def describe(cell: Cell) -> str:
    """The cell's place in words: "llama-13b on A30, TP4, chat"."""
    return f"{cell.model} on {cell.gpu}, TP{cell.tp}, {cell.scenario}"


def _cell(row: Row, think_mean_s: float) -> Cell:
    users, tp = row.count("max_users"), row.count("tp")
    if tp is None:
        raise row.error("tp", "is no value; fill it in")
    notes = (row.text("note") or "").split(NOTE_SEPARATOR)
    figures: dict[str, Any] = {
        name: row.number(name)
        for name in ("gpu_memory_gb", "avg_context_tokens", "avg_output_tokens", "error_rate",
                     "ttft_s", "tpot_s")
    }  # fmt: skip
    rates = usable_rates(
        Load(
            users=users or 0,
            ttft_s=figures["ttft_s"],
            tpot_s=figures["tpot_s"],
            context_tokens=figures["avg_context_tokens"],
            output_tokens=figures["avg_output_tokens"],
            error_rate=figures["error_rate"],
            think_mean_s=think_mean_s,
        ),
        requests_per_s=row.number("requests_per_s"),
        tokens_per_s=row.number("tokens_per_s"),
        tokens_counted=cast(
            TokensCounted | None, row.choice("tokens_counted", ("output", "total"))
        ),
        output_tokens_per_s=row.number("output_tokens_per_s"),
        total_tokens_per_s=row.number("total_tokens_per_s"),
    )
    return Cell(
        model=row.required("model"),
        gpu=row.required("gpu"),
        tp=tp,
        scenario=row.text("scenario") or DEFAULT_SCENARIO,
        origin=cast(Origin, row.choice("origin", ("measured", "predicted")) or "measured"),
        provenance=row.text("provenance") or f"{Path(row.file).name}, line {row.line}",
        capacity=_capacity(row, users),
        interconnect=row.text("interconnect"),
        requests_per_s=rates.requests_per_s,
        output_tokens_per_s=rates.output_tokens_per_s,
        total_tokens_per_s=rates.total_tokens_per_s,
        slo=_slo(row),
        invalid_reason=row.text("invalid_reason")
        or ("max_users is not given" if users is None else None),
        notes=tuple(note for note in (*notes, *rates.notes) if note),
        **figures,
    )


def _capacity(row: Row, users: int | None) -> Capacity | None:
    high = row.count("users_high")
    if users is not None and high is not None and high < users:
        raise row.error("users_high", f"is below max_users, {users}")
    if users is None:
        return None
    return Capacity(
        users=users,
        users_high=high,
        confidence=row.number("confidence"),
        limited_by=row.text("limited_by"),
    )


def _slo(row: Row) -> str | None:
    text = row.text("slo")
    if text is None:
        return None
    try:
        return str(slo.parse(text))
    except UsageError as error:
        raise row.error("slo", f"is no SLO: {error}") from None


def to_csv(cells: Iterable[Cell]) -> str:
    """The cells as CSV that `parse_csv` reads back; times in seconds, unknown figures empty."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(EXPORTED)
    for cell in cells:
        values = msgspec.structs.asdict(cell)
        values["note"] = NOTE_SEPARATOR.join(cell.notes)
        if cell.capacity is not None:
            values["max_users"] = cell.capacity.users
            values["users_high"] = cell.capacity.users_high
            values["confidence"] = cell.capacity.confidence
            values["limited_by"] = cell.capacity.limited_by
        writer.writerow("" if values.get(name) is None else values[name] for name in EXPORTED)
    return out.getvalue()

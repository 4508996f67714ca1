"""Excel workbooks: sheets of typed cells, in which no text can become a formula or a link."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from servecap.errors import UsageError
from servecap.report.table import Table
from servecap.report.units import clean

Value = str | float | int | bool | None

MOST_ROWS = 1_048_575  # of a sheet, its head left out
_MOST_TEXT = 32_767  # characters that a cell holds
_WIDEST = 60.0
_SAMPLED = 200  # rows that decide how wide a column is
_NAME_FORBIDDEN = re.compile(r"[\[\]:*?/\\']")


class Sheet(msgspec.Struct, frozen=True):
    """One sheet: a head that stays in view, then a row of values each; None is an empty cell."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    marked: frozenset[int] = frozenset()  # rows, from 0, that are coloured


def of_table(table: Table) -> Sheet:
    """A report's table as a sheet: its cells as they are printed, its notes below."""
    heads = [column.name for column in table.columns]
    rows: list[Sequence[Value]] = [*table.rows]
    return Sheet(table.title, heads, [*rows, *([note] for note in table.notes)])


def write_xlsx(path: str | Path, sheets: Sequence[Sheet]) -> None:
    """Write the sheets as one workbook.

    Text is always stored as text: whatever a server or a prompt put into it, it is neither a
    formula nor a link. Numbers that are not finite are left empty.

    Raises:
        UsageError: XlsxWriter is not installed, or a sheet has more rows than Excel can hold.
        OSError: *path* cannot be written.
    """
    try:  # an extra without types of its own
        xlsxwriter: Any = importlib.import_module("xlsxwriter")
    except ImportError:
        raise UsageError(
            "Excel needs XlsxWriter: pip install 'servecap[excel]', or take another format"
        ) from None
    for sheet in sheets:
        if len(sheet.rows) > MOST_ROWS:
            raise UsageError(
                f"{len(sheet.rows):,} rows of {sheet.name} do not fit into an Excel sheet (most "
                f"{MOST_ROWS:,}): take csv or parquet"
            )
    try:
        with xlsxwriter.Workbook(str(path), {"constant_memory": True}) as book:
            head = book.add_format({"bold": True, "bottom": 1})
            marked = book.add_format({"bg_color": "#FFF2CC"})
            used: set[str] = set()
            for sheet in sheets:
                _fill(book.add_worksheet(_unique(sheet.name, used)), sheet, head, marked)
    except xlsxwriter.exceptions.FileCreateError as error:
        cause = error.args[0] if error.args else error
        raise cause if isinstance(cause, OSError) else OSError(str(cause)) from None


def _fill(page: Any, sheet: Sheet, head: Any, marked: Any) -> None:
    page.freeze_panes(1, 0)
    for at, width in enumerate(_widths(sheet)):
        page.set_column(at, at, width)
    for at, name in enumerate(sheet.columns):
        page.write_string(0, at, clean(name), head)
    for number, row in enumerate(sheet.rows, start=1):
        look = marked if number - 1 in sheet.marked else None
        for at, value in enumerate(row):
            _cell(page, number, at, value, look)


def _cell(page: Any, row: int, column: int, value: Value, look: Any) -> None:
    # `write` would guess what a text is; each kind has a method of its own that does not.
    match value:
        case None:
            if look is not None:
                page.write_blank(row, column, None, look)
        case bool():
            page.write_boolean(row, column, value, look)
        case int() | float():
            if math.isfinite(value):
                page.write_number(row, column, value, look)
        case str():
            page.write_string(row, column, clean(value, _MOST_TEXT), look)


def _widths(sheet: Sheet) -> list[float]:
    wide = [float(len(name)) for name in sheet.columns]
    for row in sheet.rows[:_SAMPLED]:
        if len(row) == len(wide):  # notes below a table run over all columns
            wide = [max(w, len(_shown(value))) for w, value in zip(wide, row, strict=True)]
    return [min(_WIDEST, w + 2) for w in wide]


def _shown(value: Value) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _unique(name: str, used: set[str]) -> str:
    """A sheet's name as Excel allows it: 1 to 31 characters, no two alike."""
    plain = _NAME_FORBIDDEN.sub(" ", clean(name)).strip()[:31].strip() or "sheet"
    found, count = plain, 1
    while found.casefold() in used:
        count += 1
        found = f"{plain[:27]} {count}"
    used.add(found.casefold())
    return found

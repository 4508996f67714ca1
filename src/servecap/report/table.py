"""A table as data, and as plain text. The HTML template prints the same tables."""

from __future__ import annotations

import textwrap

import msgspec

from servecap.report.units import width

WIDTH = 100  # columns that any line of a text report may take


class Column(msgspec.Struct, frozen=True):
    """A column's head, and whether it holds figures."""

    name: str
    number: bool = True  # set flush right, in figures of equal width


class Table(msgspec.Struct, frozen=True):
    """Cells are ready to print. The last column may be prose: it is wrapped, never cut."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def text_column(name: str) -> Column:
    """A column of words, set flush left."""
    return Column(name, number=False)


def lines(table: Table) -> list[str]:
    """The table in at most `WIDTH` columns: title, head, rows, notes."""
    out = [table.title]
    if table.rows:
        out += _grid(table)
    for note in table.notes:
        out += paragraph(note, indent="  ")
    return out


def _grid(table: Table) -> list[str]:
    cells = [tuple(column.name for column in table.columns), *table.rows]
    # The head of a table of facts is empty: it would say nothing that the rows do not.
    if not any(cells[0]):
        cells = cells[1:]
    widths = [max(width(row[i]) for row in cells) for i in range(len(table.columns))]
    left = 2 + sum(w + 2 for w in widths[:-1])
    widths[-1] = max(min(widths[-1], WIDTH - left), 12)
    out: list[str] = []
    for row in cells:
        out += _row(row, table.columns, widths, left)
    return out


def _row(
    row: tuple[str, ...], columns: tuple[Column, ...], widths: list[int], left: int
) -> list[str]:
    head = "  " + "".join(
        _pad(text, w, column.number) + "  "
        for text, column, w in zip(row[:-1], columns[:-1], widths[:-1], strict=True)
    )
    last, column = row[-1], columns[-1]
    if column.number or width(last) <= widths[-1]:
        return [(head + _pad(last, widths[-1], column.number)).rstrip()]
    wrapped = wrap(last, widths[-1])
    return [head + wrapped[0], *(" " * left + line for line in wrapped[1:])]


def _pad(text: str, to: int, right: bool) -> str:
    gap = " " * max(0, to - width(text))
    return gap + text if right else text + gap


def paragraph(text: str, indent: str = "") -> list[str]:
    """Prose wrapped to `WIDTH` columns."""
    return [indent + line for line in wrap(text, WIDTH - len(indent))]


def bullet(text: str) -> list[str]:
    """One item of a list, wrapped."""
    first, *rest = paragraph(text, indent="    ")
    return ["  - " + first[4:], *rest]


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most that many terminal columns; a single longer word is broken."""
    if width(text) == len(text):
        return textwrap.wrap(text, columns) or [""]
    out, line = [], ""
    for word in text.split():
        for piece in _pieces(word, columns):
            joined = f"{line} {piece}" if line else piece
            if width(joined) <= columns:
                line = joined
            else:
                out.append(line)
                line = piece
    return [*out, line]


def _pieces(word: str, columns: int) -> list[str]:
    pieces, piece = [], ""
    for char in word:
        if width(piece + char) > columns:
            pieces.append(piece)
            piece = ""
        piece += char
    return [*pieces, piece]

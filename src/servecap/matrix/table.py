"""Cells as a CSV table: what a spreadsheet, another tool or our own export holds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from servecap import slo
from servecap.cell import Capacity, Cell, Origin
from servecap.errors import UsageError
from servecap.matrix.plausible import DEFAULT_THINK_MEAN_S, Load, TokensCounted, usable_rates

NOTE_SEPARATOR = " | "
DEFAULT_SCENARIO = "default"

Kind = Literal["text", "count", "positive", "rate", "share"]

# our column -> what its values must be. A count is whole, "positive" is greater than 0.
COLUMNS: dict[str, Kind] = {
    "model": "text",
    "gpu": "text",
    "gpu_memory_gb": "positive",
    "interconnect": "text",
    "tp": "count",
    "scenario": "text",
    "origin": "text",
    "avg_context_tokens": "positive",
    "avg_output_tokens": "positive",
    "max_users": "count",
    "users_high": "count",
    "confidence": "share",
    "limited_by": "text",
    "error_rate": "share",
    "ttft_s": "positive",
    "tpot_s": "positive",
    "requests_per_s": "rate",
    "tokens_per_s": "rate",
    "tokens_counted": "text",
    "output_tokens_per_s": "rate",
    "total_tokens_per_s": "rate",
    "slo": "text",
    "invalid_reason": "text",
    "provenance": "text",
    "note": "text",
}
REQUIRED = ("model", "gpu", "tp", "max_users")
EXPORTED = tuple(name for name in COLUMNS if name not in ("tokens_per_s", "tokens_counted"))

# other names for the same columns, as other tools and spreadsheets write them
SYNONYMS: dict[str, str] = {
    "model_name": "model",
    "gpu_type": "gpu",
    "gpu_name": "gpu",
    "accelerator": "gpu",
    "memory_gb": "gpu_memory_gb",
    "gpu_memory": "gpu_memory_gb",
    "link": "interconnect",
    "tensor_parallel": "tp",
    "tensor_parallel_size": "tp",
    "tp_size": "tp",
    "workload": "scenario",
    "dataset": "scenario",
    "context_tokens": "avg_context_tokens",
    "output_tokens": "avg_output_tokens",
    "users": "max_users",
    "users_max": "max_users",
    "concurrency": "max_users",
    "concurrency_users": "max_users",
    "max_concurrency": "max_users",
    "error_share": "error_rate",
    "ttft": "ttft_s",
    "ttft_ms": "ttft_s",
    "first_token_latency": "ttft_s",
    "first_token_latency_s": "ttft_s",
    "first_token_latency_ms": "ttft_s",
    "tpot": "tpot_s",
    "tpot_ms": "tpot_s",
    "avg_token_latency": "tpot_s",
    "avg_token_latency_s": "tpot_s",
    "avg_token_latency_ms": "tpot_s",
    "qps": "requests_per_s",
    "rps": "requests_per_s",
    "throughput_request_rate": "requests_per_s",
    "tps": "tokens_per_s",
    "throughput_token_rate": "tokens_per_s",
    "output_tps": "output_tokens_per_s",
    "total_tps": "total_tokens_per_s",
    "notes": "note",
    "comment": "note",
}
# A time above this in a column without a unit is more likely milliseconds than a slow server.
UNITLESS_AT_MOST_S = {"ttft_s": 60.0, "tpot_s": 2.0}
PROSE = ("note", "invalid_reason", "provenance")
ABSENT = {"", "-", "n/a", "na", "none", "null"}


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """The cells of a file, and what was odd about the file as a whole."""

    cells: tuple[Cell, ...]
    warnings: tuple[str, ...] = ()


class Row(msgspec.Struct, frozen=True):
    """One line's values by our column name, with the place for messages."""

    file: str
    line: int
    values: dict[str, str]
    headers: dict[str, str]  # our column -> as the file writes it

    def error(self, column: str, why: str) -> UsageError:
        value = self.values.get(column, "")
        header = self.headers.get(column, column)
        return UsageError(f"{self.file}, line {self.line}, column {header!r}: {value!r} {why}")

    def text(self, column: str) -> str | None:
        value = self.values.get(column, "").strip()
        if any(ord(char) < 32 or ord(char) == 127 for char in value):
            if column not in PROSE:
                raise self.error(column, "holds a line break or another control character")
            value = " ".join(value.split())
        return None if value.casefold() in ABSENT else value

    def required(self, column: str) -> str:
        value = self.text(column)
        if value is None:
            raise self.error(column, "is no value; fill it in")
        return value

    def choice(self, column: str, allowed: tuple[str, ...]) -> str | None:
        value = self.text(column)
        if value is not None and value.casefold() not in allowed:
            raise self.error(column, f"is not one of {', '.join(allowed)}")
        return None if value is None else value.casefold()

    def number(self, column: str) -> float | None:
        value = self.text(column)
        if value is None:
            return None
        percent = COLUMNS[column] == "share" and value.endswith("%")
        try:
            number = float(value.removesuffix("%") if percent else value)
        except ValueError:
            raise self.error(column, "is not a number (write it like 1234.5)") from None
        number = number / 100 if percent else number
        if column in ("ttft_s", "tpot_s"):
            number = self._seconds(column, number)
        why = out_of_range(column, number)
        if why is not None:
            raise self.error(column, why)
        return number

    def count(self, column: str) -> int | None:
        number = self.number(column)
        return None if number is None else int(number)

    def _seconds(self, column: str, number: float) -> float:
        header = _canonical(self.headers[column])
        if header.endswith("_ms"):
            return number / 1e3
        if not header.endswith("_s") and number > UNITLESS_AT_MOST_S[column]:
            raise self.error(
                column,
                f"would be seconds, which is too long to be meant; name the column {header}_ms "
                f"or {header}_s",
            )
        return number


def out_of_range(column: str, number: float) -> str | None:
    """Why *number* cannot stand in that column, or None if it can."""
    if not math.isfinite(number):
        return "is not a finite number; leave it empty if it is unknown"
    kind = COLUMNS[column]
    if kind == "share" and not 0 <= number <= 1:
        return "is not within 0 and 1 (write a percentage with its %)"
    if kind == "positive" and number <= 0:
        return "is not greater than 0; leave it empty if it is unknown"
    if kind == "rate" and number < 0:
        return "is below 0; leave it empty if it is unknown"
    if kind == "count":
        least = 0 if column == "max_users" or column == "users_high" else 1
        if number != int(number) or number < least:
            return f"is not a whole number of at least {least}"
    return None


def read_csv(path: Path, *, think_mean_s: float = DEFAULT_THINK_MEAN_S) -> Table:
    """The cells of a CSV file, each figure checked against its own row.

    Args:
        path: separated by comma, semicolon or tab; UTF-8; columns by name (see COLUMNS and
            SYNONYMS) in any order. Unknown columns are left out with a warning.
        think_mean_s: mean think time of the users in the test behind the table.
    Raises:
        UsageError: the file is no such table; the message names file, line, column and value.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text ({error.reason})") from None
    return parse_csv(text, name=str(path), think_mean_s=think_mean_s)


def parse_csv(text: str, *, name: str, think_mean_s: float = DEFAULT_THINK_MEAN_S) -> Table:
    """The cells in CSV *text*; *name* stands for the file in messages and provenance.

    Raises:
        UsageError: as `read_csv`.
    """
    found, ignored = rows(text, name=name)
    cells: list[Cell] = []
    seen: dict[tuple[object, ...], int] = {}
    for row in found:
        cell = _cell(row, think_mean_s)
        before = seen.setdefault(place(cell), row.line)
        if before != row.line:
            raise UsageError(
                f"{name}, line {row.line}: {describe(cell)} is already on line {before}; keep one"
            )
        cells.append(cell)
    if not cells:
        raise UsageError(f"{name}: has a header but no cells")
    warnings = [f"{name}: column {h!r} is not known and was left out" for h in ignored]
    return Table(cells=tuple(cells), warnings=tuple(warnings))


def rows(text: str, *, name: str) -> tuple[list[Row], list[str]]:
    """The lines of CSV *text* as they stand, and the headers that mean nothing to us.

    Raises:
        UsageError: as `read_csv`.
    """
    lines = _lines(text, name)
    first = next(lines, None)
    if first is None:
        raise UsageError(f"{name}: is empty; a header line with {', '.join(REQUIRED)} is needed")
    headers, ignored = _headers(first[1], name)
    found: list[Row] = []
    for line, fields in lines:
        if len(fields) != len(first[1]):
            raise UsageError(
                f"{name}, line {line}: has {len(fields)} fields, the header has {len(first[1])}"
            )
        by_header = dict(zip(first[1], fields, strict=True))
        found.append(Row(name, line, {ours: by_header[h] for ours, h in headers.items()}, headers))
    return found, ignored


def place(cell: Cell) -> tuple[object, ...]:
    """What makes two cells the same place of the matrix, whatever their figures."""
    return (
        cell.model.casefold(), cell.gpu.casefold(), cell.gpu_memory_gb,
        (cell.interconnect or "").casefold(), cell.tp, cell.scenario, cell.origin,
    )  # fmt: skip


def describe(cell: Cell) -> str:
    """The cell's place in words: "llama-13b on A30, TP4, chat"."""
    return f"{cell.model} on {cell.gpu}, TP{cell.tp}, {cell.scenario}"


def _lines(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    header = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(f"{name}, line {reader.line_num}: is not CSV ({error})") from None
        if any(field.strip() for field in fields):
            yield start, fields
        start = reader.line_num + 1


def _canonical(header: str) -> str:
    return header.strip().casefold().replace(" ", "_").replace("-", "_")


def _headers(fields: list[str], name: str) -> tuple[dict[str, str], list[str]]:
    """Our column -> the file's header, and the headers that mean nothing to us."""
    found: dict[str, str] = {}
    ignored: list[str] = []
    for header in fields:
        canonical = _canonical(header)
        ours = SYNONYMS.get(canonical, canonical)
        if ours not in COLUMNS:
            ignored.append(header)
        elif ours in found:
            raise UsageError(f"{name}: columns {found[ours]!r} and {header!r} mean the same")
        else:
            found[ours] = header
    for column in REQUIRED:
        if column not in found:
            raise UsageError(
                f"{name}: column {column!r} is missing; found {', '.join(map(repr, fields))}"
            )
    return found, ignored


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

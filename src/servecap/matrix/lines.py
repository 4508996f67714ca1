"""A table of cells as it stands in a file: its lines, by our names of the columns."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from servecap.errors import UsageError

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
    "mean_ttft_ms": "ttft_s",
    "mean_tpot_ms": "tpot_s",
    "max_concurrent_users": "max_users",
    "首字时延": "ttft_s",
    "首字时延_s": "ttft_s",
    "首字时延_ms": "ttft_s",
    "非首字时延": "tpot_s",
    "非首字时延_s": "tpot_s",
    "非首字时延_ms": "tpot_s",
    "并发用户数": "max_users",
    "请求吞吐量": "requests_per_s",
    "错误率": "error_rate",
    "notes": "note",
    "comment": "note",
}
# A time above this in a column without a unit is more likely milliseconds than a slow server.
UNITLESS_AT_MOST_S = {"ttft_s": 60.0, "tpot_s": 2.0}
PROSE = ("note", "invalid_reason", "provenance")
ABSENT = {"", "-", "n/a", "na", "none", "null"}


class FieldError(UsageError):
    """One value of one row cannot be; `said` is the message without the file and the line."""

    def __init__(self, file: str, line: int, said: str) -> None:
        super().__init__(f"{file}, line {line}, {said}")
        self.said = said


class Row(msgspec.Struct, frozen=True):
    """One line's values by our column name, with the place for messages."""

    file: str
    line: int
    values: dict[str, str]
    headers: dict[str, str]  # our column -> as the file writes it

    def error(self, column: str, why: str) -> FieldError:
        value = self.values.get(column, "")
        header = self.headers.get(column, column)
        return FieldError(self.file, self.line, f"column {header!r}: {value!r} {why}")

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


def text_of(path: Path) -> str:
    """What a file of text holds: UTF-8, or the UTF-16 that spreadsheets call "Unicode text".

    Raises:
        UsageError: it cannot be read, or is in neither.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    sixteen = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if sixteen else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not {'UTF-16' if sixteen else 'UTF-8'} text (byte {error.start + 1}: "
            f"{error.reason}); save it as CSV in UTF-8"
        ) from None


def rows(
    text: str, *, name: str, required: Sequence[str] = REQUIRED
) -> tuple[list[Row], list[str]]:
    """The lines of CSV *text* as they stand, and the headers that mean nothing to us.

    Args:
        name: the file's, for messages.
        required: our names of the columns that must be there.
    Raises:
        UsageError: it is no such table; the message names the line.
    """
    lines = _lines(text, name)
    first = next(lines, None)
    if first is None:
        raise UsageError(f"{name}: is empty; a header line with {', '.join(required)} is needed")
    headers, ignored = _headers(first[1], name, required)
    found: list[Row] = []
    for line, fields in lines:
        if len(fields) != len(first[1]):
            raise UsageError(
                f"{name}, line {line}: has {len(fields)} fields, the header has {len(first[1])}"
            )
        by_header = dict(zip(first[1], fields, strict=True))
        found.append(Row(name, line, {ours: by_header[h] for ours, h in headers.items()}, headers))
    return found, ignored


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
    """The name in our way of writing; a unit in brackets is its end: "TTFT (ms)" is ttft_ms.

    >>> _canonical(" Avg token latency [ms] ")
    'avg_token_latency_ms'
    """
    name = _UNIT.sub(r" \1", header.strip().casefold())
    return "_".join(name.replace("-", " ").replace("_", " ").split())


_UNIT = re.compile(r"\s*[\[(（]\s*(ms|s|gb)\s*[\])）]$")


def _headers(
    fields: list[str], name: str, required: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
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
    for column in required:
        if column not in found:
            raise UsageError(
                f"{name}: column {column!r} is missing; found {', '.join(map(repr, fields))}"
            )
    return found, ignored

"""Traces of real services: when requests came, how long they were, and what they had in common.

Read are Azure's LLM inference traces (2023 and 2024), BurstGPT (with and without sessions),
Mooncake, Qwen-Bailian, and plain tables of time, input and output tokens. Columns are found by
name; every row is either used or counted under the reason why it cannot be.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import msgspec

from servecap.errors import UsageError
from servecap.workload.read import Record, json_records, read_text
from servecap.workload.sample import Dropped

FORMATS = ("azure", "burstgpt", "mooncake", "bailian", "plain")

NO_ANSWER = Dropped("no output tokens (failed)")
NO_PROMPT = Dropped("no input tokens")
NO_TIME = Dropped("no timestamp (due a delay after the turn before)")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trace; rows with the same leading `blocks` begin with the same tokens."""

    due_s: float  # since the trace's first request
    in_tokens: int
    out_tokens: int
    session: int | None = None
    turn: int = 0
    blocks: tuple[int, ...] = ()
    record: int = 0  # which of the file's records it is, from 0


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Rows by time; `records` = rows + what was dropped. A block is of `block_tokens` tokens."""

    format: str
    records: int
    rows: tuple[Row, ...]
    dropped: dict[str, int]
    block_tokens: int | None = None

    @property
    def span_s(self) -> float:
        """Seconds from the first row to the last."""
        return self.rows[-1].due_s - self.rows[0].due_s

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between successive rows."""
        return [b.due_s - a.due_s for a, b in pairwise(self.rows)]


def load(path: str, format: str | None = None) -> Trace:
    """The file's rows in the order of their times, the first at 0.

    Args:
        format: one of `FORMATS`; None tells it from the columns or fields.
    Raises:
        UsageError: the file cannot be read as that format, or has no usable row.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"trace format {format!r} is not one of {', '.join(FORMATS)}")
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "["):
        name, outcomes = _from_json(path, text, format)
    else:
        name, outcomes = _from_csv(path, text, format)
    placed = (
        msgspec.structs.replace(outcome, record=i)
        for i, outcome in enumerate(outcomes)
        if isinstance(outcome, Row)
    )
    rows = sorted(placed, key=lambda row: row.due_s)
    dropped: dict[str, int] = {}
    for outcome in outcomes:
        if isinstance(outcome, Dropped):
            dropped[outcome.reason] = dropped.get(outcome.reason, 0) + 1
    if not rows:
        raise UsageError(f"trace {path} has no usable row among its {len(outcomes)} ({name})")
    start_s = rows[0].due_s
    return Trace(
        format=name,
        records=len(outcomes),
        rows=tuple(msgspec.structs.replace(row, due_s=row.due_s - start_s) for row in rows),
        dropped=dropped,
        block_tokens={"mooncake": 512, "bailian": 16}.get(name),
    )


_Convert = Callable[[Callable[[str], str]], Row | Dropped]


class _Table(msgspec.Struct, frozen=True):
    """The lines of a CSV file, by column name."""

    path: str
    columns: dict[str, int]
    lines: list[tuple[int, list[str]]]

    def rows(self, convert: _Convert) -> Iterator[Row | Dropped]:
        for number, line in self.lines:
            if len(line) != len(self.columns):
                raise UsageError(
                    f"trace {self.path}, line {number}: {len(line)} fields, but the header has"
                    f" {len(self.columns)} (is the file cut off?)"
                )
            try:
                yield convert(lambda name, line=line: line[self.columns[name]].strip())  # type: ignore[misc]
            except (ValueError, OverflowError) as error:
                raise UsageError(f"trace {self.path}, line {number}: {error}") from error


_PLAIN = {
    "time": ("timestamp", "time", "time_s", "arrival", "arrival_s", "arrived_at"),
    "in": ("in", "in_tokens", "input_tokens", "prompt_tokens", "input_length"),
    "out": ("out", "out_tokens", "output_tokens", "completion_tokens", "output_length"),
}


def _from_csv(path: str, text: str, format: str | None) -> tuple[str, list[Row | Dropped]]:
    try:
        lines = [(i, line) for i, line in enumerate(csv.reader(text.splitlines()), 1) if any(line)]
    except csv.Error as error:  # a field of more than 128 KiB
        raise UsageError(f"trace {path} is no CSV: {error}") from None
    if not lines:
        raise UsageError(f"trace {path} holds nothing but empty fields")
    head = [name.strip().lower() for name in lines[0][1]]
    if len(head) == 3 and all(_is_number(name) for name in head):
        table = _Table(path, {"time": 0, "in": 1, "out": 2}, lines)
        name = "plain"
    else:
        columns = {name: i for i, name in enumerate(head)}
        if len(columns) < len(head):
            raise UsageError(f"trace {path} has two columns of one name: {', '.join(head[:8])}")
        name = format or _sniff_csv(path, head)
        table = _Table(path, _plain(columns) if name == "plain" else columns, lines[1:])
    if format not in (None, name):
        raise UsageError(f"trace {path} is no {format} trace: its first line is {head}")
    match name:
        case "azure":
            wanted = ("timestamp", "contexttokens", "generatedtokens")
            convert: _Convert = _azure
        case "burstgpt":
            wanted = ("timestamp", "request tokens", "response tokens")
            convert = _burstgpt(with_sessions="session id" in table.columns)
        case "plain":
            wanted, convert = ("time", "in", "out"), _plain_row
        case _:
            raise UsageError(f"trace {path} is a CSV file, but {name} traces are JSON lines")
    missing = [column for column in wanted if column not in table.columns]
    if missing:
        raise UsageError(
            f"trace {path} is no {name} trace: it has no column {missing[0]!r}, only"
            f" {', '.join(map(repr, head[:8]))}"
        )
    return name, list(table.rows(convert))


def _sniff_csv(path: str, head: list[str]) -> str:
    if "contexttokens" in head:
        return "azure"
    if "request tokens" in head:
        return "burstgpt"
    if set(_PLAIN) <= set(_plain({name: i for i, name in enumerate(head)})):
        return "plain"
    raise UsageError(
        f"trace {path}: its columns ({', '.join(map(repr, head[:8]))}) fit no known trace; for"
        " a plain one name them timestamp,in,out"
    )


def _plain(columns: dict[str, int]) -> dict[str, int]:
    """The columns with what a plain trace needs under one name each."""
    found = dict(columns)
    for meaning, names in _PLAIN.items():
        for name in names:
            if name in columns:
                found[meaning] = found.pop(name)
                break
    return found


def has_header(line: str) -> bool:
    """Whether the first line of a CSV trace names its columns: a plain one need not."""
    fields = line.split(",")
    return len(fields) != 3 or not all(_is_number(field) for field in fields)


def looks_like_one(path: str) -> bool:
    """Whether the file seems to be a trace, not a data set."""
    text = read_text(path)
    if text.lstrip()[:1] not in ("{", "["):
        return ".csv" in path.lower()
    start = text[:100_000]
    return '"input_length"' in start and '"output_length"' in start


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _row(due_s: float, in_tokens: int, out_tokens: int, **more: Any) -> Row | Dropped:
    if not math.isfinite(due_s):
        raise ValueError(f"the time {due_s} is no time")
    if in_tokens < 0 or out_tokens < 0:
        raise ValueError(f"{min(in_tokens, out_tokens)} tokens cannot be")
    if out_tokens == 0:
        return NO_ANSWER
    if in_tokens == 0:
        return NO_PROMPT
    return Row(due_s=due_s, in_tokens=in_tokens, out_tokens=out_tokens, **more)


def _azure(field: Callable[[str], str]) -> Row | Dropped:
    at = datetime.fromisoformat(field("timestamp"))
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return _row(at.timestamp(), int(field("contexttokens")), int(field("generatedtokens")))


def _burstgpt(*, with_sessions: bool) -> _Convert:
    numbers: dict[str, int] = {}
    turns: dict[str, int] = {}

    def convert(field: Callable[[str], str]) -> Row | Dropped:
        key = field("session id") if with_sessions else ""
        turn = turns.get(key, 0)
        row = _row(
            float(field("timestamp")),
            int(field("request tokens")),
            int(field("response tokens")),
            session=numbers.setdefault(key, len(numbers)) if key else None,
            turn=turn if key else 0,
        )
        if isinstance(row, Row):
            turns[key] = turn + 1
        return row

    return convert


def _plain_row(field: Callable[[str], str]) -> Row | Dropped:
    return _row(float(field("time")), _whole(field("in")), _whole(field("out")))


def _whole(text: str) -> int:
    value = float(text)
    if value != int(value):
        raise ValueError(f"{text} is no whole number of tokens")
    return int(value)


class _Mooncake(msgspec.Struct):
    input_length: int
    output_length: int
    timestamp: float | None = None  # ms
    hash_ids: tuple[int, ...] = ()
    session_id: str | int | None = None


class _Bailian(msgspec.Struct):
    chat_id: int
    parent_chat_id: int
    timestamp: float  # s
    input_length: int
    output_length: int
    turn: int = 1
    hash_ids: tuple[int, ...] = ()


def _from_json(path: str, text: str, format: str | None) -> tuple[str, list[Row | Dropped]]:
    records = json_records(path, text)
    name = format or _sniff_json(path, records[0])
    roots: dict[int, int] = {}
    numbers: dict[str, int] = {}
    outcomes: list[Row | Dropped] = []
    for record in records:
        try:
            match name:
                case "mooncake":
                    outcomes.append(_mooncake(msgspec.convert(record.value, _Mooncake), numbers))
                case "bailian":
                    outcomes.append(_bailian(msgspec.convert(record.value, _Bailian), roots))
                case _:
                    raise UsageError(f"trace {path} is JSON, but {name} traces are CSV files")
        except (msgspec.ValidationError, ValueError) as error:
            raise UsageError(
                f"trace {path}, {record.place}: not a row of a {name} trace: {error}"
            ) from error
    return name, outcomes


def _sniff_json(path: str, record: Record) -> str:
    match record.value:
        case {"chat_id": _, "parent_chat_id": _}:
            return "bailian"
        case {"input_length": _, "output_length": _}:
            return "mooncake"
    raise UsageError(
        f"trace {path}, {record.place}: fits no known trace; known are {', '.join(FORMATS)}"
    )


def _mooncake(value: _Mooncake, numbers: dict[str, int]) -> Row | Dropped:
    if value.timestamp is None:
        return NO_TIME
    key = None if value.session_id is None else str(value.session_id)
    return _row(
        value.timestamp / 1000,
        value.input_length,
        value.output_length,
        session=None if key is None else numbers.setdefault(key, len(numbers)),
        blocks=value.hash_ids,
    )


def _bailian(value: _Bailian, roots: dict[int, int]) -> Row | Dropped:
    """A session is named by the first of its requests, or by the oldest that is known of."""
    parent = value.parent_chat_id
    root = value.chat_id if parent < 0 else roots.get(parent, parent)
    roots[value.chat_id] = root
    return _row(
        value.timestamp,
        value.input_length,
        value.output_length,
        session=root,
        turn=max(0, value.turn - 1),
        blocks=value.hash_ids,
    )

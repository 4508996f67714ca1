"""`cells.jsonl`: what became of each cell, one line each, appended and never rewritten."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from servecap.cell import Cell
from servecap.errors import UNREADABLE, DiskError, UsageError

JOURNAL = "cells.jsonl"
GONE = "no longer in the spec"  # the error of a place that a later spec has dropped


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attempt at a cell: its figures, or the reason why there are none."""

    key: str  # hash of all that defines the cell: the same key means the same question
    place: str  # which cell of the matrix; a later entry for a place replaces an earlier one
    name: str  # the place in words
    at_utc: str  # ISO 8601
    cell: Cell | None = None
    error: str | None = None


_decoder = msgspec.json.Decoder(Entry)


def append(path: Path, entry: Entry) -> None:
    """Adds the entry and returns once it is on the disk; a torn line before it is cut off.

    The whole line goes out in one write, so that a killed process leaves a line or a torn end,
    which `read_journal` skips.

    Raises:
        DiskError: the disk is full, or cannot be written.
    """
    line = msgspec.json.encode(entry) + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _cut_torn_end(descriptor)
            view = memoryview(line)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DiskError(
            f"cannot write to {str(path)!r} ({error.strerror}): {entry.name} is not kept, "
            "the cells before it are; the next run goes on there"
        ) from None


def _cut_torn_end(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(descriptor, end)


def read_journal(path: Path) -> list[Entry]:
    """All whole entries, oldest first; empty if there is no journal yet.

    Raises:
        UsageError: a line (other than a torn last one) is no entry.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    entries: list[Entry] = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            entries.append(_decoder.decode(line))
        except UNREADABLE as error:
            raise UsageError(f"{path}, line {number}: is no entry of a matrix ({error})") from None
    return entries


def latest(entries: Iterable[Entry]) -> list[Entry]:
    """The last entry of each place, in the order in which the places first appeared."""
    last: dict[str, Entry] = {}
    for entry in entries:
        last[entry.place] = entry
    return list(last.values())

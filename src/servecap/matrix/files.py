"""A matrix as files: CSV, JSON, Markdown, and the folder that `servecap matrix` fills."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from servecap.cell import Cell
from servecap.errors import UNREADABLE, UsageError
from servecap.matrix.journal import GONE, JOURNAL, latest, read_journal
from servecap.matrix.lines import COLUMNS, out_of_range
from servecap.matrix.plausible import DEFAULT_THINK_MEAN_S
from servecap.matrix.table import Table, describe, place, read_csv, to_csv

FORMATS = ("csv", "json", "md")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our own JSON: the version tells later readers what they have."""

    cells: tuple[Cell, ...]
    servecap_matrix: int = 1


def read(path: Path, *, think_mean_s: float = DEFAULT_THINK_MEAN_S, loads: bool = False) -> Table:
    """The cells of a CSV or JSON file, or of a folder that a matrix was filled in.

    Args:
        think_mean_s: mean think time behind a CSV table (JSON and folders hold checked cells).
        loads: rows of a CSV table need not be capacities, as `read_csv` has it.
    Raises:
        UsageError: nothing there, or not such a file; the message names the place in it.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() == ".json":
        return _read_json(path)
    if path.name == JOURNAL:
        return _read_folder(path.parent)
    return read_csv(path, think_mean_s=think_mean_s, loads=loads)


def write(path: Path, cells: Sequence[Cell]) -> None:
    """Writes the cells in the format that the name ends with: .csv, .json or .md.

    Raises:
        UsageError: another ending, or the file cannot be written.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise UsageError(f"{path}: cannot tell the format; end the name in .csv, .json or .md")
    text = {"csv": to_csv, "json": to_json, "md": to_markdown}[ending](cells)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def to_json(cells: Iterable[Cell]) -> str:
    """The cells as one JSON document that `read` takes back unchanged."""
    data = msgspec.json.encode(_File(tuple(cells)))
    return msgspec.json.format(data, indent=2).decode() + "\n"


def to_markdown(cells: Iterable[Cell]) -> str:
    """The cells as a Markdown table for people; unknown figures read "n/a"."""
    head = ("model", "GPU", "TP", "scenario", "context", "output", "users", "TTFT, s", "TPOT, ms",
            "requests/s", "output tokens/s", "errors", "limited by", "source")  # fmt: skip
    rows = [head, tuple("---" for _ in head), *map(_markdown_row, cells)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _markdown_row(cell: Cell) -> tuple[str, ...]:
    memory = "" if cell.gpu_memory_gb is None else f" {cell.gpu_memory_gb:g} GB"
    tpot_ms = None if cell.tpot_s is None else cell.tpot_s * 1e3
    errors = None if cell.error_rate is None else cell.error_rate * 100
    limit = None if cell.capacity is None else cell.capacity.limited_by
    row = (
        cell.model, cell.gpu + memory, str(cell.tp), cell.scenario,
        _figure(cell.avg_context_tokens), _figure(cell.avg_output_tokens), _users(cell),
        _figure(cell.ttft_s), _figure(tpot_ms), _figure(cell.requests_per_s),
        _figure(cell.output_tokens_per_s), _figure(errors, "%"), limit or "n/a", cell.origin,
    )  # fmt: skip
    return tuple(text.replace("|", "\\|") for text in row)


def _users(cell: Cell) -> str:
    """The users, and up to how many there might be: "45 (up to 47)"; of a guess "45 (20-90)"."""
    if cell.capacity is None:
        return "n/a"
    users, high = cell.capacity.users, cell.capacity.users_high
    if cell.capacity.users_low is not None:
        return f"{users} ({cell.capacity.users_low}-{'?' if high is None else high})"
    return f"{users} (up to {high})" if high is not None and high > users else str(users)


def _figure(value: float | None, unit: str = "") -> str:
    return "n/a" if value is None else f"{value:.4g}{unit}"


def _read_json(path: Path) -> Table:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UNREADABLE as error:
        raise UsageError(f"{path}: is not a matrix in servecap's JSON ({error})") from None
    if file.servecap_matrix != 1:
        raise UsageError(f"{path}: is version {file.servecap_matrix}; this servecap reads 1")
    _check(file.cells, path)
    return Table(cells=file.cells)


def _check(cells: Sequence[Cell], path: Path) -> None:
    seen: set[tuple[object, ...]] = set()
    for index, cell in enumerate(cells):
        figures: dict[str, float | None] = {
            name: getattr(cell, name) for name, kind in COLUMNS.items()
            if kind != "text" and hasattr(cell, name)
        }  # fmt: skip
        if cell.capacity is not None:
            figures["max_users"] = cell.capacity.users
            figures["users_high"] = cell.capacity.users_high
            figures["confidence"] = cell.capacity.confidence
        for name, value in figures.items():
            why = None if value is None else out_of_range(name, value)
            if why is not None:
                raise UsageError(f"{path}: cells[{index}].{name}: {value!r} {why}")
        if place(cell) in seen:
            raise UsageError(f"{path}: cells[{index}]: {describe(cell)} is there twice; keep one")
        seen.add(place(cell))


def _read_folder(path: Path) -> Table:
    if not (path / JOURNAL).is_file():
        raise UsageError(f"{path}: holds no {JOURNAL}; fill it with 'servecap matrix SPEC.yaml'")
    entries = read_journal(path / JOURNAL)
    cells: list[Cell] = []
    warnings: list[str] = []
    for entry in latest(entries):
        if entry.error == GONE:
            continue
        if entry.cell is None:
            warnings.append(f"{path}: {entry.name} has no figures: {entry.error}")
        else:
            cells.append(entry.cell)
    if not cells:
        raise UsageError(f"{path}: no cell has figures yet; {'; '.join(warnings) or 'it is empty'}")
    return Table(cells=tuple(cells), warnings=tuple(warnings))

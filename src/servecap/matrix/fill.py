"""Filling a matrix: cell by cell, each landing on the disk before the next is started."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from servecap.cell import Cell
from servecap.errors import ServecapError, UsageError
from servecap.matrix import journal, launch
from servecap.matrix.dominated import Dominated, dominated
from servecap.matrix.job import CellJob, Command, digest, imported_place
from servecap.matrix.journal import GONE, JOURNAL, Entry
from servecap.matrix.order import teaching_order
from servecap.matrix.spec import Spec
from servecap.matrix.table import describe
from servecap.workload.source import load as load_workload

Find = Callable[[CellJob, str, Path], Cell]  # job, the server's URL, the cell's folder
Endpoint = Callable[[CellJob, Path], AbstractContextManager[str]]
Kind = Literal["started", "landed", "failed", "skipped"]
State = Literal["done", "new", "changed", "failed", "skipped"]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # not ours to mend
ONLY_KEYS = ("model", "gpu", "tp", "scenario")


class Todo(msgspec.Struct, frozen=True):
    """A cell of the spec and how it stands; `note` says why it failed before, or is skipped."""

    job: CellJob
    state: State
    note: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What just happened to the `index`-th of `total` cells that are run."""

    kind: Kind
    name: str
    index: int
    total: int
    cell: Cell | None = None
    error: str | None = None


def survey(spec: Spec, out: Path, *, only: Sequence[str] = ()) -> list[Todo]:
    """How each cell that is to be run stands in the folder, in the order in which they run.

    Nothing is started.

    Args:
        only: `key=pattern` terms (keys: model, gpu, tp, scenario; `*` in patterns); terms of one
            key are alternatives, those of different keys must all hold.
    Raises:
        UsageError: a term cannot be read or nothing fits, or the folder holds something else.
    """
    found = _standing(spec, out, only)
    if not spec.skip_dominated:
        return found
    cells = _known(spec, out)
    return [_decided(todo, cells) for todo in found]


def _standing(spec: Spec, out: Path, only: Sequence[str]) -> list[Todo]:
    """As `survey`, before it is asked who dominates whom."""
    wanted = teaching_order(_wanted(spec, only))
    entries = journal.read_journal(out / JOURNAL)
    last = {entry.place: entry for entry in journal.latest(entries)}
    found = {entry.key for entry in entries if entry.cell is not None}
    return [_todo(job, last.get(job.place), found) for job in wanted]


def _decided(todo: Todo, cells: Sequence[Cell]) -> Todo:
    """The same, or that a sibling among *cells* makes measuring it pointless."""
    skip = None if todo.state == "done" else dominated(todo.job, cells)
    return todo if skip is None else Todo(todo.job, "skipped", skip.reason)


def fill(
    spec: Spec,
    out: Path,
    find: Find,
    *,
    only: Sequence[str] = (),
    on_event: Callable[[Event], None] = lambda _: None,
    endpoint: Endpoint = launch.endpoint,
) -> list[Cell]:
    """The spec's cells that have figures now, in the spec's order, imported ones first.

    Cells that the folder has already are not run again unless what defines them has changed. A
    cell that fails is recorded with its reason, the next one follows, and the next fill tries it
    again. Each result is on the disk before the next cell starts, so an interrupted fill loses
    only the cell in hand.

    Raises:
        UsageError: a workload cannot be read, the folder is in use, or as `survey`; nothing has
            been started then.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made a folder ({error.strerror})") from None
    with _locked(out):
        todo = [item for item in _standing(spec, out, only) if item.state != "done"]
        _check_workloads([item.job for item in todo])
        _settle(spec, out)
        for index, item in enumerate(todo, start=1):
            at = (index, len(todo))
            skip = dominated(item.job, _known(spec, out)) if spec.skip_dominated else None
            if skip is None:
                _fill_one(item.job, out, find, endpoint, on_event, at)
            else:
                _skip(item.job, out, skip)
                on_event(_event("skipped", item.job, at, error=skip.reason))
        return _cells(spec, out)


def _fill_one(
    job: CellJob,
    out: Path,
    find: Find,
    endpoint: Endpoint,
    on_event: Callable[[Event], None],
    at: tuple[int, int],
) -> None:
    on_event(_event("started", job, at))
    entry = _attempt(job, out, find, endpoint)
    journal.append(out / JOURNAL, entry)
    kind: Kind = "landed" if entry.cell is not None else "failed"
    on_event(_event(kind, job, at, cell=entry.cell, error=entry.error))


def _event(
    kind: Kind,
    job: CellJob,
    at: tuple[int, int],
    cell: Cell | None = None,
    error: str | None = None,
) -> Event:
    return Event(kind=kind, name=job.name, index=at[0], total=at[1], cell=cell, error=error)


def _skip(job: CellJob, out: Path, skip: Dominated) -> None:
    """Records the prediction under a key of its own: without the flag the job is run again."""
    entry = Entry(
        key=_skipped(job), place=job.place, name=job.name, at_utc=_now(), cell=skip.cell,
        error=None if skip.cell is not None else skip.reason,
    )  # fmt: skip
    last = {e.place: e for e in journal.read_journal(out / JOURNAL)}.get(job.place)
    if last is None or msgspec.structs.replace(last, at_utc=entry.at_utc) != entry:
        journal.append(out / JOURNAL, entry)


def _skipped(job: CellJob) -> str:
    return f"{job.key}-skipped"


def _known(spec: Spec, out: Path) -> list[Cell]:
    """All cells that there are now, in no order."""
    entries = journal.latest(journal.read_journal(out / JOURNAL))
    jobs = {job.place: job for job in spec.jobs}
    found = [
        entry.cell for entry in entries
        if entry.cell is not None and entry.place in jobs and entry.key == jobs[entry.place].key
    ]  # fmt: skip
    return [*spec.imported, *found]


def _attempt(job: CellJob, out: Path, find: Find, endpoint: Endpoint) -> Entry:
    """What became of the cell; a failure that is not a bug of ours is data."""
    folder = out / "cells" / job.slug
    cell, error = None, None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with endpoint(job, folder) as url:
            cell = find(job, url, folder)
    except ServecapError as failure:
        error = str(failure)
        log = folder / launch.LOG
        if isinstance(job.source, Command) and log.is_file() and str(log) not in error:
            error = f"{error}; {launch.tail(log)}"
    except OSError as failure:
        if failure.errno not in _DISK:
            raise
        error = f"cannot write to {str(folder)!r} ({failure.strerror})"
    return Entry(key=job.key, place=job.place, name=job.name, at_utc=_now(), cell=cell, error=error)


def _cells(spec: Spec, out: Path) -> list[Cell]:
    last = {e.place: e for e in journal.latest(journal.read_journal(out / JOURNAL))}
    entries = [last.get(job.place) for job in spec.jobs]
    keys = [
        (job.key, _skipped(job)) if spec.skip_dominated else (job.key,) for job in spec.jobs
    ]  # fmt: skip
    found = [
        entry.cell for entry, key in zip(entries, keys, strict=True)
        if entry is not None and entry.cell is not None and entry.key in key
    ]  # fmt: skip
    return [*spec.imported, *found]


def _todo(job: CellJob, last: Entry | None, found: set[str]) -> Todo:
    if job.key in found:
        return Todo(job, "done")
    if last is None or last.error == GONE:
        return Todo(job, "new")
    if last.key == _skipped(job):
        return Todo(job, "new", "skipped before")
    if last.key != job.key:
        return Todo(job, "changed", "its settings are not those of the last time")
    return Todo(job, "failed", last.error or "")


def _settle(spec: Spec, out: Path) -> None:
    """Makes the journal's last word on each place what the spec now says without any run.

    Imported cells land, results of settings that are back again count again, and places that
    the spec no longer has are marked so that no plan counts them.
    """
    entries = journal.read_journal(out / JOURNAL)
    last = {entry.place: entry for entry in journal.latest(entries)}
    results = {entry.key: entry for entry in entries if entry.cell is not None}
    for cell in spec.imported:
        entry = Entry(
            key=digest(cell), place=imported_place(cell), name=describe(cell), at_utc=_now(),
            cell=cell,
        )  # fmt: skip
        _append_new(out, entry, last)
    for job in spec.jobs:
        if job.key in results:
            _append_new(out, results[job.key], last)
    kept = {imported_place(cell) for cell in spec.imported} | {job.place for job in spec.jobs}
    for place, entry in last.items():
        if place not in kept and entry.error != GONE:
            gone = msgspec.structs.replace(entry, at_utc=_now(), cell=None, error=GONE)
            journal.append(out / JOURNAL, gone)


def _append_new(out: Path, entry: Entry, last: dict[str, Entry]) -> None:
    before = last.get(entry.place)
    if before is None or before.key != entry.key or before.cell is None:
        journal.append(out / JOURNAL, entry)


def _wanted(spec: Spec, only: Sequence[str]) -> list[CellJob]:
    terms: dict[str, list[str]] = {}
    for term in only:
        key, equals, pattern = term.partition("=")
        key, pattern = key.strip().casefold(), pattern.strip().casefold()
        if key not in ONLY_KEYS or not equals or not pattern:
            raise UsageError(
                f"--only {term!r} cannot be read: write KEY=PATTERN with a key of "
                f"{', '.join(ONLY_KEYS)}, for example gpu=a40"
            )
        terms.setdefault(key, []).append(pattern)
    found = [
        job for job in spec.jobs
        if all(_fits(job, key, patterns) for key, patterns in terms.items())
    ]  # fmt: skip
    if terms and not found:
        names = "; ".join(job.name for job in spec.jobs[:5]) or "only imported cells"
        raise UsageError(f"--only {' '.join(only)}: no cell fits; the spec has {names}")
    return found


def _fits(job: CellJob, key: str, patterns: list[str]) -> bool:
    value = job.values()[key].casefold()
    return any(fnmatchcase(value, pattern) for pattern in patterns)


def _check_workloads(jobs: Sequence[CellJob]) -> None:
    """Returns if every workload can be read; each is read once."""
    for workload in dict.fromkeys(job.scenario.workload for job in jobs):
        load_workload(workload)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The folder for this process alone; the lock goes with the process, however it ends."""
    try:
        opened = (out / ".lock").open("w")
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from None
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{out}: another servecap is filling this matrix") from None
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

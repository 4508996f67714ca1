"""A run on disk: `run.json` (the header) and `records.jsonl`, one line per ended request.

Records are written as they end, so that a run which is killed leaves all finished ones readable.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from servecap import record
from servecap.errors import UNREADABLE, DiskError, UsageError
from servecap.kept import Kept
from servecap.record import Record
from servecap.run import Header, Run

HEADER = "run.json"
RECORDS = "records.jsonl"
LATER = "later.jsonl"
_READ_BYTES = 1 << 18  # at a time: a record may have many chunks, and a run many records


class Later:
    """What ended after a level of a search and before the next one, whose it is.

    It waits in the folder of the level before, so that a search which is killed there loses none.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LATER
        self._fd = -1

    def add(self, item: Record) -> None:
        """Append one record.

        Raises:
            DiskError: the disk is full or gone.
        """
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(self._fd, record.encode(item) + b"\n")
        except OSError as error:
            raise DiskError(
                f"cannot write to {str(self._path)!r} ({error.strerror}): the search was stopped, "
                "its levels are kept"
            ) from None

    def close(self, *, keep: bool = False) -> None:
        """The records have gone on into the next level, or there is none: the file goes.

        With *keep* it stays: they could not go on.
        """
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if not keep:
                with contextlib.suppress(OSError):
                    self._path.unlink()


class RunWriter:
    """Writes one run; every record reaches the operating system before `add` returns."""

    def __init__(self, folder: Path, header: Header) -> None:
        """
        Raises:
            UsageError: the folder cannot be made or written, or holds a run already.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(
                folder / RECORDS, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644
            )
            write_json(folder / HEADER, header)
        except FileExistsError:
            raise UsageError(
                f"output folder {str(folder)!r} holds a run already: name another with --out"
            ) from None
        except OSError as error:
            raise UsageError(
                f"output folder {str(folder)!r} cannot be written ({error.strerror}): "
                "name another with --out"
            ) from None
        self._written = 0

    def add(self, item: Record) -> None:
        """Append one record.

        Raises:
            DiskError: the disk is full or gone; what was written before is kept.
        """
        line = record.encode(item) + b"\n"
        try:
            sent = os.write(self._fd, line)
            while sent < len(line):
                sent += os.write(self._fd, line[sent:])
        except OSError as error:
            raise DiskError(
                f"cannot write to {str(self.folder / RECORDS)!r} ({error.strerror}): "
                f"the run was stopped, {self._written} finished records are kept"
            ) from None
        self._written += 1

    def close(self, header: Header) -> None:
        """Replace the header by its final form; calling it twice does no harm."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        write_json(self.folder / HEADER, header)


def write_json(path: Path, value: object) -> None:
    """Write *value* as indented JSON so that *path* holds either the old or the new whole.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    data = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def read_run(folder: Path) -> Run:
    """The run stored in *folder*; of a killed run, all whole records (of a soak, the latest).

    Raises:
        UsageError: this is no run folder, or a file in it is damaged (beyond a cut-off last line).
    """
    try:
        header = msgspec.json.decode((folder / HEADER).read_bytes(), type=Header)
        kept = Kept(header.scenario)
        with open(folder / RECORDS, "rb", buffering=_READ_BYTES) as lines, uncollected():
            _read_into(kept, lines, str(folder / RECORDS))
    except FileNotFoundError as error:
        raise UsageError(
            f"{str(folder)!r} is no run folder: it has no {Path(error.filename).name}"
        ) from None
    except OSError as error:
        raise UsageError(f"{str(folder)!r} cannot be read: {error.strerror}") from None
    except UNREADABLE as error:
        raise UsageError(f"{str(folder / HEADER)!r} is damaged: {error}") from None
    return kept.run(header, str(folder))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: it would walk all records, again and again, in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_into(kept: Kept, lines: Iterable[bytes], path: str) -> None:
    """Every whole line as a record; a killed run may have been in the middle of its last.

    Raises:
        UsageError: a line is damaged.
    """
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            kept.add(record.decode(line))
        except UNREADABLE as error:
            raise UsageError(f"{path!r} line {number} is damaged: {error}") from None

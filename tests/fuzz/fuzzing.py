"""Feeds broken inputs to every reader, and keeps what none of its documented errors explains.

python tests/fuzz/fuzzing.py --executions 10_000_000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "foreign"))

from fuzz_targets import Reader, readers
from mutator import Mutator

from servecap.errors import ServecapError

HANG_S = 20.0  # of CPU time that one input may take
_KEPT = 400  # bytes of an input that are shown


class Hang(BaseException):
    """One input took far too long."""


@dataclass
class Tally:
    """What became of the inputs of one reader."""

    name: str
    executions: int = 0
    taken: int = 0  # read without an error
    seconds: float = 0.0
    failures: dict[str, bytes] = field(default_factory=dict)  # where and what -> the first input


def fuzz(reader: Reader, executions: int, seed: int) -> Tally:
    """So many inputs for one reader; the same seed makes the same ones."""
    mutator = Mutator(reader.seeds, Random(zlib.crc32(reader.name.encode()) ^ seed))
    tally = Tally(reader.name)
    began_s = time.monotonic()
    with _watched() as watch:
        for number in range(executions):
            if number % 64 == 0:
                watch()
            data = mutator.next()
            tally.executions += 1
            try:
                reader.call(data)
                tally.taken += 1
            except reader.errors as error:
                if isinstance(error, ServecapError) and "\n" in str(error):
                    tally.failures.setdefault(f"an error of several lines: {_where(error)}", data)
            except (Exception, Hang) as error:  # noqa: BLE001 - to find them is what this is for
                tally.failures.setdefault(_where(error), data)
    tally.seconds = time.monotonic() - began_s
    return tally


@contextmanager
def _watched() -> Iterator[Callable[[], object]]:
    def hang(_: int, __: FrameType | None) -> NoReturn:
        raise Hang

    before = signal.signal(signal.SIGPROF, hang)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_PROF, HANG_S)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _where(error: BaseException) -> str:
    """The kind of the error and the line of ours that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "servecap" in f.filename or "fuzz_targets" in f.filename]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


def main() -> None:
    """A long run over all readers, each with its share; the counts as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="readers whose name holds this")
    given = parser.parse_args()
    chosen = [reader for reader in readers() if given.only in reader.name]
    whole = sum(reader.weight for reader in chosen)
    failed = total = 0
    for reader in chosen:
        tally = fuzz(reader, round(given.executions * reader.weight / whole), given.seed)
        total += tally.executions
        failed += len(tally.failures)
        line = {
            "reader": tally.name,
            "executions": tally.executions,
            "taken": tally.taken,
            "per_s": round(tally.executions / max(tally.seconds, 1e-9)),
            "failures": {why: repr(data[:_KEPT]) for why, data in tally.failures.items()},
        }
        print(json.dumps(line), flush=True)
    print(json.dumps({"executions": total, "failures": failed}), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

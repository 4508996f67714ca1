"""What is stored of a run's surroundings: one line for each look at one source."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

import msgspec

from servecap.errors import UNREADABLE

Source = Literal["server", "gpu", "client", "node", "run"]  # run: only to say that it is over
TELEMETRY = "telemetry.jsonl"


class Histogram(msgspec.Struct, frozen=True):
    """Cumulative counts at or below each bound, and of all; as Prometheus has them."""

    bounds_s: tuple[float, ...]
    counts: tuple[float, ...]  # one more than bounds
    sum_s: float

    @property
    def count(self) -> float:
        return self.counts[-1]

    def since(self, before: Histogram) -> Histogram | None:
        """What came after *before*; None where the server was started anew, or nothing came."""
        if before.bounds_s != self.bounds_s or self.count <= before.count:
            return None
        counts = tuple(b - a for a, b in zip(before.counts, self.counts, strict=True))
        if min(counts) < 0:
            return None
        return Histogram(self.bounds_s, counts, self.sum_s - before.sum_s)

    @property
    def mean_s(self) -> float:
        return self.sum_s / self.count

    def between(self, share: float) -> tuple[float, float | None]:
        """The bounds of the bucket that holds this quantile; None: above the last bound."""
        wanted = share * self.count
        low = 0.0
        for bound, count in zip(self.bounds_s, self.counts, strict=False):
            if count >= wanted:
                return low, bound
            low = bound
        return low, None


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One look: figures by their common names, or why there are none."""

    at_s: float  # since the run's start, when the answer was there
    source: Source
    took_s: float  # how long the answer took: a server may be too busy to tell
    values: dict[str, float] = msgspec.field(default_factory=dict)
    histograms: dict[str, Histogram] = msgspec.field(default_factory=dict)
    error: str | None = None
    over: bool = False  # it will not be asked again


_decoder = msgspec.json.Decoder(Sample)


def end(folder: Path, at_s: float) -> None:
    """The run in *folder* is over, *at_s* after its start; what is written later is not of it.

    The sampler is a process of its own and would have to be waited for. A line that is appended
    stands whole before or after this one, so that the run that is returned now and the one that is
    read later have the same samples.
    """
    over = Sample(at_s=round(at_s, 4), source="run", took_s=0.0, over=True)
    with contextlib.suppress(OSError), (folder / TELEMETRY).open("ab", buffering=0) as file:
        file.write(msgspec.json.encode(over) + b"\n")


def read(folder: Path) -> tuple[Sample, ...]:
    """The samples of the run in *folder*, if any; a cut-off line is left out."""
    try:
        lines = (folder / TELEMETRY).read_bytes().split(b"\n")
    except OSError:
        return ()
    found: list[Sample] = []
    for line in lines[:-1]:
        try:
            sample = _decoder.decode(line)
        except UNREADABLE:
            continue  # figures beside the measurement: what is whole is used
        if sample.source == "run":
            break
        found.append(sample)
    return tuple(found)

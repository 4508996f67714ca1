"""The times between successive chunks of many answers at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from servecap.record import Record
from servecap.stats import Floats

_BLOCK = 4096  # answers whose chunks are held as one array at a time: it fits into caches


def gaps_s(records: Sequence[Record]) -> Floats:
    """All of them in one array, answer by answer; nothing of answers of fewer than two chunks."""
    found = np.empty(sum(max(0, len(r.chunk_s) - 1) for r in records))
    at = 0
    for _, gaps, _ in _blocks(records):
        found[at : at + len(gaps)] = gaps
        at += len(gaps)
    return found


def longest_gaps_s(records: Sequence[Record]) -> list[float | None]:
    """The longest of each answer, in the order of the records; None with fewer than two chunks."""
    longest: list[float | None] = [None] * len(records)
    for places, gaps, starts in _blocks(records):
        for place, gap_s in zip(places, np.maximum.reduceat(gaps, starts).tolist(), strict=True):
            longest[place] = gap_s
    return longest


def _blocks(records: Sequence[Record]) -> Iterator[tuple[list[int], Floats, list[int]]]:
    """Which records, their gaps joined, and where those of each begin."""
    streamed = [i for i, r in enumerate(records) if len(r.chunk_s) > 1]
    for first in range(0, len(streamed), _BLOCK):
        places = streamed[first : first + _BLOCK]
        streams = [records[i].chunk_s for i in places]
        gaps = np.diff(np.frombuffer(b"".join(streams)))
        ends = np.cumsum([len(stream) for stream in streams])
        keep = np.ones(len(gaps), dtype=np.bool_)
        keep[ends[:-1] - 1] = False  # from the end of one answer to the start of the next
        starts = [0, *(ends - np.arange(1, len(ends) + 1))[:-1].tolist()]
        yield places, gaps[keep], starts

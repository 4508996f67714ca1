"""The times between successive chunks of many answers at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from servecap.record import Record
from servecap.stats import Floats, Ints

_BLOCK = 512  # answers whose chunks are held as one array at a time: it fits into caches


def gaps_s(records: Sequence[Record]) -> Floats:
    """All of them in one array, answer by answer; nothing of answers of fewer than two chunks."""
    found = np.empty(sum(max(0, len(r.chunk_s) - 1) for r in records))
    at = 0
    for _, gaps, ends in _blocks(records):
        keep = np.ones(len(gaps), dtype=np.bool_)
        keep[ends[:-1] - 1] = False
        own = gaps[keep]
        found[at : at + len(own)] = own
        at += len(own)
    return found


def longest_gaps_s(records: Sequence[Record]) -> Floats:
    """The longest of each answer, in the order of the records; NaN with fewer than two chunks."""
    longest = np.full(len(records), np.nan)
    for places, gaps, ends in _blocks(records):
        gaps[ends[:-1] - 1] = -np.inf
        longest[places] = np.maximum.reduceat(gaps, np.concatenate([[0], ends[:-1]]))
    return longest


def _blocks(records: Sequence[Record]) -> Iterator[tuple[list[int], Floats, Ints]]:
    """Which records, the differences of their joined times, and where the times of each end.

    A difference just before such an end is of the next answer's first chunk: it is no gap.
    """
    streamed = [i for i, r in enumerate(records) if len(r.chunk_s) > 1]
    for first in range(0, len(streamed), _BLOCK):
        places = streamed[first : first + _BLOCK]
        streams = [records[i].chunk_s for i in places]
        yield places, np.diff(np.frombuffer(b"".join(streams))), np.cumsum(list(map(len, streams)))

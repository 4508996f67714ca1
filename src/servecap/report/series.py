"""Time series and distributions computed from records: pure functions, ready to be drawn.

Times are seconds since the run's start. A bin `i` is `[edges[i], edges[i + 1])`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from servecap.columns import Columns
from servecap.record import Counts, Outcome, Record
from servecap.stats import Floats, percentile

Segments = list[tuple[float, float, int]]  # start_s, end_s, row

_BATCH = 4096  # records whose chunks are held as one array at a time: bounds the memory


def bin_edges(start_s: float, end_s: float, most: int = 120) -> Floats:
    """Edges of at most *most* + 1 bins of a round width that cover [start_s, end_s].

    The width is 1, 2 or 5 times a power of ten, and at least a tenth of a second.

    >>> bin_edges(0.0, 10.0, most=5).tolist()
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    span_s = max(end_s - start_s, 1e-9)
    raw = max(span_s / most, 0.1)
    power = 10.0 ** math.floor(math.log10(raw) + 1e-9)
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(start_s / step + 1e-9)
    last = max(first + 1, math.ceil(end_s / step - 1e-9))
    edges: Floats = np.arange(first, last + 1, dtype=np.float64) * step
    return edges


def mean_level(starts_s: Floats, ends_s: Floats, edges: Floats) -> Floats:
    """How many intervals [start, end) were open, as the mean over each bin.

    >>> mean_level(np.array([0.0, 1.0]), np.array([2.0, 2.0]), np.array([0.0, 1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    area = _area(starts_s, edges) - _area(ends_s, edges)
    level: Floats = np.maximum(np.diff(area) / np.diff(edges), 0.0)
    return level


def _area(moments: Floats, at: Floats) -> Floats:
    """Sum over the moments of max(0, t - moment), for each t."""
    ordered = np.sort(moments)
    total = np.concatenate([[0.0], np.cumsum(ordered)])
    passed = np.searchsorted(ordered, at, side="right")
    area: Floats = passed * at - total[passed]
    return area


def per_s(moments_s: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    """Events (or their weights) per second in each bin."""
    counts, _ = np.histogram(moments_s, bins=edges, weights=weights)
    rate: Floats = counts / np.diff(edges)
    return rate


def users_present(told: Columns, edges: Floats, stay_s: float | None = None) -> Floats:
    """Users who had started and not yet left, as the mean over each bin.

    Args:
        stay_s: until when every user stays; None: each leaves at the end of its last request.
    """
    users, of = np.unique(told.user, return_inverse=True)
    starts = np.full(len(users), math.inf)
    ends = np.full(len(users), -math.inf if stay_s is None else stay_s)
    np.minimum.at(starts, of, told.planned_s)
    if stay_s is None:
        np.maximum.at(ends, of, told.end_s)
    return mean_level(starts, ends, edges)


def output_tokens_per_s(records: Sequence[Record], *edges: Floats) -> list[Floats]:
    """Output tokens that arrived per second in each bin; the edges of each set evenly spaced.

    A record's chunks are weighted so that they sum to its `output_tokens` (the server's count
    may differ from what the chunks tell); an answer that was not streamed counts at its end.
    """
    counts = [np.zeros(len(one) - 1) for one in edges]
    for i in range(0, len(records), _BATCH):
        batch = records[i : i + _BATCH]
        streamed = [r for r in batch if r.chunk_s]
        whole = [r for r in batch if not r.chunk_s and r.ok and r.output_tokens]
        told = [
            (
                np.array([r.end_s for r in whole], dtype=np.float64),
                np.array([r.output_tokens for r in whole], dtype=np.float64),
            ),
            *([_chunks(streamed)] if streamed else []),
        ]
        for times, weights in told:
            for count, one in zip(counts, edges, strict=True):
                count += _binned(times, weights, one)
    return [count / np.diff(one) for count, one in zip(counts, edges, strict=True)]


def _binned(times: Floats, weights: Floats, edges: Floats) -> Floats:
    """Sums of weights in even bins: without the sorting that a general histogram needs."""
    bins = len(edges) - 1
    place = (times - edges[0]) / ((edges[-1] - edges[0]) / bins)
    if len(place) and not 0 <= place.min() <= place.max() < bins:
        place[times == edges[-1]] = bins - 1  # the last bin is closed
        inside = (place >= 0) & (place < bins)
        place, weights = place[inside], weights[inside]
    # Mostly there is one token in each chunk, and counting is faster than summing.
    alike = None if (weights == 1).all() else weights
    return np.bincount(place.astype(np.int64), weights=alike, minlength=bins).astype(np.float64)


def _chunks(records: Sequence[Record]) -> tuple[Floats, Floats]:
    """When each chunk came and how many tokens it counts for."""
    lengths = np.array([len(r.chunk_s) for r in records])
    times = np.frombuffer(b"".join(r.chunk_s for r in records), dtype=np.float64)
    told = [_tokens_told(r) for r in records]
    tokens = np.frombuffer(b"".join(told), dtype=np.uint32).astype(np.float64)
    sums = np.add.reduceat(tokens, np.concatenate([[0], np.cumsum(lengths)[:-1]]))
    # A record cut off before its usage figures keeps what the chunks told.
    wanted = np.array([np.nan if r.output_tokens is None else r.output_tokens for r in records])
    scale = np.where(np.isnan(wanted), 1.0, wanted / sums)
    return times, tokens * np.repeat(scale, lengths)


def _tokens_told(record: Record) -> Counts:
    counts = record.chunk_tokens
    if len(counts) == len(record.chunk_s) and any(counts):
        return counts
    return Counts([1] * len(record.chunk_s))


def errors_per_bin(records: Sequence[Record], kinds: Sequence[str], edges: Floats) -> list[Floats]:
    """Failed requests per bin for each of their *kinds*, by when they ended."""
    ends = np.array([r.end_s for r in records])
    labels = np.array(kinds, dtype=object)
    return [
        np.histogram(ends[labels == kind], bins=edges)[0].astype(np.float64)
        for kind in error_kinds(kinds)
    ]


def error_kinds(kinds: Sequence[str]) -> list[str]:
    """The kinds that occur, most frequent first."""
    seen = Counter(kinds)
    return sorted(seen, key=lambda kind: (-seen[kind], kind))


def ecdf(values: Floats, failed: int = 0, most: int = 400) -> tuple[Floats, Floats]:
    """Ascending values and the share of all requests at or below each, thinned to *most* points.

    *failed* requests count as infinitely slow, so that with failures the share ends below 1.
    The smallest and the largest value are always kept.
    """
    ordered = np.sort(values[np.isfinite(values)])
    n = len(ordered)
    if not n:
        return ordered, ordered
    ranks = np.unique(np.linspace(1, n, min(n, most)).round().astype(int))
    # The tail is what limits are about: every one of the largest is kept.
    ranks = np.union1d(ranks, np.arange(max(1, n - 49), n + 1))
    return ordered[ranks - 1], ranks / (n + failed)


def running_mean(values: Floats) -> Floats:
    """The mean of the values up to and including each."""
    mean: Floats = np.cumsum(values) / np.arange(1, len(values) + 1)
    return mean


class Bands(msgspec.Struct, frozen=True, kw_only=True):
    """Nearest-rank percentiles of the values that fall into each bin; NaN where there is none."""

    middle: Floats  # of the bins
    count: Floats
    low: Floats  # p10
    median: Floats
    high: Floats  # p90
    top: Floats  # the largest


def bands(at: Floats, values: Floats, edges: Floats) -> Bands:
    """The values' spread within each bin of *at*."""
    bins = np.searchsorted(edges, at, side="right") - 1
    rows = []
    for i in range(len(edges) - 1):
        inside = np.sort(values[bins == i])
        if len(inside):
            marks = [percentile(inside, share) for share in (0.1, 0.5, 0.9)]
            rows.append((float(len(inside)), *marks, float(inside[-1])))
        else:
            rows.append((0.0, math.nan, math.nan, math.nan, math.nan))
    table = np.array(rows).T
    return Bands(
        middle=(edges[:-1] + edges[1:]) / 2,
        count=table[0],
        low=table[1],
        median=table[2],
        high=table[3],
        top=table[4],
    )


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """What the first users were doing: segments of time by row, one row for each user."""

    users: tuple[int, ...]
    end_s: float
    waiting: Segments
    streaming: Segments
    thinking: Segments
    failed: list[tuple[float, int]]  # when, row


def phases(
    records: Sequence[Record], *, users: int = 40, start_s: float = 0.0, most: int = 1200
) -> Phases:
    """The phases of the lowest-numbered users from *start_s* on, at most *most* segments.

    Time is cut for all users at once where there would be more, so that no row ends early. A
    request without a first token waits to its end. Thinking is the time from an answer's end to
    the same user's next planned request.
    """
    chosen = sorted({r.user for r in records})[:users]
    rows = {user: row for row, user in enumerate(chosen)}
    mine = sorted(
        (r for r in records if r.user in rows and r.end_s > start_s), key=lambda r: r.planned_s
    )
    kept = mine[: most // 3]
    end_s = max((r.end_s for r in mine), default=start_s)
    if len(kept) < len(mine):
        end_s = mine[len(kept)].planned_s
    found = Phases(
        users=tuple(chosen), end_s=end_s, waiting=[], streaming=[], thinking=[], failed=[]
    )
    free: dict[int, float] = {}
    for r in kept:
        _add_request(found, r, rows[r.user], free.get(r.user), start_s)
        free[r.user] = r.end_s
    if len(kept) < len(mine):  # cut short: whoever is between two requests is thinking
        for user, since_s in free.items():
            _add(found.thinking, since_s, end_s, rows[user], start_s, end_s)
    return found


def _add_request(found: Phases, r: Record, row: int, free_s: float | None, start_s: float) -> None:
    first_s = r.end_s if r.first_token_s is None else r.first_token_s
    if free_s is not None:
        _add(found.thinking, free_s, r.planned_s, row, start_s, found.end_s)
    _add(found.waiting, r.planned_s, first_s, row, start_s, found.end_s)
    _add(found.streaming, first_s, r.end_s, row, start_s, found.end_s)
    if not r.ok and r.outcome not in (Outcome.CENSORED, Outcome.CANCELLED):
        found.failed.append((min(r.end_s, found.end_s), row))


def _add(
    to: Segments, begin_s: float, end_s: float, row: int, start_s: float, until_s: float
) -> None:
    begin_s, end_s = max(begin_s, start_s), min(end_s, until_s)
    if end_s > begin_s:
        to.append((begin_s, end_s, row))

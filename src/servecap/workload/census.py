"""What a data set or a trace amounts to: lengths, arrivals, shared prefixes and sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from servecap.record import TokenSource
from servecap.stats import Distribution
from servecap.stats import describe as distribution
from servecap.workload.describe import describe
from servecap.workload.replay import prefix_tokens
from servecap.workload.source import Workload
from servecap.workload.traces import Row, Trace

DISPERSION_S = 60.0  # counts are taken over so long, to tell bursts that outlast a few gaps


class Arrivals(msgspec.Struct, frozen=True, kw_only=True):
    """When the requests of a trace came. A Poisson process has a cv and a dispersion of 1."""

    span_s: float
    rate_rps: float | None  # None: all came at once
    gaps_s: Distribution | None
    cv: float | None  # of the gaps: standard deviation over mean
    dispersion: float | None  # variance over mean of the counts per 60 s; None: under 10 minutes


class Census(msgspec.Struct, frozen=True, kw_only=True):
    """A workload in figures. `records` = `used` + what was dropped."""

    name: str
    format: str
    records: int
    used: int
    dropped: dict[str, int]
    in_tokens: Distribution | None
    out_tokens: Distribution | None
    token_source: TokenSource | None  # None: told by the trace
    arrivals: Arrivals | None  # None: a data set has none
    shared_prefix_share: float  # of all input tokens: leading ones that another request has too
    sessions: int  # with more than one turn
    turns: Distribution | None  # of those


def of_trace(name: str, trace: Trace) -> Census:
    """The figures of a trace."""
    by_session = Counter(row.session for row in trace.rows if row.session is not None)
    turns = [count for count in by_session.values() if count > 1]
    return Census(
        name=name,
        format=f"{trace.format} trace",
        records=trace.records,
        used=len(trace.rows),
        dropped=trace.dropped,
        in_tokens=distribution([row.in_tokens for row in trace.rows]),
        out_tokens=distribution([row.out_tokens for row in trace.rows]),
        token_source=None,
        arrivals=arrivals(trace.rows),
        shared_prefix_share=trace_prefix_share(trace.rows, trace.block_tokens),
        sessions=len(turns),
        turns=distribution(turns),
    )


def of_workload(workload: Workload) -> Census:
    """The figures of a data set: of the requests that it makes, with `data` lengths."""
    told = describe(workload)
    samples = workload.samples
    tokens = sum(sample.prompt_tokens or 0 for sample in samples)
    shared = sum(sample.prefix_tokens or 0 for sample in samples)
    asked = (1 + sum(turn.role == "user" for turn in sample.turns) for sample in samples)
    turns = [count for count in asked if count > 1]
    return Census(
        name=workload.name,
        format="data set",
        records=workload.records,
        used=len(samples),
        dropped=workload.dropped,
        in_tokens=told.prompt_tokens,
        out_tokens=told.answer_tokens,
        token_source=told.token_source,
        arrivals=None,
        shared_prefix_share=shared / tokens if tokens else 0.0,
        sessions=len(turns),
        turns=distribution(turns),
    )


def arrivals(rows: Sequence[Row]) -> Arrivals:
    """How the rows, in the order of their times, came."""
    times = np.asarray([row.due_s for row in rows])
    gaps = np.diff(times)
    span_s = float(times[-1] - times[0])
    dispersion = None
    if span_s >= 10 * DISPERSION_S:
        whole = int(span_s // DISPERSION_S)
        edges = times[0] + DISPERSION_S * np.arange(whole + 1)
        counts, _ = np.histogram(times, bins=edges)
        dispersion = float(counts.var(ddof=1) / counts.mean())
    return Arrivals(
        span_s=span_s,
        rate_rps=len(gaps) / span_s if span_s > 0 else None,
        gaps_s=distribution(gaps),
        cv=float(gaps.std(ddof=1) / gaps.mean()) if len(gaps) > 1 and span_s > 0 else None,
        dispersion=dispersion,
    )


def trace_prefix_share(rows: Sequence[Row], block_tokens: int | None) -> float:
    """The share of all input tokens that begin another of these rows too."""
    shared = Counter(h for row in rows for h in dict.fromkeys(row.blocks))
    alike = sum(prefix_tokens(row, shared, block_tokens) for row in rows)
    return alike / sum(row.in_tokens for row in rows)

"""What any other tool's file tells of its requests, and how that becomes records."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import msgspec

from servecap.record import Counts, Outcome, Record, Times, TokenSource

REPLAY_SHARE = 0.05  # a replayed run may last so much longer or shorter than the tool's
_SAME_S = 1e-6  # times of two clocks' roundings
_MOST = 1e12  # of seconds, tokens or whatever is counted
_MOST_COUNT = 2**31 - 1  # tokens of a request
_MOST_ERROR = 500  # characters of an error that are kept


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the file tells it; seconds, `sent_s` and `planned_s` on the tool's clock.

    The other times count from the sending. None (or empty) is what the file does not tell.
    """

    sent_s: float | None = None
    planned_s: float | None = None
    latency_s: float | None = None
    ttft_s: float | None = None
    last_token_s: float | None = None
    chunk_s: Sequence[float] = ()
    chunk_tokens: Sequence[int] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    token_source: TokenSource = TokenSource.TOKENIZER
    outcome: Outcome = Outcome.OK
    status: int | None = None
    error: str | None = None
    session: int | None = None
    turn: int = 0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How the tool loaded the server: requests kept in flight, or a rate; None is not told.

    `burstiness` is the shape of the gamma distributed gaps (1: Poisson, None: equal gaps).
    `fixed`: it sent a fixed number of requests and waited for all; else it stopped by the clock.
    """

    in_flight: int | None = None
    rate_rps: float | None = None
    burstiness: float | None = 1.0
    fixed: bool = True
    at_once: bool = False  # every request was sent at the start


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The tool's own figures: seconds by statistic (mean, p50, ...), rates per second."""

    requests_ok: int | None = None
    requests_failed: int | None = None
    duration_s: float | None = None
    qps: float | None = None
    output_tps: float | None = None
    total_tps: float | None = None
    prompt_tokens: float | None = None  # mean
    output_tokens: float | None = None  # mean
    ttft: dict[str, float] = msgspec.field(default_factory=dict)
    tpot: dict[str, float] = msgspec.field(default_factory=dict)
    e2e: dict[str, float] = msgspec.field(default_factory=dict)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One load test in a file of another tool. Without rows, only the tool's own figures are known
    and `why_no_rows` says why."""

    tool: str
    load: Load
    told: Told
    rows: tuple[Row, ...] = ()
    why_no_rows: str = ""
    model: str | None = None
    api: str | None = None
    url: str | None = None
    streamed: bool = True
    started: str | None = None
    workload: str | None = None
    notes: tuple[str, ...] = ()


def check(found: Found) -> None:
    """Nothing, if all figures are such as can be.

    Raises:
        ValueError: one cannot; the message names it.
    """
    load, told = found.load, found.told
    _check("the load", load.in_flight, load.rate_rps, load.burstiness)
    figures = [getattr(told, name) for name in Told.__struct_fields__]
    _check("a mean or rate", *(value for value in figures if not isinstance(value, dict)))
    for times in (told.ttft, told.tpot, told.e2e):
        _check("a latency", *times.values())
    for number, row in enumerate(found.rows, start=1):
        lengths = (row.latency_s, row.ttft_s, row.last_token_s, *row.chunk_s)
        _check(f"a time of request {number}", *lengths)
        _check(f"a time of request {number}", row.sent_s, row.planned_s, least=-_MOST)
        counts = (row.prompt_tokens, row.output_tokens, row.cached_tokens, *row.chunk_tokens)
        _check(f"a count of request {number}", *counts, most=_MOST_COUNT)


def _check(what: str, *values: float | None, least: float = 0.0, most: float = _MOST) -> None:
    for value in values:
        if value is not None and not least <= value <= most:  # also NaN
            raise ValueError(f"{what} is {value}")


def failure(error: str) -> Outcome:
    """The outcome that the text of an error stands for.

    >>> failure("Traceback ...\\nTimeoutError"), failure("Service Unavailable")
    (<Outcome.TIMEOUT: 'timeout'>, <Outcome.HTTP_ERROR: 'http_error'>)
    """
    text = error.casefold()
    if "timeout" in text or "timed out" in text:
        return Outcome.TIMEOUT
    if "cancel" in text:
        return Outcome.CANCELLED
    if "refused" in text or "clientconnectorerror" in text or "cannot connect" in text:
        return Outcome.REFUSED
    return Outcome.BROKEN_STREAM if "traceback" in text else Outcome.HTTP_ERROR


def last_line(error: str) -> str:
    """The line of a traceback that says what happened, cut to a length that can be kept."""
    lines = error.strip().split("\n")
    return lines[-1].strip()[:_MOST_ERROR]


def replayed(
    rows: Sequence[Row], in_flight: int, duration_s: float | None
) -> tuple[Row, ...] | None:
    """The rows with sending times, for a tool that keeps so many requests in flight in order.

    Where each request starts when the earliest of *in_flight* slots is free, the latencies alone
    tell when each was sent. None where that does not reproduce the run's length, or where a
    latency is unknown.
    """
    free = [0.0] * min(in_flight, len(rows))  # more would stay free
    placed: list[Row] = []
    for row in rows:
        if row.latency_s is None:
            return None
        start_s = heapq.heappop(free)
        placed.append(msgspec.structs.replace(row, sent_s=start_s))
        heapq.heappush(free, start_s + row.latency_s)
    if duration_s is None or abs(max(free) - duration_s) > REPLAY_SHARE * duration_s:
        return None
    return tuple(placed)


def chunks(ttft_s: float, gaps_s: Sequence[float]) -> list[float]:
    """When each chunk arrived, from the first and the gaps between them."""
    return list(itertools.accumulate(gaps_s, initial=ttft_s))


def records(rows: Sequence[Row]) -> list[Record]:
    """The rows as records in the order in which they ended, from time 0 at the first one's start.

    No tool tells which user sent what: a user here is a slot that is free when its request is
    sent, so that there are as many as there were requests in flight at once.
    """
    known = [row for row in rows if row.sent_s is not None]
    if not known:
        return []
    starts = [_planned_s(row) for row in known]
    zero_s = min(starts)
    order = sorted(range(len(known)), key=lambda i: (known[i].sent_s or 0.0, i))
    free: list[tuple[float, int]] = []
    made: list[Record] = []
    for i in order:
        row = known[i]
        sent_s = (row.sent_s or 0.0) - zero_s
        end_s = sent_s + _latency_s(row)
        user = len(free)
        if free and free[0][0] <= sent_s + _SAME_S:
            _, user = heapq.heappop(free)
        heapq.heappush(free, (end_s, user))
        made.append(_record(row, i, user, starts[i] - zero_s, sent_s, end_s))
    return sorted(made, key=lambda r: r.end_s)


def _planned_s(row: Row) -> float:
    sent_s = row.sent_s or 0.0
    return sent_s if row.planned_s is None else min(row.planned_s, sent_s)


def _latency_s(row: Row) -> float:
    """To the end of the answer; a failure of unknown length ends where it began."""
    told = (row.latency_s, row.last_token_s, row.chunk_s[-1] if row.chunk_s else None, row.ttft_s)
    return max((x for x in told if x is not None), default=0.0)


def _record(
    row: Row, number: int, user: int, planned_s: float, sent_s: float, end_s: float
) -> Record:
    return Record(
        request_id=number,
        user=user,
        planned_s=planned_s,
        sent_s=sent_s,
        end_s=end_s,
        outcome=row.outcome,
        first_token_s=None if row.ttft_s is None else sent_s + row.ttft_s,
        last_token_s=None if row.last_token_s is None else sent_s + row.last_token_s,
        chunk_s=Times(sent_s + x for x in row.chunk_s),
        chunk_tokens=Counts(row.chunk_tokens),
        prompt_tokens=row.prompt_tokens,
        output_tokens=row.output_tokens,
        cached_tokens=row.cached_tokens,
        token_source=row.token_source,
        status=row.status,
        error=row.error,
        session=row.session,
        turn=row.turn,
    )

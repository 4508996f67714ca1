"""Plays a feed against a server of given response times, on a clock of numbers."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import count

from servecap.load import Feed
from servecap.record import Arrival, Message, Outcome, Record, Request


def requests() -> Iterator[Request]:
    """Endless requests, numbered from 0."""
    for number in count():
        yield Request(request_id=number, messages=(Message("user", "?"),))


def record_of(arrival: Arrival, end_s: float, outcome: Outcome = Outcome.OK) -> Record:
    return Record(
        request_id=arrival.request.request_id,
        user=arrival.user,
        planned_s=arrival.planned_s,
        sent_s=arrival.planned_s,
        end_s=end_s,
        outcome=outcome,
        first_token_s=end_s,
    )


def play(
    feed: Feed, response_s: Callable[[Arrival], float], *, until_s: float = 1e9, most: int = 10_000
) -> tuple[list[Arrival], list[Record]]:
    """Every arrival and every record until *until_s*, or until nothing will ever be sent.

    Checks on the way what holds for every feed: nothing is early, nothing due is held back, and
    times never go back.
    """
    arrivals: list[Arrival] = []
    records: list[Record] = []
    running: list[tuple[float, int, Arrival]] = []
    now_s = 0.0
    while not (feed.finished and not running) and len(arrivals) < most:
        due_s = feed.next_s()
        end_s = running[0][0] if running else None
        if end_s is not None and (due_s is None or end_s <= due_s):
            now_s = end_s
            _, _, ended = heapq.heappop(running)
            records.append(record_of(ended, end_s))
            feed.done(records[-1])
            continue
        assert due_s is not None, "nothing runs, nothing is due, and yet it is not finished"
        if due_s > until_s:
            break
        assert due_s >= now_s, "due in the past"
        assert not feed.take(due_s - 1e-9), "sent early"
        now_s = due_s
        taken = feed.take(now_s)
        for arrival in taken:
            assert arrival.planned_s <= now_s
            arrivals.append(arrival)
            end_s = now_s + response_s(arrival)
            heapq.heappush(running, (end_s, arrival.request.request_id, arrival))
        assert (left := feed.next_s()) is None or left > now_s, "due, but held back"
    return arrivals, records

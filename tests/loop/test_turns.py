"""What is asked for while sockets are being served goes out right after."""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise

import pytest
import uvloop
from drive import QUICK, requests
from scripted import serving

from servecap.record import Arrival, Outcome, Record
from servecap.wire.client import Client
from servecap.wire.clock import Clock
from servecap.wire.endpoint import resolve
from servecap.wire.openai import OpenAi

USERS, ROUNDS = 5, 8


async def _talk(url: str, found: list[Record], waiting: list[int]) -> None:
    loop, clock, feed = asyncio.get_running_loop(), Clock(), requests()
    over = loop.create_future()

    def on_record(record: Record) -> None:
        found.append(record)
        if len(found) == USERS * ROUNDS:
            over.set_result(None)
        elif len(found) <= USERS * (ROUNDS - 1):
            client.send(Arrival(next(feed), record.user, record.end_s))
            waiting.append(len(client._queued))

    client = Client(
        loop,
        clock,
        resolve(url),
        OpenAi(chat=True),
        model="scripted",
        stream=True,
        timeouts=QUICK,
        on_record=on_record,
    )
    for user in range(USERS):
        client.send(Arrival(next(feed), user, clock.now()))
    await asyncio.wait_for(over, 30)
    assert not client._queued
    client.end(Outcome.CANCELLED)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each socket is served by itself")
def test_requests_of_a_turn_are_sent_after_it_and_stamped_then() -> None:
    found: list[Record] = []
    waiting: list[int] = []
    with serving() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_talk(server.url, found, waiting))
    assert [r.outcome for r in found] == [Outcome.OK] * USERS * ROUNDS
    assert waiting
    assert min(waiting) >= 1, "it waits for the end of the turn"
    by_user: dict[int, list[Record]] = {}
    for record in found:
        by_user.setdefault(record.user, []).append(record)
    for records in by_user.values():
        for before, after in pairwise(records):
            assert after.planned_s == before.end_s
            assert after.sent_s > after.planned_s, "what it waited is lag"
            assert after.first_token_s is not None
            assert after.first_token_s > after.sent_s

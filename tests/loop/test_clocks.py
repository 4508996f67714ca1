"""Times of arrival are the server's times of sending, whatever the client was doing meanwhile."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import types

import pytest
from drive import ask
from scripted import DONE, HELLO, STOP, USAGE, Call, chunk, serving

from servecap.wire.clock import Clock

OFFSET_S = 0.003  # between two clocks of one machine, read by two threads

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="receive times are the kernel's on Linux"
)


class Written:
    """Server-side times, on the clock that the client uses as well, around each write."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    async def write(self, call: Call, data: bytes) -> None:
        before = time.monotonic()
        await call.write(data)
        self.spans.append((before, time.monotonic()))


@linux
def test_stamps_lie_between_before_and_after_the_servers_write() -> None:
    written, clock = Written(), Clock()

    async def trickle(call: Call) -> None:
        await call.head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        for _ in range(20):
            await asyncio.sleep(0.005)
            await written.write(call, chunk(HELLO))
        await call.write(chunk(STOP), chunk(USAGE), chunk(DONE), b"0\r\n\r\n")

    with serving(trickle) as server:
        (record,) = ask(server.url, clock=clock)
    assert len(record.chunk_s) == 20
    for at_s, (before, after) in zip(record.chunk_s, written.spans, strict=True):
        assert before - OFFSET_S <= clock.start_s + at_s <= after + OFFSET_S


def held_up() -> tuple[float, float, float, float]:
    """A token that comes while the client's loop is blocked for 200 ms.

    Returns:
        when it came, before and after it was written, and the end of the block.
    """
    written, clock = Written(), Clock()
    blocked, sent = threading.Event(), threading.Event()
    ended_s: list[float] = []

    async def while_blocked(call: Call) -> None:
        await call.head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        await asyncio.to_thread(blocked.wait, 10)
        await written.write(call, chunk(HELLO))
        sent.set()
        await call.write(chunk(STOP), chunk(USAGE), chunk(DONE), b"0\r\n\r\n")

    def block() -> None:
        blocked.set()
        assert sent.wait(10)
        time.sleep(0.2)  # the block itself is what is tested
        ended_s.append(time.monotonic())

    with serving(while_blocked) as server:
        (record,) = ask(server.url, clock=clock, on_start=lambda loop: loop.call_later(0.05, block))
    ((before, after),) = written.spans
    assert record.first_token_s is not None
    return clock.start_s + record.first_token_s, before, after, ended_s[0]


@linux
def test_client_that_is_held_up_does_not_add_its_delay() -> None:
    first, before, after, ended = held_up()
    if first > after + OFFSET_S:  # a busy host holds a packet for some ms, but not again
        first, before, after, ended = held_up()
    assert before - OFFSET_S <= first <= after + OFFSET_S
    assert first < ended - 0.19


def test_load_without_the_garbage_collector_leaves_no_garbage() -> None:
    """The collector is off during a run: a cycle per request would never be freed."""

    async def mixed(call: Call) -> None:
        if len(call.server.asked) % 5 == 0:
            await call.stream(HELLO, b"data: {]\n\n", DONE)
        elif len(call.server.asked) % 5 == 1:
            await call.whole(b'{"error":{"message":"no"}}', status="500 No")
        elif len(call.server.asked) % 5 == 2:
            call.close()
        else:
            await call.answer()

    with serving(mixed) as server:
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            assert len(ask(server.url, 60)) == 60
            gc.collect()
            left = [name for found in gc.garbage if (name := ours(found))]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()
    assert not left


def ours(found: object) -> str | None:
    """What of servecap's own an object is, if it is: an instance, or a frame that ran."""
    if isinstance(found, types.FrameType):
        path = found.f_code.co_filename
        return f"frame of {found.f_code.co_qualname}" if "/src/servecap/" in path else None
    kind = type(found)
    return kind.__qualname__ if kind.__module__.startswith("servecap.") else None

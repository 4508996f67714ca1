"""Everything that can go wrong between a client and a server, each by its name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from scripted import DONE, HELLO, STOP, USAGE, Call, Reply, chunk

from servecap.record import Outcome
from servecap.scenario import Timeouts

LIMITS = Timeouts(connect_s=2.0, first_token_s=1.5, gap_s=1.0, total_s=2.5)
# For what ends by itself: no limit may meet it, however busy the machine is. It is a minute where
# the slowest of them, a line of 10 MB that is made, sent and decoded, takes 0.2 s on a quiet one.
PATIENT = Timeouts(connect_s=60.0, first_token_s=60.0, gap_s=60.0, total_s=60.0)
FOREVER_S = 60.0


@dataclass(frozen=True)
class Fault:
    """What the server does, and how the request of it must end."""

    reply: Reply
    outcome: Outcome
    said: str | None = None  # in the record's error
    within_s: float | None = None  # of our limits, the one that ends it; None: it ends by itself


async def begun(call: Call) -> None:
    """Headers, and a first token."""
    await call.stream(HELLO, ending=b"")


async def reset_before_headers(call: Call) -> None:
    call.reset()


async def reset_after_headers(call: Call) -> None:
    await begun(call)
    await asyncio.sleep(0.02)
    call.reset()


async def closed_without_answer(call: Call) -> None:
    call.close()


async def stall_before_headers(call: Call) -> None:
    await asyncio.sleep(FOREVER_S)
    call.close()


async def stall_after_first_token(call: Call) -> None:
    await begun(call)
    await asyncio.sleep(FOREVER_S)
    call.close()


async def trickle(call: Call) -> None:
    """A proper answer, byte by byte, so slow that it never ends."""
    await begun(call)
    for byte in chunk(HELLO) * 100:
        await call.write(bytes((byte,)))
        await asyncio.sleep(0.05)


async def cut_mid_chunk(call: Call) -> None:
    await call.stream(HELLO, ending=chunk(HELLO)[:20])
    call.close()


async def half_close(call: Call) -> None:
    """The server says no more, but goes on listening."""
    await begun(call)
    call.half_close()
    await asyncio.sleep(0.2)
    call.close()


async def garbage_sse(call: Call) -> None:
    await call.stream(HELLO, b"data: {\x00\xff]\n\n", b"\x1b[31m\n\n", DONE)


async def garbage_http(call: Call) -> None:
    await call.write(b"\x00\x01\x02 what is this\r\n\r\n")
    call.close()


async def content_length_too_long(call: Call) -> None:
    await call.head("Content-Type: application/json", "Content-Length: 1000")
    await call.write(b'{"choices":')
    call.close()


async def content_length_too_short(call: Call) -> None:
    await call.head("Content-Type: application/json", "Content-Length: 2")
    await call.write(b'{"choices": [{"message": {"content": "a"}}]}')
    call.close()


def status(code: str, body: bytes, *headers: str) -> Reply:
    async def reply(call: Call) -> None:
        await call.whole(body, *headers, status=code)

    return reply


async def endless_stream(call: Call) -> None:
    await begun(call)
    while True:
        await call.write(chunk(HELLO))
        await asyncio.sleep(0.02)


async def ten_megabyte_line(call: Call) -> None:
    event = {"choices": [{"delta": {"content": "x" * 10_000_000}, "finish_reason": "length"}]}
    await call.stream(b"data: " + json.dumps(event).encode() + b"\n\n", USAGE, DONE)


async def duplicate_done(call: Call) -> None:
    await call.stream(HELLO, HELLO, STOP, USAGE, DONE, DONE, DONE)


async def error_in_stream(call: Call) -> None:
    await call.stream(HELLO, b'data: {"error":{"message":"overloaded","code":503}}\n\n', DONE)


def wrong_token_counts(tokens: int) -> Reply:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n' % tokens

    async def reply(call: Call) -> None:
        await call.stream(HELLO, HELLO, HELLO, STOP, usage, DONE)

    return reply


OK, TIMEOUT, REFUSED, HTTP, BROKEN = (
    Outcome.OK, Outcome.TIMEOUT, Outcome.REFUSED, Outcome.HTTP_ERROR, Outcome.BROKEN_STREAM,
)  # fmt: skip
BUSY = b'{"error":{"message":"too many requests"}}'
FAULTS = {
    "reset before headers": Fault(reset_before_headers, REFUSED, "reset"),
    "reset after headers": Fault(reset_after_headers, BROKEN, "reset"),
    "closed without an answer": Fault(closed_without_answer, REFUSED, "closed without an answer"),
    "stall before headers": Fault(
        stall_before_headers, TIMEOUT, "no first token within 1.5 s", LIMITS.first_token_s
    ),
    "stall after the first token": Fault(
        stall_after_first_token, TIMEOUT, "nothing received for 1 s", LIMITS.gap_s
    ),
    "trickle": Fault(trickle, TIMEOUT, "no end of the answer within 2.5 s", LIMITS.total_s),
    "cut in mid chunk": Fault(cut_mid_chunk, BROKEN, "cut short"),
    "half-close": Fault(half_close, BROKEN, "cut short"),
    "garbage SSE": Fault(garbage_sse, BROKEN, "malformed JSON"),
    "garbage HTTP": Fault(garbage_http, BROKEN, "not a valid HTTP response"),
    "content-length too long": Fault(content_length_too_long, BROKEN, "cut short"),
    "content-length too short": Fault(content_length_too_short, BROKEN),
    "429 with Retry-After": Fault(
        status("429 Too Many Requests", BUSY, "Retry-After: 1"), HTTP, "too many requests"
    ),
    "500": Fault(status("500 Internal Server Error", b"<h1>Oops</h1>"), HTTP, "<h1>Oops</h1>"),
    "503": Fault(status("503 Service Unavailable", b""), HTTP, "HTTP 503"),
    "error in the stream": Fault(error_in_stream, HTTP, "503: overloaded"),
    "endless stream": Fault(
        endless_stream, TIMEOUT, "no end of the answer within 2.5 s", LIMITS.total_s
    ),
    "10 MB line": Fault(ten_megabyte_line, OK),
    "duplicate [DONE]": Fault(duplicate_done, OK),
    "too few tokens told": Fault(wrong_token_counts(1), OK),
    "less than no tokens told": Fault(wrong_token_counts(-7), OK),
}


def replying(faults: Callable[[int], str | None]) -> Reply:
    """Answers well but for the requests to which *faults* gives a fault, by their numbers."""

    async def reply(call: Call) -> None:
        name = faults(number_of(call.body))
        if name is None:
            await call.answer()
        else:
            await FAULTS[name].reply(call)

    return reply


def number_of(body: bytes) -> int:
    """Which request of `drive.requests` it is."""
    return int(body.partition(b"question ")[2].split(b'"')[0].split()[0])

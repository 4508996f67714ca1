"""Whatever a server does over a real socket ends as the right outcome, in one line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import msgspec
import pytest
from drive import QUICK, ask
from scripted import DONE, HELLO, STOP, USAGE, Call, Reply, chunk, proper, refused_port, serving

from servecap.record import Outcome, Record
from servecap.wire.tgi import Tgi

SHORT = msgspec.structs.replace(QUICK, first_token_s=0.3, gap_s=0.3)


def only(records: list[Record]) -> Record:
    (record,) = records
    assert record.error is None or ("\n" not in record.error and record.error)
    return record


def test_proper_answer() -> None:
    with serving() as server:
        record = only(ask(server.url))
    assert (record.outcome, record.error) == (Outcome.OK, None)
    assert (record.prompt_tokens, record.output_tokens, record.status) == (5, 2, 200)
    assert record.first_token_s is not None
    assert record.sent_s <= record.first_token_s <= record.end_s


def test_nobody_listens() -> None:
    record = only(ask(f"http://127.0.0.1:{refused_port()}"))
    assert record.outcome is Outcome.REFUSED
    assert record.error == "Connection refused"


def status(code: str, body: bytes) -> Reply:
    async def reply(call: Call) -> None:
        await call.whole(body, status=code)

    return reply


async def hang_up_at_once(call: Call) -> None:
    call.close()


async def reset_at_once(call: Call) -> None:
    call.reset()


async def reset_after_headers(call: Call) -> None:
    await call.head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
    await call.write(chunk(HELLO))
    await asyncio.sleep(0.05)
    call.reset()


async def cut_in_mid_chunk(call: Call) -> None:
    await call.stream(HELLO, ending=chunk(HELLO)[:20])
    call.close()


async def cut_before_done(call: Call) -> None:
    await call.stream(HELLO, STOP, ending=b"")
    call.close()


async def cut_after_done(call: Call) -> None:
    await call.stream(HELLO, STOP, USAGE, DONE, ending=b"")
    call.close()


async def no_done(call: Call) -> None:
    await call.stream(HELLO, STOP, USAGE)


async def unfinished(call: Call) -> None:
    await call.stream(HELLO)


async def garbage_events(call: Call) -> None:
    await call.stream(HELLO, b"data: {]\n\n", DONE)


async def garbage_http(call: Call) -> None:
    await call.write(b"\x00\x01\x02 what is this\r\n\r\n")
    call.close()


async def error_in_stream(call: Call) -> None:
    await call.stream(b'data: {"error":{"message":"overloaded","code":503}}\n\n', DONE)


async def too_little_body(call: Call) -> None:
    await call.head("Content-Type: application/json", "Content-Length: 1000")
    await call.write(b'{"choices":')
    call.close()


async def too_much_body(call: Call) -> None:
    await call.head("Content-Type: application/json", "Content-Length: 2")
    await call.write(b'{"choices": [{"text": "a"}]}')


async def long_line(call: Call) -> None:
    event = {"choices": [{"delta": {"content": "x" * 10_000_000}, "finish_reason": "length"}]}
    await call.stream(b"data: " + json.dumps(event).encode() + b"\n\n", DONE)


async def no_stream_at_all(call: Call) -> None:
    await call.whole(
        b'{"choices":[{"message":{"content":"hi"},"finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":5,"completion_tokens":2}}'
    )


async def length_framed_stream(call: Call) -> None:
    body = HELLO + STOP + USAGE + DONE
    await call.head("Content-Type: text/event-stream", f"Content-Length: {len(body)}")
    await call.write(body)


async def bytewise(call: Call) -> None:
    await call.head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
    body = chunk(HELLO) + chunk(STOP) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n"
    for i in range(len(body)):
        await call.write(body[i : i + 1])
        await asyncio.sleep(0)


OK, BROKEN, HTTP, REFUSED = (
    Outcome.OK,
    Outcome.BROKEN_STREAM,
    Outcome.HTTP_ERROR,
    Outcome.REFUSED,
)


@pytest.mark.parametrize(
    ("reply", "outcome", "said"),
    [
        (status("401 Unauthorized", b'{"error":{"message":"no key"}}'), HTTP, "no key"),
        (status("404 Not Found", b'{"detail":"Not Found"}'), HTTP, "Not Found"),
        (status("429 Too Many", b'{"error":"overloaded"}'), HTTP, "overloaded"),
        (status("500 Oops", b"<h1>Internal\nError</h1>"), HTTP, "<h1>Internal Error</h1>"),
        (status("503 No", b""), HTTP, "HTTP 503"),
        (hang_up_at_once, REFUSED, "closed without an answer"),
        (reset_at_once, REFUSED, "reset"),
        (reset_after_headers, BROKEN, "reset"),
        (cut_in_mid_chunk, BROKEN, "cut short"),
        (cut_before_done, BROKEN, "cut short"),
        (cut_after_done, OK, None),
        (no_done, OK, None),
        (unfinished, BROKEN, "end mark"),
        (garbage_events, BROKEN, "malformed JSON"),
        (garbage_http, BROKEN, "not a valid HTTP response"),
        (error_in_stream, HTTP, "503: overloaded"),
        (too_little_body, BROKEN, "cut short"),
        (too_much_body, BROKEN, None),
        (long_line, OK, None),
        (no_stream_at_all, OK, None),
        (length_framed_stream, OK, None),
        (bytewise, OK, None),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_one_bad_answer_and_then_a_good_one(
    reply: Callable[[Call], None], outcome: Outcome, said: str | None
) -> None:
    """The request after it is not disturbed."""
    replies: list[Reply] = [reply]  # type: ignore[list-item]

    async def first_so(call: Call) -> None:
        await (replies.pop() if replies else proper)(call)

    with serving(first_so) as server:
        bad, good = ask(server.url, 2)
    assert bad.outcome is outcome
    if said is not None:
        assert bad.error is not None
        assert said in bad.error
        assert "\n" not in bad.error
    assert good.outcome is Outcome.OK


async def stall_before_headers(call: Call) -> None:
    await call.write(b"")
    await asyncio.sleep(60)


async def stall_before_first_token(call: Call) -> None:
    await call.stream(b": waiting\n\n", ending=b"")
    while True:
        await asyncio.sleep(0.1)
        await call.write(chunk(b": still waiting\n\n"))


async def stall_in_the_middle(call: Call) -> None:
    await call.stream(HELLO, ending=b"")
    await asyncio.sleep(60)


async def stall_after_done(call: Call) -> None:
    await call.stream(HELLO, STOP, USAGE, DONE, ending=b"")
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("reply", "outcome", "said", "chunks"),
    [
        (stall_before_headers, Outcome.TIMEOUT, "no first token within 0.3 s", 0),
        (stall_before_first_token, Outcome.TIMEOUT, "no first token within 0.3 s", 0),
        (stall_in_the_middle, Outcome.TIMEOUT, "nothing received for 0.3 s", 1),
        (stall_after_done, Outcome.OK, None, 1),
    ],
)
def test_stalls(reply: Reply, outcome: Outcome, said: str | None, chunks: int) -> None:
    with serving(reply) as server:
        record = only(ask(server.url, timeouts=SHORT))
    assert (record.outcome, record.error) == (outcome, said)
    assert len(record.chunk_s) == chunks
    assert record.e2e_s < 3


def test_connection_that_never_stands_is_a_timeout() -> None:
    """A listener whose queue is full: the kernel does not answer further attempts."""
    import socket

    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for queued in (one, two):
            queued.setblocking(False)
            queued.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        limits = msgspec.structs.replace(QUICK, connect_s=0.2)
        record = only(ask(f"http://127.0.0.1:{port}", timeouts=limits))
    assert (record.outcome, record.error) == (Outcome.TIMEOUT, "no connection within 0.2 s")


def test_connections_are_kept_and_shared() -> None:
    with serving() as server:
        assert all(r.ok for r in ask(server.url, 20))
        assert server.connections == 1
        assert all(r.ok for r in ask(server.url, 20, at_once=True))
        assert server.connections == 21


def test_connection_closed_by_the_server_in_between_is_no_failure() -> None:
    """It says keep-alive, but closes after each answer: what was not served is sent anew."""

    async def once(call: Call) -> None:
        await call.answer()
        call.close()

    with serving(once) as server:
        records = ask(server.url, 12)
    assert [r.outcome for r in records] == [Outcome.OK] * 12
    assert len(server.asked) == 12
    assert [r.request_id for r in records] == list(range(12))


def test_request_on_a_kept_connection_is_sent_anew_only_once() -> None:
    """The server hangs up on every request but the first of all."""

    async def first_only(call: Call) -> None:
        if len(call.server.asked) == 1:
            await call.answer()
        else:
            call.close()

    with serving(first_only) as server:
        good, bad = ask(server.url, 2)
    assert (good.outcome, bad.outcome) == (Outcome.OK, Outcome.REFUSED)
    assert len(server.asked) == 3


def test_tgi_without_streaming_tells_its_timings() -> None:
    async def generate(call: Call) -> None:
        await call.whole(
            b'{"generated_text":"x","details":{"finish_reason":"length","generated_tokens":100}}',
            "x-inference-time: 3600", "x-time-per-token: 35", "x-queue-time: 250",
            "x-prompt-tokens: 42", "x-generated-tokens: 100", "x-total-time: 3851",
        )  # fmt: skip

    with serving(generate) as server:
        record = only(ask(server.url, api=Tgi(stream=False), stream=False))
    assert record.server is not None
    assert record.server.ttft_s == pytest.approx(0.25 + 3.6 - 99 * 0.035)
    assert (record.prompt_tokens, record.output_tokens) == (42, 100)
    assert record.first_token_s is None

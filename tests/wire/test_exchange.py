"""From the bytes of a response to its record: the same however they are cut, right when broken."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay import (
    RECORDED,
    REQUEST,
    STREAMS,
    Played,
    api_of,
    chunk,
    played,
    response,
    same_chunks,
    timeless,
)

from servecap.record import Outcome, TokenSource
from servecap.wire.openai import OpenAi
from servecap.wire.tgi import Tgi

CHAT = OpenAi(chat=True)
OWN = sorted(STREAMS.glob("*.http"))
SHARED = sorted(RECORDED.glob("*.http"))

HELLO = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_recorded_streams_are_there() -> None:
    if not RECORDED.is_dir():
        pytest.skip("../shared/data/streams is not beside this checkout")
    assert len(SHARED) >= 15


@pytest.mark.parametrize("path", OWN + SHARED, ids=lambda p: p.name)
def test_stream_cut_at_every_byte_gives_the_same_record(path: Path) -> None:
    data, api = path.read_bytes(), api_of(path.name)
    whole = timeless(played(data, api))
    for cut in range(1, len(data)):
        assert timeless(played(data, api, cuts=[cut])) == whole, f"cut at {cut}"
    assert timeless(played(data, api, cuts=list(range(1, len(data))))) == whole


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.name)
def test_end_of_a_stream_cut_twice_ends_it_without_a_close(path: Path) -> None:
    """What defers reading must see the end by itself, wherever the last bytes are cut."""
    data, api = path.read_bytes(), api_of(path.name)
    for first, second in combinations(range(len(data) - 12, len(data)), 2):
        exchange = Played(api).push([data[:first], data[first:second], data[second:]])
        assert exchange.ended == 1, f"cut at {first} and {second}"


@pytest.mark.parametrize(
    ("name", "outcome", "chunks", "prompt", "output", "finish"),
    [
        ("llamacpp-chat", Outcome.OK, 5, 24, 5, "length"),
        ("llamacpp-completions", Outcome.OK, 5, None, 5, "length"),
        ("llamacpp-chat-whole", Outcome.OK, 0, 24, 5, "length"),
        ("llamacpp-bytes-chat", Outcome.OK, None, 24, 12, "length"),
        ("vllm-like-chat", Outcome.OK, 4, 11, 9, "length"),
        ("vllm-chat-coalesced", Outcome.OK, 4, 88, 12, "length"),
        ("vllm-chat-usage-in-every-chunk", Outcome.OK, 5, 88, 5, "length"),
        ("vllm-chat-logprobs", Outcome.OK, 3, 88, 3, "length"),
        ("vllm-chat-whole", Outcome.OK, 0, 88, 5, "length"),
        ("vllm-completions", Outcome.OK, 3, 6, 5, "length"),
        ("sglang-like-chat", Outcome.OK, 3, 8, 4, "stop"),
        ("tgi-generate", Outcome.OK, 7, 13, 7, "eos_token"),
        ("ollama-chat", Outcome.OK, 5, 29, 6, "stop"),
        ("ollama-generate", Outcome.OK, 6, 29, 6, "stop"),
        ("sglang-generate", Outcome.OK, 5, 7, 9, "length"),
    ],
)
def test_streams_tell_what_they_hold(
    name: str, outcome: Outcome, chunks: int | None, prompt: int | None, output: int, finish: str
) -> None:
    record = played((STREAMS / f"{name}.http").read_bytes(), api_of(name))
    assert (record.outcome, record.error) == (outcome, None)
    assert record.output_tokens == output
    assert record.finish_reason == finish
    assert record.token_source is TokenSource.SERVER
    if prompt is not None:
        assert record.prompt_tokens == prompt
    if chunks is None:
        assert 1 < len(record.chunk_s) < output, "cut characters: fewer chunks than tokens"
        assert not record.chunk_tokens, "which of them carried several tokens is not known"
    else:
        assert len(record.chunk_s) == chunks
    if chunks == output:
        assert same_chunks(record, [1] * output)


def test_cached_tokens_and_own_timings_are_kept() -> None:
    vllm = played((STREAMS / "vllm-like-chat.http").read_bytes(), CHAT)
    assert vllm.cached_tokens == 4
    llama = played((STREAMS / "llamacpp-chat.http").read_bytes(), CHAT)
    assert llama.server is not None
    assert llama.server.origin == "llama.cpp timings"
    assert llama.server.tpot_s is not None
    assert llama.server.inference_s is not None
    assert llama.server.prefill_s is not None
    decode_s = llama.server.inference_s - llama.server.prefill_s
    assert llama.server.tpot_s == pytest.approx(decode_s / 4)
    assert llama.server.ttft_s is None, "llama.cpp does not tell how long a request queued"


def test_busy_vllm_is_an_error_whether_told_by_status_or_in_the_stream() -> None:
    by_status = played((STREAMS / "vllm-busy.http").read_bytes(), CHAT)
    in_stream = played((STREAMS / "vllm-busy-in-stream.http").read_bytes(), CHAT)
    assert (by_status.outcome, by_status.status) == (Outcome.HTTP_ERROR, 503)
    assert (in_stream.outcome, in_stream.status) == (Outcome.HTTP_ERROR, 200)
    assert by_status.error is not None
    assert in_stream.error == f"503: {by_status.error}"


def test_answer_that_vllm_gave_up_when_it_was_stopped_is_an_error() -> None:
    record = played((STREAMS / "vllm-stopped-in-stream.http").read_bytes(), CHAT)
    assert record.outcome is Outcome.HTTP_ERROR
    assert record.chunk_s, "it had begun"
    assert record.error is not None
    assert record.error.startswith("500: EngineCore")


def test_logprobs_and_usage_in_every_chunk_tell_the_tokens_of_each() -> None:
    for name, tokens in (("usage-in-every-chunk", 5), ("logprobs", 3)):
        record = played((STREAMS / f"vllm-chat-{name}.http").read_bytes(), CHAT)
        assert same_chunks(record, [1] * tokens)
    joined = played((STREAMS / "vllm-chat-coalesced.http").read_bytes(), CHAT)
    assert len(joined.chunk_s) == 4
    assert not joined.chunk_tokens, "12 tokens in 4 chunks: which of them had more is not known"


def test_tokens_without_text_are_part_of_the_decode_time() -> None:
    """vLLM's last two of five tokens were bytes of a character that was never finished."""
    data = (STREAMS / "vllm-completions.http").read_bytes()
    *events, rest = data.split(b"\n\n")
    parts = [event + b"\n\n" for event in events]
    record = Played(OpenAi(chat=False)).push([*parts, rest]).record
    assert list(record.chunk_s) == [2.0, 3.0, 4.0]
    assert record.last_token_s == 6.0
    assert record.tpot_s == 1.0


def test_end_mark_that_the_model_said_is_its_last_token() -> None:
    head, _, _ = response(b"").partition(b"\r\n\r\n")
    silent = b'data: {"choices":[{"delta":{"content":""},"finish_reason":"stop"}]}\n\n'
    for end, last_s in ((silent, 5.0), (STOP, None)):
        parts = [head + b"\r\n\r\n" + chunk(HELLO), chunk(HELLO), chunk(end), chunk(USAGE)]
        record = Played(CHAT).push([*parts, chunk(DONE)], at_s=[2.0, 3.0, 5.0, 6.0, 7.0]).close()
        assert record.record.last_token_s == last_s


def test_role_chunk_starts_no_clock() -> None:
    role = chunk(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
    head, _, _ = response(b"").partition(b"\r\n\r\n")
    parts = [head + b"\r\n\r\n" + role, chunk(HELLO), chunk(STOP), chunk(DONE) + b"0\r\n\r\n"]
    record = Played(CHAT).push(parts, at_s=[2.0, 3.0, 4.0, 5.0]).record
    assert record.first_token_s == 3.0
    assert record.end_s == 5.0
    assert record.ttft_s == 2.0
    assert record.ttft_sent_s == 1.5


def test_every_chunk_keeps_the_stamp_of_its_own_read() -> None:
    head, _, _ = response(b"").partition(b"\r\n\r\n")
    reads = [head + b"\r\n\r\n" + chunk(HELLO), *[chunk(HELLO)] * 600, chunk(DONE) + b"0\r\n\r\n"]
    times = [2.0 + 0.01 * i for i in range(len(reads))]
    record = Played(CHAT).push(reads, at_s=times).record
    assert list(record.chunk_s) == times[:-1]


@pytest.mark.parametrize(
    ("body", "outcome", "said"),
    [
        (HELLO + STOP + USAGE + DONE, Outcome.OK, None),
        (HELLO + STOP + USAGE, Outcome.OK, None),  # transformers sends no [DONE]
        (HELLO + DONE, Outcome.OK, None),
        (HELLO + STOP + USAGE + DONE + DONE, Outcome.OK, None),
        (HELLO + STOP + b"data: [DONE] \n\n", Outcome.OK, None),
        (b": ping\n\ndata:\n\n" + HELLO + STOP + DONE, Outcome.OK, None),
        (HELLO + STOP + DONE.rstrip(b"\n"), Outcome.OK, None),
        (STOP + USAGE + DONE, Outcome.OK, None),  # the first token was the end
        (HELLO, Outcome.BROKEN_STREAM, "without its end mark"),
        (b"", Outcome.BROKEN_STREAM, "the answer is empty"),
        (b": ping\n\n", Outcome.BROKEN_STREAM, "without its end mark"),
        (DONE, Outcome.BROKEN_STREAM, "without any output"),
        (HELLO + b"data: {oops\n\n" + DONE, Outcome.BROKEN_STREAM, "malformed JSON"),
        (HELLO + b'data: {"choices": 7}\n\n', Outcome.BROKEN_STREAM, "malformed JSON"),
        (HELLO + b"data: \xff\xfe not text at all\n\n", Outcome.BROKEN_STREAM, "malformed JSON"),
        (
            HELLO + b'data: {"choices":[{"delta":{},"finish_reason":"abort"}]}\n\n' + DONE,
            Outcome.BROKEN_STREAM,
            "gave the answer up",
        ),
        (
            HELLO + b'data: {"error":{"message":"no room","code":503}}\n\n' + DONE,
            Outcome.HTTP_ERROR,
            "503: no room",
        ),
        (
            b'data: {"object":"error","message":"flat","code":400}\n\n',
            Outcome.HTTP_ERROR,
            "flat",
        ),
    ],
)
def test_how_a_stream_ends(body: bytes, outcome: Outcome, said: str | None) -> None:
    for chunked in (True, False):
        record = Played(CHAT).push([response(body, chunked=chunked)]).record
        assert record.outcome is outcome
        assert (record.error or "").count("\n") == 0
        if said is not None:
            assert record.error is not None
            assert said in record.error


@pytest.mark.parametrize(
    "name",
    [
        "vllm-like-error-in-stream",
        "tgi-error-in-stream",
        "ollama-error-in-stream",
        "sglang-generate-error-in-stream",
    ],
)
def test_error_inside_a_stream_is_an_error_and_not_an_answer(name: str) -> None:
    record = played((STREAMS / f"{name}.http").read_bytes(), api_of(name))
    assert record.outcome is Outcome.HTTP_ERROR
    assert record.status == 200
    assert record.error is not None
    assert "overloaded" in record.error or "out of memory" in record.error or "full" in record.error


def test_error_inside_a_stream_is_told_when_the_stream_is_then_cut() -> None:
    head, _, _ = response(b"").partition(b"\r\n\r\n")
    error = chunk(b'data: {"error":{"message":"no room","code":503}}\n\n')
    for why in (None, "Connection reset by peer"):
        record = Played(CHAT).push([head + b"\r\n\r\n" + error]).close(why).record
        assert (record.outcome, record.error) == (Outcome.HTTP_ERROR, "503: no room")


def test_whole_answer_survives_a_close_without_the_last_chunk() -> None:
    head, _, _ = response(b"").partition(b"\r\n\r\n")
    parts = [head + b"\r\n\r\n" + chunk(HELLO) + chunk(STOP) + chunk(DONE)]
    assert Played(CHAT).push(parts).close().record.outcome is Outcome.OK
    unfinished = [head + b"\r\n\r\n" + chunk(HELLO) + chunk(STOP)]
    record = Played(CHAT).push(unfinished).close().record
    assert (record.outcome, record.error) == (Outcome.BROKEN_STREAM, "the answer was cut short")


def test_answer_that_is_whole_ends_though_the_connection_goes_on() -> None:
    head, _, _ = response(b"").partition(b"\r\n\r\n")
    played = Played(CHAT).push([head + b"\r\n\r\n", chunk(HELLO), chunk(STOP), chunk(DONE)])
    assert played.exchange.record is None, "reading was put off"
    played.exchange.end_if_answered(9.0)
    assert played.record.outcome is Outcome.OK
    assert played.record.end_s == 9.0
    assert not played.connection.open, "it is not at the start of another response"


def test_body_that_ends_with_the_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    good = Played(CHAT).push([head, HELLO, STOP]).close()
    assert good.record.outcome is Outcome.OK
    assert not good.connection.open
    cut = Played(CHAT).push([head, HELLO]).close()
    assert cut.record.outcome is Outcome.BROKEN_STREAM
    reset = Played(CHAT).push([head, HELLO, STOP]).close("Connection reset by peer")
    assert reset.record.outcome is Outcome.BROKEN_STREAM
    assert reset.record.error == "Connection reset by peer"


def test_connection_is_reused_only_after_a_whole_response() -> None:
    stream = (STREAMS / "vllm-like-chat.http").read_bytes()
    assert Played(CHAT).push([stream]).connection.open
    last = stream.replace(b"server: uvicorn", b"connection: close")
    assert not Played(CHAT).push([last]).connection.open
    assert not Played(CHAT).push([stream[:-5]]).close().connection.open


@pytest.mark.parametrize("status", ["400 Bad Request", "401 No", "429 Many", "500 X", "503 Y"])
def test_http_errors_keep_status_and_message(status: str) -> None:
    body = b'{"error":{"message":"it\\u001b[31m\\nfailed","type":"x"}}'
    data = response(body, status=status, kind="application/json", chunked=False)
    record = played(data, CHAT)
    assert record.outcome is Outcome.HTTP_ERROR
    assert record.status == int(status[:3])
    assert record.error == "it [31m failed"


def test_event_stream_with_an_error_status_is_an_error() -> None:
    record = played(response(b'data: {"error":"busy"}\n\n', status="503 Busy"), CHAT)
    assert (record.outcome, record.status) == (Outcome.HTTP_ERROR, 503)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\0" * 64,
    ],
)
def test_what_is_no_http_is_a_broken_answer(data: bytes) -> None:
    record = Played(CHAT).push([data]).close().record
    assert record.outcome is Outcome.BROKEN_STREAM
    assert record.error


def test_nothing_at_all_is_refused() -> None:
    record = Played(CHAT).close("Connection refused").record
    assert (record.outcome, record.error) == (Outcome.REFUSED, "Connection refused")


def test_timeout_keeps_what_had_arrived() -> None:
    head, _, _ = response(b"").partition(b"\r\n\r\n")
    exchange = Played(CHAT).push([head + b"\r\n\r\n", chunk(HELLO)])
    exchange.exchange.abandon(Outcome.TIMEOUT, 50.0, "nothing received for 40 s")
    record = exchange.record
    assert (record.outcome, len(record.chunk_s), record.end_s) == (Outcome.TIMEOUT, 1, 50.0)
    assert not exchange.connection.open
    exchange.exchange.abandon(Outcome.CANCELLED, 51.0)
    assert exchange.record.outcome is Outcome.TIMEOUT, "it ends once"


def test_early_hints_are_passed_over() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 99\r\nLink: </x>\r\n\r\n"
    keep = b"HTTP/1.1 100 Continue\r\n\r\n"
    record = played(keep + early + response(HELLO + STOP + DONE), CHAT)
    assert (record.outcome, record.status) == (Outcome.OK, 200)


def test_tokens_come_from_the_best_source_there_is() -> None:
    stream = response(HELLO + HELLO + STOP + DONE)
    counted = Played(CHAT, count_tokens=lambda text: len(text)).push([stream]).record
    assert (counted.output_tokens, counted.token_source) == (10, TokenSource.TOKENIZER)
    guessed = Played(CHAT).push([stream]).record
    assert (guessed.output_tokens, guessed.token_source) == (2, TokenSource.ESTIMATE)
    half = response(
        HELLO + STOP + b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n' + DONE
    )
    mixed = Played(CHAT).push([half]).record
    assert mixed.output_tokens == 3
    assert mixed.token_source is TokenSource.ESTIMATE, "the prompt's length is a guess"


BODY = b"".join([HELLO] * 3 + [STOP, USAGE, DONE])


@given(
    st.lists(st.integers(1, len(BODY)), max_size=6),
    st.lists(st.integers(1, 900), max_size=8),
)
def test_chunks_and_reads_may_fall_anywhere(chunk_cuts: list[int], read_cuts: list[int]) -> None:
    edges = sorted({0, *chunk_cuts, len(BODY)})
    body = b"".join(chunk(BODY[a:b]) for a, b in pairwise(edges))
    head, _, _ = response(b"").partition(b"\r\n\r\n")
    data = head + b"\r\n\r\n" + body + b"0\r\n\r\n"
    record = played(data, CHAT, cuts=sorted(c % len(data) for c in read_cuts))
    assert (record.outcome, len(record.chunk_s), record.output_tokens) == (Outcome.OK, 3, 2)


@given(st.binary(max_size=300))
def test_any_bytes_end_as_a_record(data: bytes) -> None:
    for prefix in (b"", response(b"")[:-5] + b"50\r\n"):
        record = Played(CHAT).push([prefix + data]).close().record
        assert record.error is None or "\n" not in record.error


@given(st.binary(max_size=120), st.booleans())
def test_any_event_ends_as_a_record(data: bytes, tgi: bool) -> None:
    api = Tgi(stream=True) if tgi else CHAT
    record = Played(api, REQUEST).push([response(b"data: " + data + b"\n\n")]).record
    assert record.outcome in (Outcome.OK, Outcome.BROKEN_STREAM, Outcome.HTTP_ERROR)

"""Chunked bodies in any pieces, and events known by their likeness to decoded ones."""

from __future__ import annotations

import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servecap.wire.answer import Answer, BadAnswer
from servecap.wire.chunked import BadChunk, ChunkReader
from servecap.wire.openai import OpenAi

PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def coded(pieces: list[bytes], trailer: bytes = b"") -> bytes:
    body = b"".join(b"%X;x=1\r\n%b\r\n" % (len(p), p) for p in pieces[:1])
    body += b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces[1:])
    return body + b"0\r\n" + trailer + b"\r\n"


@given(PIECES, st.sampled_from([b"", b"X-A: b\r\n"]), st.lists(st.integers(0, 400), max_size=9))
def test_body_is_the_same_however_it_is_cut(
    pieces: list[bytes], trailer: bytes, cuts: list[int]
) -> None:
    data = coded(pieces, trailer)
    edges = [0, *sorted(c % len(data) for c in cuts), len(data)]
    reader = ChunkReader()
    body = b"".join(p for a, b in pairwise(edges) for p in reader.feed(data[a:b]))
    assert body == b"".join(pieces)
    assert reader.complete
    assert reader.rest == b""


@given(PIECES)
def test_whole_chunks_and_bytes_one_by_one_agree(pieces: list[bytes]) -> None:
    quick, slow = ChunkReader(), ChunkReader()
    whole = [q for p in pieces for q in quick.feed(b"%x\r\n%b\r\n" % (len(p), p))]
    single = [q for byte in coded(pieces) for q in slow.feed(bytes([byte]))]
    assert b"".join(whole) == b"".join(single)
    assert not quick.complete
    assert quick.feed(b"0\r\n\r\n") == []
    assert quick.complete


@pytest.mark.parametrize(
    "data",
    [b"zz\r\n", b"-1\r\n", b"1_0\r\n", b"\r\n", b" 5\r\nhello\r\n", b"2\r\nabcd", b"f" * 9000],
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(BadChunk):
        ChunkReader().feed(data)


def test_bytes_after_the_end_are_left() -> None:
    reader = ChunkReader()
    assert reader.feed(b"1\r\na\r\n0\r\n\r\nHTTP/1.1") == [b"a"]
    assert (reader.complete, reader.rest) == (True, b"HTTP/1.1")


def event(text: str, *, extra: str = "", created: int = 1) -> bytes:
    quoted = json.dumps(text, ensure_ascii=False)
    return (
        f'{{"id":"x","created":{created},"choices":[{{"index":0,"delta":{{"content":{quoted}'
        f'}},"finish_reason":null}}]{extra}}}'
    ).encode()


TEXT = st.text(st.sampled_from('ab "\\\n\té你{}:,'), max_size=6)


@given(st.lists(st.tuples(TEXT, st.integers(1, 3)), max_size=30))
@example([("a", 1)] * 5 + [('"', 1), ("", 1), ("x", 2)])
def test_likeness_changes_nothing(stream: list[tuple[str, int]]) -> None:
    """The same stream read with the texts kept, which decodes every event."""
    quick, full = Answer(keep_text=False), Answer(keep_text=True)
    api = OpenAi(chat=True)
    for at_s, (text, created) in enumerate(stream):
        data = event(text, created=created)
        api.event(quick, data, float(at_s))
        api.event(full, data, float(at_s))
    assert quick.chunk_s == full.chunk_s
    assert quick.text == []
    assert "".join(full.text) == "".join(text for text, _ in stream)


def test_likeness_sees_what_else_an_event_brings() -> None:
    answer, api = Answer(keep_text=False), OpenAi(chat=True)
    for _ in range(4):
        api.event(answer, event("word"), 1.0)
    usage = ',"usage":{"prompt_tokens":3,"completion_tokens":5}'
    api.event(answer, event("word", extra=usage), 2.0)
    assert (answer.output_tokens, len(answer.chunk_s)) == (5, 5)
    api.event(answer, event("word").replace(b"null", b'"stop"'), 3.0)
    assert (answer.finish_reason, len(answer.chunk_s)) == ("stop", 6)
    api.event(answer, event(""), 4.0)
    assert len(answer.chunk_s) == 6


@pytest.mark.parametrize("broken", [b'a"', b"a\\", b"a\n", b"a\xff", b'a","content":"b'])
def test_likeness_lets_no_malformed_text_through(broken: bytes) -> None:
    """What is not plainly text is decoded: an error is found, or the JSON's own meaning."""
    answer, api = Answer(keep_text=False), OpenAi(chat=True)
    for _ in range(3):
        api.event(answer, event("word"), 1.0)
    data = event("word").replace(b'"word"', b'"' + broken + b'"')
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        with pytest.raises(BadAnswer):
            api.event(answer, data, 2.0)
    else:
        api.event(answer, data, 2.0)
        assert len(answer.chunk_s) == 4


def told(*, usage: int | None = None, logprobs: int = 0, text: str = "word") -> bytes:
    """An event that tells how many tokens there were so far, or are in it."""
    entries = ",".join('{"token":"t","logprob":-0.5}' for _ in range(logprobs))
    data = event(text).replace(
        b'"index":0', b'"index":0,"logprobs":{"content":[%b]}' % entries.encode()
    )
    return data[:-1] + (b"}" if usage is None else b',"usage":{"completion_tokens":%d}}' % usage)


@pytest.mark.parametrize("keep_text", [False, True])
def test_tokens_per_chunk_by_running_usage_figures(keep_text: bool) -> None:
    answer, api = Answer(keep_text=keep_text), OpenAi(chat=True)
    for at_s, (text, usage) in enumerate([("", 0), ("a", 1), ("bc", 3), ("", 4), ("d", 6)]):
        api.event(answer, told(usage=usage, text=text), float(at_s))
    assert answer.chunk_tokens.tolist() == [1, 2, 3]
    assert sum(answer.chunk_tokens) == answer.output_tokens == 6


@pytest.mark.parametrize("keep_text", [False, True])
def test_tokens_per_chunk_by_logprobs(keep_text: bool) -> None:
    answer, api = Answer(keep_text=keep_text), OpenAi(chat=True)
    for at_s, tokens in enumerate([1, 1, 3, 1, 2]):
        api.event(answer, told(logprobs=tokens), float(at_s))
    assert answer.chunk_tokens.tolist() == [1, 1, 3, 1, 2]
    assert answer.output_tokens is None

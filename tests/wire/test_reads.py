"""Reads that are counted instead of kept, and work that waits: neither may change a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from replay import Played, chunk, response

from servecap.record import Outcome, Record
from servecap.wire import like, openai
from servecap.wire.openai import OpenAi

CHAT = OpenAi(chat=True)
HEAD = response(b"").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
LAST = chunk(STOP) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def event(
    text: str, *, end: bytes = b"\n\n", created: int = 1, more: str = "", name: str = "x"
) -> bytes:
    quoted = json.dumps(text, ensure_ascii=False)
    return (
        f'data: {{"id":"{name}","created":{created},"choices":[{{"index":0,"delta":{{'
        f'"content":{quoted}}},"finish_reason":null}}]{more}}}'
    ).encode() + end


def upper(data: bytes) -> bytes:
    return b"%X\r\n%s\r\n" % (len(data), data)


TEXT = st.text(st.sampled_from('ab "\\\n\té你{}:,'), max_size=6) | st.just("word" * 60)
NAME = st.sampled_from(["x", "chatcmpl-7", "", "a,b:c", '\\"created\\":', "\\u00e9", "é", "\\\\"])
FORM = st.sampled_from([chunk, upper, lambda data: chunk(data[:9]) + chunk(data[9:])])
END = st.sampled_from([b"\n\n", b"\r\n\r\n"])


def records(reads: list[bytes]) -> tuple[Record, Record, str]:
    """The record of *reads*, and that of a client that decodes every event, and the text it saw."""
    times = [2.0 + 0.25 * i for i in range(len(reads))]
    seen: list[str] = []

    def tokens(text: str) -> int:
        seen.append(text)
        return 1

    quick = Played(CHAT).push(reads, at_s=times).close().record
    full = Played(CHAT, count_tokens=tokens).push(reads, at_s=times).close().record
    return quick, full, "".join(seen)


@given(
    st.lists(st.tuples(TEXT, st.integers(1, 20), NAME), max_size=60),
    FORM,
    END,
    st.lists(st.integers(0, 20_000), max_size=6),
)
@example([("a", 1, "x")] * 40, chunk, b"\n\n", [])
@example([("a", 1, "x")] * 40, upper, b"\r\n\r\n", [])
def test_record_is_as_if_every_event_had_been_decoded(
    stream: list[tuple[str, int, str]],
    form: Callable[[bytes], bytes],
    end: bytes,
    cuts: list[int],
) -> None:
    """One read per event, but for reads that are cut somewhere, or joined to the next."""
    parts = [HEAD, *(form(event(t, end=end, created=at, name=n)) for t, at, n in stream), LAST]
    edges = [0]
    for part in parts:
        edges.append(edges[-1] + len(part))
    data = b"".join(parts)
    for cut in cuts:  # an odd one is a further cut, an even one joins two reads
        if cut % 2:
            edges = sorted({*edges, cut % len(data)})
        elif len(edges) > 2:
            del edges[1 + cut % (len(edges) - 2)]
    quick, full, text = records([data[a:b] for a, b in pairwise(edges)])
    assert (quick.outcome, quick.error) == (full.outcome, full.error)
    assert quick.chunk_s == full.chunk_s
    assert quick.end_s == full.end_s
    assert text == "".join(text for text, _, _ in stream)


@given(
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 200), st.integers(0, 255)), max_size=3)
)
def test_record_is_the_same_whatever_a_server_sends(changes: list[tuple[int, int, int]]) -> None:
    """Bytes of some reads are changed after others like them have been counted."""
    reads = [HEAD, *[chunk(event("word"))] * 10]
    spoilt = [bytearray(chunk(event("word"))) for _ in range(30)]
    for number, at, byte in changes:
        spoilt[number][at % len(spoilt[number])] = byte
    quick, full, _ = records([*reads, *map(bytes, spoilt), LAST])
    assert (quick.outcome, quick.end_s) == (full.outcome, full.end_s)
    assert quick.chunk_s == full.chunk_s


def test_a_read_like_those_before_is_not_kept() -> None:
    Played(CHAT).push([HEAD, chunk(event("other")), LAST])  # so that the size of its chunk is known
    played = Played(CHAT).push([HEAD, *[chunk(event("word"))] * 40])
    exchange = played.exchange
    assert not exchange._parts
    assert exchange._times[-1] == exchange.last_read_s == 42.0
    played.push([chunk(event("other"))], at_s=[50.0])
    assert exchange._times[-1] == 50.0


SIZE = len(event("word"))


@pytest.mark.parametrize(
    "read",
    [
        chunk(event("word", more=',"usage":{"completion_tokens":9}')),
        chunk(event("word") + event("word")),
        chunk(event("")),
        chunk(event("wörd")),
        chunk(event("word").replace(b"data: ", b"data:")),
        chunk(event("word", more=',"more":"x"')),  # of another form
        chunk(event("word").replace(b'"created":1', b'"created":0')),
        chunk(event("word").replace(b'"created":1', b'"created":01')),  # no JSON
        chunk(event("word").replace(b'"created":1', b'"created":1.5')),
        chunk(event("word", name="\\n")),
        chunk(event("word").replace(b"null", b'"stop"')),
        chunk(event("word").replace(b'"id":"x"', b'"error":"x"')),
        b"%x\r\n%s\r\n" % (SIZE + 1, event("word")),  # not all of that chunk
        b"%x\r\n%s\r\n" % (SIZE - 1, event("word")),  # longer than it says
        b"0%x\r\n%s\r\n" % (SIZE, event("word")),
        b"%x;a=b\r\n%s\r\n" % (SIZE, event("word")),
        chunk(event("word"))[:-1],
        chunk(event("word"))[1:],
        b": ping\n\n",
    ],
)
def test_any_other_read_is_kept_to_be_understood(read: bytes) -> None:
    played = Played(CHAT).push([HEAD, *[chunk(event("word"))] * 40])
    counted = len(played.exchange._times)
    played.exchange.received(read, 50.0)
    assert [data for data, _ in played.exchange._parts] == [read]
    assert len(played.exchange._times) == counted


@pytest.mark.parametrize(
    "read",
    [
        chunk(event("other word")),
        upper(event("word")),
        chunk(event("word", created=1790000000)),
        chunk(event("word", name="chatcmpl-000: {[,]}")),
    ],
)
def test_a_read_that_differs_in_what_is_not_read_is_counted(read: bytes) -> None:
    Played(CHAT).push([HEAD, read, LAST])  # so that the size of its chunk is known
    played = Played(CHAT).push([HEAD, *[chunk(event("word"))] * 40, read, read])
    exchange = played.exchange
    assert not exchange._parts
    assert list(exchange._times)[-2:] == [43.0, 44.0]


def test_what_one_answer_taught_serves_the_next() -> None:
    """The form, and the sizes of its chunks: so none but the first read has to be kept."""
    words = [chunk(event("first")), chunk(event("b"))]
    Played(CHAT).push([HEAD, *words * 20, LAST])
    exchange = Played(CHAT).push([HEAD, chunk(event("other", name="y")), *words]).exchange
    assert not exchange._parts
    assert list(exchange._times) == [3.0, 4.0, 5.0]


def test_forms_are_bounded_and_events_without_one_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each event with a member of its own name: soon no more forms are made, and all are right."""
    forms = like.Forms(openai._forms._names)
    monkeypatch.setattr(openai, "_forms", forms)
    numbers = count()
    for _ in range(12):
        letters = ["".join(chr(97 + int(d)) for d in str(next(numbers))) for _ in range(300)]
        reads = [chunk(event("w", more=f',"m{name}":1')) for name in letters]
        quick, full, _ = records([HEAD, *reads, LAST])
        assert quick.chunk_s == full.chunk_s
        assert len(quick.chunk_s) == 300
    assert len(forms._made) == like._FORMS_KEPT


def test_nothing_counts_after_an_error_in_the_stream() -> None:
    failed = chunk(b'data: {"error":{"message":"out of memory"}}\n\n')
    reads = [HEAD, *[chunk(event("word"))] * 20, failed, *[chunk(event("word"))] * 20, LAST]
    quick, full, _ = records(reads)
    assert quick.outcome is full.outcome is Outcome.HTTP_ERROR
    assert len(quick.chunk_s) == len(full.chunk_s) == 20


def test_likeness_is_not_used_in_the_middle_of_a_chunk() -> None:
    """Bytes that look like a chunk with an event may be text of a longer event."""
    inner = chunk(event("word"))
    outer = b": " + inner.replace(b"\r\n", b"  ").replace(b"\n", b" ") + b"\n\n"
    reads = [HEAD, *[chunk(event("word"))] * 20]
    middle = chunk(b":" + inner + b"\n\n")
    cut = middle.index(inner)
    quick, full, _ = records(
        [*reads, chunk(outer), middle[:cut], inner, middle[cut + len(inner) :]]
    )
    assert quick.chunk_s == full.chunk_s


def test_what_is_put_off_is_understood_in_its_turn() -> None:
    later: list[Callable[[], None]] = []
    played = Played(CHAT, put_off=later.append)
    played.push([HEAD, *[chunk(event("word"))] * 5, LAST], at_s=[2.0, 3, 4, 5, 6, 7, 8])
    assert played.exchange.record is None
    assert len(later) == 1, "it waits once, whatever arrives meanwhile"
    later[0]()
    record = played.record
    assert (list(record.chunk_s), record.end_s) == ([3, 4, 5, 6, 7], 8)


def test_what_waits_for_long_is_bounded() -> None:
    later: list[Callable[[], None]] = []
    played = Played(CHAT, put_off=later.append)
    played.push([HEAD, *[chunk(event("wörd"))] * 3000])
    assert len(played.exchange._parts) < 300
    played.exchange.abandon(Outcome.CENSORED, 5000.0)
    assert len(played.record.chunk_s) == 3000
    for call in later:  # what is late for its turn does no harm
        call()
    assert played.ended == 1

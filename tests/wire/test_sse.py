"""The event decoder, fed byte by byte and cut anywhere."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.wire.sse import SseDecoder


def events(data: bytes, cuts: list[int] | None = None) -> list[bytes]:
    decoder = SseDecoder()
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts or []), len(data)]
    return [
        event
        for a, b in pairwise(edges)
        for event in decoder.feed(data[a:b])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "wanted"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),  # one space only belongs to the field
        (b"data: a\r\n\r\n", [b"a"]),
        (b"data: a\r\r", [b"a"]),
        (b"data: a\r\n\ndata: b\n\r", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b"data:\ndata:\n\n", [b"\n"]),
        (b": comment\n\ndata: a\n\n", [b"a"]),
        (b"data: a\n: comment\nid: 7\nevent: x\nretry: 1\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),  # only one mark may start a stream
        (b"data: a\n\ndata: b\n\ndata: c\n\n", [b"a", b"b", b"c"]),
        (b"\n\n\r\r\n\n", []),
        (b"datum: a\n\n", []),
        (b"data: a", []),
        (b"data: a\n", []),
        (b"data: [DONE]\n\ndata: [DONE]\n\n", [b"[DONE]", b"[DONE]"]),
        ("data: \u2028长江\u0085\n\n".encode(), ["\u2028长江\u0085".encode()]),
    ],
)
def test_stream_gives_these_events_however_it_is_cut(stream: bytes, wanted: list[bytes]) -> None:
    assert events(stream) == wanted
    assert events(stream, list(range(len(stream)))) == wanted
    for cut in range(len(stream)):
        assert events(stream, [cut]) == wanted, f"cut at {cut}"


def test_unfinished_event_is_kept_back_and_shown() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: a\n\ndata: b\ndata: c") == [b"a"]
    assert b"b" in decoder.rest
    assert b"c" in decoder.rest


LINE_END = st.sampled_from(["\n", "\r\n", "\r"])
TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


@given(
    st.lists(st.tuples(st.lists(TEXT, min_size=1, max_size=3), LINE_END, TEXT), max_size=6),
    st.lists(st.integers(0, 500), max_size=8),
    st.booleans(),
)
def test_what_was_written_is_read(
    written: list[tuple[list[str], str, str]], cuts: list[int], bom: bool
) -> None:
    """Any events, with comments, under any line end, cut anywhere."""
    text = "\ufeff" if bom else ""
    for lines, end, comment in written:
        text += f":{comment}{end}" + "".join(f"data: {line}{end}" for line in lines) + end
    wanted = ["\n".join(lines).encode() for lines, _, _ in written]
    assert events(text.encode(), cuts) == wanted


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_garbage_is_read_the_same_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    assert events(data, cuts) == events(data)


def test_line_of_ten_megabytes_is_one_event() -> None:
    payload = json.dumps({"x": "é" * 5_000_000}, ensure_ascii=False).encode()
    stream = b"data: " + payload + b"\n\n"
    decoder = SseDecoder()
    found = [
        e for i in range(0, len(stream), 262_144) for e in decoder.feed(stream[i : i + 262_144])
    ]
    assert found == [payload]

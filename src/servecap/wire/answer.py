"""What one response has told so far, in the same words for every API dialect."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from servecap.errors import UNREADABLE
from servecap.record import Counts, ServerTimings, Times, no_counts, no_times
from servecap.wire.like import Form

_T = TypeVar("_T")
_FORM_FROM = 3  # chunks; for shorter answers it does not pay to look for one
_MOST_ERROR_CHARS = 300


class Answer(msgspec.Struct, gc=False):
    """Filled in by a dialect while it reads a response; the client makes a `Record` of it.

    `chunk_s` holds the arrival time of each chunk with output. `chunk_tokens` holds how many
    tokens each carried where the server tells (else it stays empty: a chunk is not a token).
    """

    keep_text: bool = True
    form: Form | None = None  # of events that need no decoding
    form_from: int = _FORM_FROM  # chunks, from which on a new one may be looked for
    chunk_s: Times = msgspec.field(default_factory=no_times)
    chunk_tokens: Counts = msgspec.field(default_factory=no_counts)
    counted: int = 0  # their sum
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    last_token_s: float | None = None  # where it is later than the last output
    timings: ServerTimings | None = None
    done: bool = False  # the dialect's own end mark was seen
    error: str | None = None
    error_status: int | None = None
    text: list[str] = []  # kept only to count tokens where the server does not


def is_mark(answer: Answer, data: bytes) -> bool:
    """Whether the event is no JSON but the end mark, which is noted, or a mere sign of life."""
    data = data.strip()
    if data == b"[DONE]":
        answer.done = True
        return True
    return not data


class BadAnswer(Exception):
    """The response is no valid answer of its dialect; the message says what is wrong."""


def parse(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    """The JSON in *data*.

    Raises:
        BadAnswer: it is malformed, or of another shape.
    """
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        shown = clean(data[:80].decode("utf-8", "replace"))
        raise BadAnswer(f"malformed JSON from the server ({error}): {shown}") from None


_GAPS = re.compile("\0+")


def clean(text: str) -> str:
    """Text of a server made safe to print: one line, bounded, no control characters.

    >>> clean("bad\\x1b[31m key\\n")
    'bad [31m key'
    """
    shown = "".join(c if c.isprintable() else "\0" for c in text[: 4 * _MOST_ERROR_CHARS])
    return _GAPS.sub(" ", shown).strip()[:_MOST_ERROR_CHARS]


@lru_cache(maxsize=64)
def reason(text: str) -> str:
    """A finish reason made safe to print; there are few, and each comes with every answer."""
    return clean(text)


def error_text(body: bytes) -> str:
    """The message inside an error body of any dialect, or the body itself, made printable."""
    try:
        found: Any = msgspec.json.decode(body)
    except UNREADABLE:
        return clean(body.decode("utf-8", "replace"))
    return clean(message_of(found))


_MESSAGE_KEYS = ("error", "message", "detail", "msg")


def message_of(found: Any) -> str:
    """The human part of a decoded error: OpenAI, vLLM, SGLang, TGI and FastAPI shapes."""
    while True:
        inner = None
        if isinstance(found, dict):
            inner = next((found[key] for key in _MESSAGE_KEYS if found.get(key)), None)
        elif isinstance(found, list) and found:
            inner = found[0]
        if inner is None:
            return found if isinstance(found, str) else msgspec.json.encode(found).decode()
        found = inner

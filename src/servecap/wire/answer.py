"""What one response has told so far, in the same words for every API dialect."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from servecap.errors import UNREADABLE
from servecap.record import Counts, ServerTimings, Times
from servecap.wire.like import Like

_T = TypeVar("_T")
_MOST_ERROR_CHARS = 300


class Answer:
    """Filled in by a dialect while it reads a response; the client makes a `Record` of it.

    `chunk_s` holds the arrival time of each chunk with output. `chunk_tokens` holds how many
    tokens each carried where the server tells (else it stays empty: a chunk is not a token).
    """

    __slots__ = (
        "cached_tokens",
        "chunk_s",
        "chunk_tokens",
        "counted",
        "done",
        "error",
        "error_status",
        "finish_reason",
        "keep_text",
        "last_token_s",
        "output_tokens",
        "prompt_tokens",
        "same",
        "text",
        "timings",
    )

    def __init__(self, *, keep_text: bool = True) -> None:
        self.keep_text = keep_text
        self.same: Like | None = None  # of events that need no decoding
        self.chunk_s = Times()
        self.chunk_tokens = Counts()
        self.counted = 0  # their sum
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.finish_reason: str | None = None
        self.last_token_s: float | None = None  # where it is later than the last output
        self.timings: ServerTimings | None = None
        self.done = False  # the dialect's own end mark was seen
        self.error: str | None = None
        self.error_status: int | None = None
        self.text: list[str] = []  # kept only to count tokens where the server does not


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

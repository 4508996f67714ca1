"""The only currency between the verbs: what was asked (`Request`) and what happened (`Record`).

Seconds are floats since the run's start on one monotonic clock. Absent is `None`, never 0.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec

if TYPE_CHECKING:
    FloatArray = array[float]
    IntArray = array[int]
else:
    FloatArray = IntArray = array

_array = array.__new__  # `super()` would take as long again


class Times(FloatArray):
    """Seconds, 8 bytes each, that the garbage collector need not walk."""

    __slots__ = ()

    def __new__(cls, values: Iterable[float] | None = None) -> Self:
        made = _array(cls, "d") if values is None else _array(cls, "d", values)
        return cast("Self", made)


class Counts(IntArray):
    """Small whole numbers, 4 bytes each."""

    __slots__ = ()

    def __new__(cls, values: Iterable[int] | None = None) -> Self:
        made = _array(cls, "I") if values is None else _array(cls, "I", values)
        return cast("Self", made)


# Two empty ones are made for every request: this takes half as long as calling the class.
no_times: Callable[[], Times] = partial(cast("Any", _array), Times, "d")
no_counts: Callable[[], Counts] = partial(cast("Any", _array), Counts, "I")


class Outcome(StrEnum):
    """How a request ended. A failure is data, not an exception."""

    OK = "ok"
    TIMEOUT = "timeout"  # a limit of ours passed: connect, first token, gap or total
    REFUSED = "refused"  # no connection could be had
    HTTP_ERROR = "http_error"  # an answer, but not one of success (also an error inside a stream)
    BROKEN_STREAM = "broken_stream"  # the answer stopped short or was no valid stream
    CANCELLED = "cancelled"  # given up by the user of the tool (Ctrl-C)
    CENSORED = "censored"  # still running when the measurement ended


_OK = Outcome.OK  # an enum's member is found slowly, and `ok` is asked millions of times

LATER = (429, 503)  # statuses that say so, where 500 and the others say no
NOT_SENT = "not sent:"  # how the error of an arrival beyond the ceiling begins


class TokenSource(StrEnum):
    """Where token counts come from, best first."""

    SERVER = "server"  # the server's own usage figures
    TOKENIZER = "tokenizer"  # a tokenizer file given by the user
    ESTIMATE = "estimate"  # counted chunks, or characters: marked wherever it is printed


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to ask. `prompt_tokens` is an estimate until the server has counted."""

    request_id: int
    messages: tuple[Message, ...]
    prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    exact_output: bool = False  # the answer shall have exactly max_output_tokens tokens
    session: int | None = None
    turn: int = 0
    prefix_tokens: int | None = None  # leading tokens shared with another request
    due_s: float | None = None  # when a trace says that it is sent, since the trace's start
    part: int | None = None  # of a mix of workloads, counted from 0
    turns_left: int = 0  # so many of the requests that follow are later turns of its session

    @property
    def text(self) -> str:
        """All that its messages say, for dialects that know no messages."""
        return "\n".join(message.content for message in self.messages)


class Arrival(msgspec.Struct, frozen=True):
    """A request that is due: *user* sends it at *planned_s*.

    Of a later try, `first_planned_s` is when the first one was due.
    """

    request: Request
    user: int
    planned_s: float
    attempt: int = 1
    first_planned_s: float | None = None


class ServerTimings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the server says of itself, in seconds. `origin` tells which fields it was read from."""

    origin: str
    queue_s: float | None = None
    prefill_s: float | None = None
    inference_s: float | None = None  # prefill + decode
    tpot_s: float | None = None
    total_s: float | None = None

    @property
    def ttft_s(self) -> float | None:
        """Queue + prefill: the server's share of the first-token latency; None if one is unknown.

        A server that keeps its queue to itself (llama.cpp) would else look unloaded.
        """
        if self.prefill_s is None or self.queue_s is None:
            return None
        return self.prefill_s + self.queue_s


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened to one request.

    `chunk_s[i]` is when the i-th chunk with output arrived and `chunk_tokens[i]` how many tokens
    it carried (a chunk is not a token); both are empty when the answer was not streamed.
    `last_token_s` is there where the last chunk is not when the last token came: the answer ended
    with a token without text, or it is an imported request with nothing timed in between.

    A request that was tried again has a record for each try, of the same `request_id`. Every time
    in it is of that try, but latencies count from when the first one was planned: so long has the
    user waited.
    """

    request_id: int
    user: int
    planned_s: float
    sent_s: float
    end_s: float
    outcome: Outcome
    first_token_s: float | None = None
    last_token_s: float | None = None
    chunk_s: Times = msgspec.field(default_factory=Times)
    chunk_tokens: Counts = msgspec.field(default_factory=Counts)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None  # prompt tokens that the server took from its prefix cache
    asked_output_tokens: int | None = None
    exact_output: bool = False
    token_source: TokenSource = TokenSource.ESTIMATE
    server: ServerTimings | None = None
    status: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    session: int | None = None
    turn: int = 0
    part: int | None = None
    attempt: int = 1
    first_planned_s: float | None = None  # of a later try: when the first was planned
    resent: bool = False  # over a fresh connection, as the kept-open one was closed unanswered
    retry_after_s: float | None = None  # how long the server asked to wait (Retry-After)

    @property
    def asked_s(self) -> float:
        """Since when the user has waited: the planned time, of the first try."""
        return self.planned_s if self.first_planned_s is None else self.first_planned_s

    @property
    def made_good(self) -> bool:
        """Whether it is the success of a request that had failed before."""
        return self.attempt > 1 and self.ok

    @property
    def may_be_tried_again(self) -> bool:
        """Whether nothing of the request was served, and another try may fare better.

        So it is where no connection could be had, the server closed it before the first byte of
        an answer, or it answered 429 or 503. An answer that broke off has cost the server its
        work, and a timeout has cost users their time: neither is repeated.
        """
        if self.outcome is Outcome.REFUSED:
            return not self.turned_away
        return self.outcome is Outcome.HTTP_ERROR and self.status in LATER

    @property
    def turned_away(self) -> bool:
        """Whether it was never sent, since too many were in flight."""
        return self.outcome is Outcome.REFUSED and (self.error or "").startswith(NOT_SENT)

    @property
    def ok(self) -> bool:
        return self.outcome is _OK

    @property
    def lag_s(self) -> float:
        """How late the client sent it."""
        return self.sent_s - self.planned_s

    @property
    def ttft_s(self) -> float | None:
        """First-token latency from the *planned* time, so that a late client cannot hide it."""
        return None if self.first_token_s is None else self.first_token_s - self.asked_s

    @property
    def ttft_sent_s(self) -> float | None:
        """First-token latency from the time of sending."""
        return None if self.first_token_s is None else self.first_token_s - self.sent_s

    @property
    def e2e_s(self) -> float:
        """Response time from the planned time to the end of the answer."""
        return self.end_s - self.asked_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first chunk; None with fewer than two tokens or chunks.

        (last - first) / (tokens - tokens in the first chunk): with one token per chunk this is
        the usual (last - first) / (tokens - 1).
        """
        last_s = self.last_token_s
        if last_s is None and len(self.chunk_s) > 1:
            last_s = self.chunk_s[-1]
        if self.first_token_s is None or self.output_tokens is None or last_s is None:
            return None
        first = self.chunk_tokens[0] if self.chunk_tokens else 1
        later = self.output_tokens - (first or 1)
        if later < 1:
            return None
        return (last_s - self.first_token_s) / later

    def gaps_s(self) -> list[float]:
        """Times between successive chunks of output."""
        return [b - a for a, b in zip(self.chunk_s, self.chunk_s[1:], strict=False)]


def last_tries(records: Iterable[Record], retries: int) -> list[Record]:
    """Those of the records with which their request was over: no retry followed."""
    return [r for r in records if r.attempt > retries or not r.may_be_tried_again]


def error_kind(record: Record) -> str:
    """A short name of what went wrong: the outcome, with the HTTP status where there is one."""
    if record.outcome is Outcome.HTTP_ERROR and record.status is not None:
        return f"http_{record.status}" if record.status >= 400 else "error_in_stream"
    return str(record.outcome)


def _to_json(value: Any) -> Any:
    if isinstance(value, Times):
        return [round(x, 6) for x in value]  # microseconds: finer than the clocks they come from
    if isinstance(value, Counts):
        return value.tolist()
    raise TypeError(f"cannot encode {type(value).__name__}")


def _from_json(kind: type, value: Any) -> Any:
    if kind is Times or kind is Counts:
        try:
            return _times(value) if kind is Times else _counts(value)
        except (OverflowError, struct.error) as error:
            raise ValueError(str(error)) from None  # msgspec makes a DecodeError of the other kinds
    raise TypeError(f"cannot decode {kind}")


def _times(values: Any) -> Times:
    """The same as `Times(values)`, whose numbers would be taken one by one."""
    return cast("Times", _array(Times, "d", _packer(len(values))(*values)))


@lru_cache(maxsize=1024)
def _packer(count: int) -> Callable[..., bytes]:
    """Makes the bytes of so many times."""
    return struct.Struct(f"{count}d").pack


_WIDTH = array("I").itemsize
_LOWEST = 0 if sys.byteorder == "little" else _WIDTH - 1  # of a number's bytes


def _counts(values: Any) -> Counts:
    """The same as `Counts(values)`; where all are below 256 those that are alike share one."""
    if isinstance(values, list) and values.count(1) == len(values):  # of most answers
        return ones(len(values))
    try:
        low = bytes(values) if isinstance(values, list) else None
    except (TypeError, ValueError):
        low = None
    return Counts(values) if low is None else _counts_below_256(low)


@lru_cache(maxsize=256)
def ones(chunks: int) -> Counts:
    """One token in each of so many chunks: shared, not to be changed."""
    return Counts([1] * chunks)


@lru_cache(maxsize=256)
def _counts_below_256(low: bytes) -> Counts:
    """One for each number; most answers of a run have one token in each of as many chunks."""
    wide = bytearray(_WIDTH * len(low))
    wide[_LOWEST::_WIDTH] = low
    found = Counts()
    found.frombytes(wide)
    return found


_encoder = msgspec.json.Encoder(enc_hook=_to_json)
_decoder = msgspec.json.Decoder(Record, dec_hook=_from_json)


def encode(record: Record) -> bytes:
    """The record as one line of JSON, without the newline."""
    return _encoder.encode(record)


def decode(line: bytes) -> Record:
    """The record in one line of JSON.

    Raises:
        msgspec.DecodeError: the line is not a whole record.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        return _decoder.decode(line)
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None

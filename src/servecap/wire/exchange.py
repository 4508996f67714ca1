"""One request and its response: stamps every read at once, understands them later."""

from __future__ import annotations

from collections.abc import Callable

from servecap.record import Arrival, Counts, Outcome, Record, TokenSource, ones
from servecap.wire.answer import Answer, BadAnswer, clean, error_text
from servecap.wire.api import Api
from servecap.wire.connection import Connection
from servecap.wire.http import HttpBroken, ResponseReader, retry_after_s
from servecap.wire.like import Form
from servecap.wire.lines import LineDecoder
from servecap.wire.sse import SseDecoder

_PARTS_KEPT = 16  # unread parts of a long stream before they are read in between
_PARTS_MOST = 256  # while there is no time for that
_END = b"\r\n\r\n"
_GIVEN_UP = ("abort", "error")  # vLLM's, when it shuts down or fails in the middle of an answer
_LINES = "application/x-ndjson"
_STREAMED = ("text/event-stream", _LINES)
_SHORT = 7  # a read shorter than the last-chunk mark with its line end may be a cut-off part of it


def at_once(call: Callable[[], None]) -> None:
    """Put nothing off."""
    call()


class Exchange:
    """Owns a connection from the sending of a request until its answer has ended.

    Reads are stamped and kept; HTTP, events and JSON are understood only when a read may hold the
    end of the response (or many reads have gathered), and even then `put_off` until no socket
    waits to be read, so that understanding one stream delays the stamping of the others as little
    as possible. Not kept but just counted are reads that bring a chunk of output in the very form
    of an earlier one, as most do.
    """

    __slots__ = (
        "_answer",
        "_api",
        "_body",
        "_count_tokens",
        "_deferring",
        "_events",
        "_form",
        "_on_done",
        "_parts",
        "_put_off",
        "_read_s",
        "_reader",
        "_room",
        "_times",
        "_waiting",
        "arrival",
        "connection",
        "look_s",
        "payload",
        "record",
        "resent",
        "retry",
        "sent_s",
    )

    def __init__(
        self,
        arrival: Arrival,
        api: Api,
        on_done: Callable[[Exchange], None],
        count_tokens: Callable[[str], int] | None,
        put_off: Callable[[Callable[[], None]], None] = at_once,
    ) -> None:
        self.arrival = arrival
        self.connection: Connection | None = None
        self.payload = b""
        self.sent_s = 0.0
        self.look_s = 0.0  # before, none of its timeouts can pass
        self.retry: Callable[[Exchange], None] | None = None  # if nothing at all is answered
        self.resent = False
        self.record: Record | None = None
        self._api = api
        self._on_done = on_done
        self._count_tokens = count_tokens
        self._reader = ResponseReader()
        self._events: SseDecoder | LineDecoder | None = None
        self._answer = Answer(keep_text=count_tokens is not None)
        self._times = self._answer.chunk_s
        self._read_s: float | None = None  # when the last read that was kept came
        self._form: Form | None = None  # of reads that need not be kept at the moment
        self._put_off = put_off
        self._waiting = False  # for its turn to be understood
        self._parts: list[tuple[bytes, float]] = []  # with when each was read
        self._body: list[bytes] = []
        self._deferring = False
        # Streams that began together must not all be read in the same moment.
        self._room = 1 + arrival.request.request_id % _PARTS_KEPT

    # called by the connection

    def received(self, data: bytes, at_s: float) -> None:
        form = self._form
        if form is not None and form.reads(data):
            self._times.append(at_s)
            return
        self._form = None  # nothing may overtake this
        self._read_s = at_s
        parts = self._parts
        parts.append((data, at_s))
        if self._waiting:
            if len(parts) >= _PARTS_MOST:
                self.understand()
        elif not (
            self._deferring
            and len(data) >= _SHORT
            and not data.endswith(_END)
            and len(parts) < self._room
        ):
            self._waiting = True
            self._put_off(self.understand)

    def closed(self, why: str | None, at_s: float) -> None:
        if self.retry is not None and self.last_read_s is None:
            self.retry(self)
            return
        self.understand()
        if self.record is not None:
            return
        if why is None and self._reader.end_of_connection():
            self._end_of_response(at_s)
        elif self._answer.done or self._answer.error is not None:
            self._end_of_answer(at_s)
        elif self._reader.status is None and self.last_read_s is None:
            self._finish(Outcome.REFUSED, at_s, why or "the server closed without an answer")
        else:
            self._finish(Outcome.BROKEN_STREAM, at_s, why or "the answer was cut short")

    @property
    def last_read_s(self) -> float | None:
        """When anything was received last."""
        read_s, times = self._read_s, self._times
        return read_s if read_s is None or not times else max(read_s, times[-1])

    @property
    def has_first_token(self) -> bool:
        return bool(self._answer.chunk_s)

    def understand(self) -> None:
        """Read all that was received so far."""
        self._waiting = False
        parts = self._parts
        if not parts or self.record is not None:
            return
        self._parts = []
        if self._deferring:
            self._room = _PARTS_KEPT
        try:
            for data, at_s in parts:
                pieces = self._reader.feed(data)
                if pieces:
                    self._take(pieces[0] if len(pieces) == 1 else b"".join(pieces), at_s)
        except (HttpBroken, BadAnswer) as error:
            self._finish(Outcome.BROKEN_STREAM, at_s, clean(str(error)))
            return
        if self._reader.complete:
            self._end_of_response(at_s)
        else:
            self._form = self._form_of_reads(data)

    def _form_of_reads(self, data: bytes) -> Form | None:
        """What may be counted without being kept after *data*, the last that was read."""
        answer, events = self._answer, self._events
        if answer.form is None or answer.error is not None or not isinstance(events, SseDecoder):
            return None
        between = events.between and self._reader.between_chunks
        return answer.form if between and answer.form.reads(data) else None

    def _take(self, piece: bytes, at_s: float) -> None:
        if self._events is None and not self._body:
            kind = self._reader.headers.get("content-type", "").lower()
            if self._reader.status == 200 and kind.startswith(_STREAMED):
                self._events = LineDecoder() if kind.startswith(_LINES) else SseDecoder()
                self._deferring = self._reader.chunked  # only there is the end told by its bytes
        if self._events is None:
            self._body.append(piece)
            return
        answer, read = self._answer, self._api.event
        for event in self._events.feed(piece):
            if answer.error is None:
                read(answer, event, at_s)

    def _end_of_response(self, at_s: float) -> None:
        status = self._reader.status or 0
        body = b"".join(self._body)
        if status != 200:
            self._finish(Outcome.HTTP_ERROR, at_s, error_text(body) or f"HTTP {status}")
            return
        if self._events is None:
            if not body:
                self._finish(Outcome.BROKEN_STREAM, at_s, "the answer is empty")
                return
            try:
                self._api.whole(self._answer, body, self._reader.headers)
            except BadAnswer as error:
                self._finish(Outcome.BROKEN_STREAM, at_s, clean(str(error)))
                return
        self._end_of_answer(at_s)

    def _end_of_answer(self, at_s: float) -> None:
        """The dialect's end was reached, or the response's: was it a whole answer?"""
        answer = self._answer
        if answer.error is not None:
            code = f"{answer.error_status}: " if answer.error_status else ""
            self._finish(Outcome.HTTP_ERROR, at_s, code + answer.error)
        elif answer.finish_reason in _GIVEN_UP:
            why = f"the server gave the answer up (finish_reason {answer.finish_reason!r})"
            self._finish(Outcome.BROKEN_STREAM, at_s, why)
        elif answer.finish_reason is None and not answer.done:
            self._finish(Outcome.BROKEN_STREAM, at_s, "the stream ended without its end mark")
        elif self._events is not None and answer.finish_reason is None and not answer.chunk_s:
            self._finish(Outcome.BROKEN_STREAM, at_s, "the stream ended without any output")
        else:
            self._finish(Outcome.OK, at_s)

    def end_if_answered(self, at_s: float) -> None:
        """End it if its answer is whole, though the response or the connection goes on."""
        self.understand()
        if self.record is None and (self._answer.done or self._answer.error is not None):
            self._end_of_answer(at_s)

    def abandon(self, outcome: Outcome, at_s: float, why: str | None = None) -> None:
        """End it from outside: a timeout, or the end of the measurement."""
        self.end_if_answered(at_s)
        if self.record is None:
            self._finish(outcome, at_s, why)

    def _finish(self, outcome: Outcome, at_s: float, error: str | None = None) -> None:
        if self.record is not None:
            return
        connection = self.connection
        if connection is not None and not (self._reader.complete and self._reader.keep_alive):
            connection.close()
        self._reader.release()
        self.record = self._make_record(outcome, at_s, error)
        self._on_done(self)

    def _make_record(self, outcome: Outcome, at_s: float, error: str | None) -> Record:
        answer, arrival = self._answer, self.arrival
        request = arrival.request
        prompt, output, source = self._tokens()
        chunks = answer.chunk_s
        known = len(answer.chunk_tokens) == len(chunks) or output == len(chunks)
        per_chunk = answer.chunk_tokens or ones(len(chunks))
        # By position: from 16 names on Python makes a dict of them for the call, which takes longer
        # than all else here.
        return Record(
            request.request_id,
            arrival.user,
            arrival.planned_s,
            self.sent_s,
            at_s,
            outcome,
            chunks[0] if chunks else None,
            answer.last_token_s if chunks else None,
            chunks,
            per_chunk if known else Counts(),
            prompt,
            output,
            answer.cached_tokens,
            request.max_output_tokens,
            request.exact_output,
            source,
            answer.timings,
            self._reader.status,
            answer.finish_reason,
            error,
            request.session,
            request.turn,
            request.part,
            arrival.attempt,
            arrival.first_planned_s,
            self.resent,
            retry_after_s(self._reader.headers),
        )

    def _tokens(self) -> tuple[int | None, int | None, TokenSource]:
        """Prompt and output tokens and the worse of their sources; chunks are the last resort."""
        answer = self._answer
        prompt, output = answer.prompt_tokens, answer.output_tokens
        if prompt is not None and output is not None:
            return prompt, output, TokenSource.SERVER
        if prompt is None:
            prompt = self.arrival.request.prompt_tokens
        known = self._count_tokens is not None
        if output is None and self._count_tokens is not None and answer.text:
            output = self._count_tokens("".join(answer.text))
        if output is None:
            output, known = len(answer.chunk_s) or None, False
        return prompt, output, TokenSource.TOKENIZER if known else TokenSource.ESTIMATE

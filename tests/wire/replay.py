"""Plays a recorded response to an exchange, in any pieces, without a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from servecap.record import Arrival, Counts, Message, Record, Request, Times
from servecap.wire.api import Api
from servecap.wire.connection import Owner
from servecap.wire.exchange import Exchange, at_once
from servecap.wire.ollama import Ollama
from servecap.wire.openai import OpenAi
from servecap.wire.sglang import SgLang
from servecap.wire.tgi import Tgi

STREAMS = Path(__file__).parent / "streams"
RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "streams"

REQUEST = Request(
    request_id=7, messages=(Message("user", "Name three rivers."),), max_output_tokens=12
)


class DeadConnection:
    """Stands where a connection does, and only knows whether it was closed."""

    def __init__(self) -> None:
        self.open = True
        self.established = True
        self.owner: Owner | None = None

    def close(self) -> None:
        self.open = False


class Played:
    """An exchange that is fed by hand."""

    def __init__(
        self,
        api: Api,
        request: Request = REQUEST,
        count_tokens: Callable[[str], int] | None = None,
        put_off: Callable[[Callable[[], None]], None] = at_once,
    ) -> None:
        self.connection = DeadConnection()
        self.ended = 0
        arrival = Arrival(request, 3, 1.0)
        self.exchange = Exchange(arrival, api, self._done, count_tokens, put_off)
        self.exchange.connection = self.connection  # type: ignore[assignment]
        self.exchange.sent_s = 1.5

    def _done(self, _: Exchange) -> None:
        self.ended += 1

    def push(self, parts: Iterable[bytes], at_s: Sequence[float] | None = None) -> Played:
        for number, part in enumerate(parts):
            if self.exchange.record is not None:
                break
            self.exchange.received(part, at_s[number] if at_s else 2.0 + number)
        return self

    def close(self, why: str | None = None, at_s: float = 99.0) -> Played:
        if self.exchange.record is None:
            self.exchange.closed(why, at_s)
        return self

    @property
    def record(self) -> Record:
        assert self.exchange.record is not None, "the exchange has not ended"
        assert self.ended == 1
        return self.exchange.record


def api_of(name: str) -> Api:
    """The dialect that the stream of that file name is in."""
    if name.startswith("tgi"):
        return Tgi(stream=True)
    if name.startswith("ollama"):
        return Ollama(chat="generate" not in name)
    if name.startswith("sglang-generate"):
        return SgLang()
    return OpenAi(chat="completions" not in name)


def played(data: bytes, api: Api, *, cuts: Sequence[int] = (), why: str | None = None) -> Record:
    """The record of *data* received in the pieces that *cuts* make of it, then closed."""
    edges = [0, *cuts, len(data)]
    parts = [data[a:b] for a, b in pairwise(edges)]
    return Played(api).push(parts).close(why).record


def timeless(record: Record) -> Record:
    """The record without its times, but with as many chunk times as there were."""
    return msgspec.structs.replace(
        record,
        end_s=0.0,
        first_token_s=None if record.first_token_s is None else 0.0,
        last_token_s=None if record.last_token_s is None else 0.0,
        chunk_s=Times([0.0] * len(record.chunk_s)),
    )


def response(
    body: bytes,
    *,
    status: str = "200 OK",
    kind: str = "text/event-stream",
    headers: str = "",
    chunked: bool = True,
) -> bytes:
    """An HTTP response with that body, as one chunk or with its length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{headers}"
    if not chunked:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    chunks = chunk(body) if body else b""
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """*data* as one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def same_chunks(record: Record, tokens: list[int]) -> bool:
    return record.chunk_tokens == Counts(tokens)

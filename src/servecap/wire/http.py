"""HTTP/1.1 without I/O: a request as bytes, and a reader of one response."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httptools
import msgspec

from servecap.wire.chunked import BadChunk, ChunkReader

NO_HTTP = "not a valid HTTP response"
_RETRY_DIGITS = 9  # thirty years of seconds
_HEAD_END = b"\r\n\r\n"


class HttpBroken(Exception):
    """The bytes are no HTTP response, or there are more of them than the response has."""


def request_bytes(
    method: str, path: str, *, host: str, headers: dict[str, str], body: bytes = b""
) -> bytes:
    """The whole request, ready to be sent on a connection that stays open."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def post_head(path: str, *, host: str, headers: dict[str, str]) -> bytes:
    """The head of a POST request up to its length: append the length, two line ends, the body."""
    return request_bytes("POST", path, host=host, headers=headers).removesuffix(b"0\r\n\r\n")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the server asks to wait before the next try, in seconds; None: it does not say.

    A point in time counts from the answer's own Date, so that no two clocks meet.

    Source:
        RFC 9110, section 10.2.3 (Retry-After).

    >>> retry_after_s({"retry-after": "120"})
    120.0
    """
    told = headers.get("retry-after")
    if told is None:
        return None
    if told.isascii() and told.isdecimal():
        return float(told[:_RETRY_DIGITS])
    try:
        wait = parsedate_to_datetime(told) - parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, wait.total_seconds())


class _Head(msgspec.Struct, frozen=True):
    """What the head of a chunked response told."""

    status: int
    headers: dict[str, str]  # shared by all responses with this head
    keep_alive: bool


_heads: dict[bytes, _Head] = {}  # seen before: a server's heads differ by their date at most
_HEADS_KEPT = 64
_HEAD_BYTES = 4096  # longer ones are not kept


class ResponseReader:
    """Reads one response; give it what arrives and take the body's pieces.

    The head is httptools' business (once for all responses with the same bytes), and so are
    bodies with a length; chunked ones, of which every token costs a chunk, are taken apart by a
    `ChunkReader`, which does less per chunk.

    `framed` is False for a body that ends with the connection. `complete` turns True once the
    whole response is there; what `feed` returned until then is its body, dechunked. `headers` is
    to be read only.
    """

    __slots__ = (
        "_chunks",
        "_parser",
        "_pieces",
        "_released",
        "_tail",
        "chunked",
        "complete",
        "framed",
        "headers",
        "keep_alive",
        "status",
    )

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.framed = True
        self.chunked = False
        self.complete = False
        self.keep_alive = False
        self._chunks: ChunkReader | None = None
        self._tail = b""  # the head's last bytes, which may begin the mark of its end
        self._pieces: list[bytes] = []
        self._parser: Any = None
        self._released = False

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of the body in *data*.

        Raises:
            HttpBroken: this is no HTTP response, or goes on after its end.
        """
        if self._chunks is not None and not self.complete:
            return self._dechunk(self._chunks, data)
        if self.complete or self._released:
            raise HttpBroken("the server sent bytes after the end of the response")
        if self._parser is None:
            edge = data.find(_HEAD_END) + len(_HEAD_END)
            head = _heads.get(data[:edge])
            if head is not None:
                self.status, self.headers = head.status, head.headers
                self.keep_alive = head.keep_alive
                return self._chunks_begin(data[edge:])
            self._parser = httptools.HttpResponseParser(self)
            return self._head(data, alone=True)
        return self._head(data, alone=False)

    def _head(self, data: bytes, *, alone: bool) -> list[bytes]:
        """Read on to the end of the head; *alone*: the response begins with *data*."""
        while self.status is None:  # an interim response (100, 103) may come before the real one
            edge = (self._tail + data).find(_HEAD_END) - len(self._tail) + len(_HEAD_END)
            if edge < len(_HEAD_END) - len(self._tail):
                self._tail = (self._tail + data)[-3:]
                break
            self._tail = b""
            self._parse(data[:edge])
            if self.chunked and not self.complete:
                if alone and edge <= _HEAD_BYTES:
                    self._remember(data[:edge])
                return self._chunks_begin(data[edge:])
            data = data[edge:]
            alone = False
        if data:
            self._parse(data)
        pieces = self._pieces
        self._pieces = []
        return pieces

    def _remember(self, head: bytes) -> None:
        if len(_heads) >= _HEADS_KEPT:
            _heads.clear()
        assert self.status is not None
        _heads[head] = _Head(self.status, self.headers, self.keep_alive)

    def _chunks_begin(self, data: bytes) -> list[bytes]:
        self.chunked = True
        self._chunks = ChunkReader()
        self.release()
        return self._dechunk(self._chunks, data)

    @property
    def between_chunks(self) -> bool:
        """Whether what comes next is the beginning of a chunk."""
        return self._chunks is not None and self._chunks.between

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise HttpBroken(f"{NO_HTTP}: {error}") from None

    def _dechunk(self, chunks: ChunkReader, data: bytes) -> list[bytes]:
        try:
            pieces = chunks.feed(data)
        except BadChunk as error:
            raise HttpBroken(f"{NO_HTTP}: {error}") from None
        if chunks.complete:
            self.complete = True
            if chunks.rest:
                raise HttpBroken("the server sent bytes after the end of the response")
        return pieces

    def end_of_connection(self) -> bool:
        """Whether the response is whole now that the server has closed the connection."""
        if self.status is not None and not self.framed:
            self.complete = True
        return self.complete

    def release(self) -> None:
        """Let go of the parser: it and this reader hold each other, and load runs without a GC."""
        self._parser = None
        self._released = True

    # called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        names = self.headers
        self.chunked = "chunked" in names.get("transfer-encoding", "").lower()
        self.framed = self.chunked or "content-length" in names or self.status in (204, 304)
        self.keep_alive = self.framed and self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.status is not None and self.status < 200:  # 100 Continue, 103 Early Hints
            self.status = None
            self.headers = {}
        elif self.framed:
            self.complete = True

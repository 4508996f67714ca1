"""The chunked transfer coding without I/O: bytes in, the body's pieces out."""

from __future__ import annotations

import re

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}[\t ]*(;[^\n]*)?")
_LAST = b"0\r\n\r\n"
_LINE_BYTES = 8192  # longer is no chunk size, and nothing that a server means to send
known_sizes: dict[bytes, int] = {}  # of size lines seen before; they repeat all the time
_SIZES_KEPT = 4096


class BadChunk(Exception):
    """The bytes are no chunked body; the message says why."""


class ChunkReader:
    """Takes a chunked body apart, however it was cut; `complete` once its end was read.

    Trailers are passed over. What follows the end is left in `rest`.

    Source:
        RFC 9112, section 7.1.
    """

    __slots__ = ("_left", "_line", "_trailer", "complete", "rest")

    def __init__(self) -> None:
        self.complete = False
        self.rest = b""
        self._line = b""  # of a size or a trailer, not whole yet
        self._left = 0  # bytes to come of the chunk and its line end
        self._trailer = False

    @property
    def between(self) -> bool:
        """Whether what comes next is the beginning of a chunk."""
        return not (self._left or self._line or self._trailer or self.complete)

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of the body in *data*.

        Raises:
            BadChunk: this is no chunked body.
        """
        pieces: list[bytes] = []
        at = 0
        if not (self._left or self._line or self._trailer):
            while (edge := data.find(b"\r\n", at, at + 17)) >= 0:  # the usual: whole chunks
                size = known_sizes.get(data[at:edge])
                end = edge + 2 + (size or 0)
                if not size or data[end : end + 2] != b"\r\n":
                    break
                pieces.append(data[edge + 2 : end])
                at = end + 2
            if at == len(data):
                return pieces
            if data.startswith(_LAST, at):
                self.complete = True
                self.rest = data[at + len(_LAST) :]
                return pieces
        return self._slow(data, at, pieces)

    def _slow(self, data: bytes, at: int, pieces: list[bytes]) -> list[bytes]:
        while at < len(data) and not self.complete:
            if self._left:
                at = self._data(data, at, pieces)
                continue
            edge = data.find(b"\n", at)
            if edge < 0:
                self._line += data[at:]
                if len(self._line) > _LINE_BYTES:
                    raise BadChunk("a line without end where a chunk's size should be")
                return pieces
            line = (self._line + data[at:edge]).removesuffix(b"\r")
            self._line = b""
            at = edge + 1
            if self._trailer:
                self.complete = not line
            else:
                self._size(line)
        if self.complete:
            self.rest = data[at:]
        return pieces

    def _data(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take what *data* has of the chunk and of the line end after it."""
        end = min(at + self._left - 2, len(data))
        if end > at:
            pieces.append(data[at:end])
            self._left -= end - at
            at = end
        while at < len(data) and 0 < self._left <= 2:
            if data[at] != b"\r\n"[2 - self._left]:
                raise BadChunk("a chunk is longer than it says")
            self._left -= 1
            at += 1
        return at

    def _size(self, line: bytes) -> None:
        size = known_sizes.get(line)
        if size is None:
            if not _SIZE.fullmatch(line):
                raise BadChunk(f"{line[:20]!r} is no chunk size")
            size = int(line.partition(b";")[0], 16)
            if len(known_sizes) >= _SIZES_KEPT:
                known_sizes.clear()
            known_sizes[line] = size
        self._trailer = size == 0
        self._left = size + 2 if size else 0

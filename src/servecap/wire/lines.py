"""A stream of one JSON object a line, cut into its lines without I/O."""

from __future__ import annotations


class LineDecoder:
    """Cuts a byte stream into its lines, however it was cut before; empty ones are passed over.

    A line that the stream's end cuts short is not given out.
    """

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = bytearray()  # an unfinished line, which may be of megabytes in many reads

    def feed(self, data: bytes) -> list[bytes]:
        """Every line that *data* completes."""
        if b"\n" not in data:
            self._tail += data
            return []
        lines = (bytes(self._tail) + data).split(b"\n")
        self._tail = bytearray(lines.pop())
        return [line for line in map(bytes.strip, lines) if line]

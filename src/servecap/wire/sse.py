"""Server-sent events, decoded without I/O: bytes in, whole events' data out."""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"


class SseDecoder:
    """Cuts a byte stream into the data of its events, however the stream was cut before.

    Lines may end in LF, CRLF or CR; comments and fields other than `data` are passed over;
    several `data` lines of one event are joined by LF. An event that the stream's end cuts short
    is not given out (`rest` tells).

    Source:
        WHATWG HTML Living Standard, section 9.2.6, "Interpreting an event stream".
    """

    __slots__ = ("_after_cr", "_clean", "_data", "_started", "_tail")

    def __init__(self) -> None:
        self._tail = bytearray()  # an unfinished line, which may be of megabytes in many reads
        self._data: list[bytes] = []
        self._started = False
        self._after_cr = False
        self._clean = False  # between two events

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that *data* completes."""
        if not self._started and not self._tail and data.startswith(b"data: "):  # no mark to pass
            self._started = self._clean = True
        if self._clean and data.startswith(b"data: ") and data.endswith(b"\n\n"):
            found = data[6:-2].split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(found) and b"\r" not in data:
                return found  # the usual: whole events of one line each
        events = self._feed(data)
        self._clean = self._started and not (self._tail or self._data or self._after_cr)
        return events

    def _feed(self, data: bytes) -> list[bytes]:
        if not self._started:
            data = bytes(self._tail) + data
            self._tail.clear()
            if len(data) < 3 and _BOM.startswith(data):
                self._tail += data
                return []
            self._started = True
            if data.startswith(_BOM):
                data = data[3:]
        if self._after_cr and data:
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in data:
            self._tail += data
            return []
        if self._tail:
            data = bytes(self._tail) + data
            self._tail.clear()
        lines = data.split(b"\n")
        self._tail += lines.pop()
        return self._events(lines)

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        pending = self._data
        for line in lines:
            if line.startswith(b"data:"):
                pending.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line:
                if pending:
                    events.append(pending[0] if len(pending) == 1 else b"\n".join(pending))
                    pending.clear()
            elif line == b"data":
                pending.append(b"")
        return events

    @property
    def between(self) -> bool:
        """Whether what comes next is the beginning of an event."""
        return self._clean

    @property
    def rest(self) -> bytes:
        """What was received of an event that is not complete yet."""
        return b"\n".join([*self._data, self._tail])

"""Stream events known by their likeness to one that was decoded."""

from __future__ import annotations

from servecap.wire.chunked import known_sizes

_PAYS_AFTER = 8  # chunks until a new likeness has paid for its making
_TRIALS = 3  # that may fail to pay before no more are made for this answer
_ENDS = (b"\n\n\r\n", b"\r\n\r\n\r\n")  # of an event and its chunk
_PLAIN = bytes(c for c in range(0x20, 0x7F) if c not in b'"\\')


class Like:
    """Events that differ from one that was decoded by nothing but the plain text they bring.

    Nearly all events of a stream are such, and knowing it costs a fraction of decoding them.
    """

    __slots__ = ("_after", "_before", "_edges", "_left", "_made_at")

    def __init__(self, before: bytes | None, after: bytes, old: Like | None, chunks: int) -> None:
        """
        Args:
            before, after: what surrounds the text; no *before*: nothing is like it.
            old: what was made earlier for the same answer.
            chunks: how many chunks of output the answer had then.
        """
        self._before = before if before is not None else b"\0"  # which is in no valid JSON
        self._after = after
        self._edges = len(self._before) + len(after)
        self._left: int = old._left if old is not None else _TRIALS
        self._made_at = chunks

    def fits(self, data: bytes) -> bool:
        """Whether decoding *data* would give the same but for a text that is not empty.

        A text without quote, backslash, control character or anything beyond ASCII ends just
        where the part after it begins, and is valid, whatever it is.
        """
        return (
            len(data) > self._edges
            and data.startswith(self._before)
            and data.endswith(self._after)
            and not data[len(self._before) : -len(self._after)].translate(None, _PLAIN)
        )

    def reads(self, data: bytes) -> Reads | None:
        """What reads are like *data*, if that is one chunk with one event that is like this."""
        digits = data.find(b"\r\n")
        for end in _ENDS:
            lead, tail = b"\r\ndata: " + self._before, self._after + end
            found = Reads(digits, lead, tail)
            if digits > 0 and found.fits(data):
                return found
        return None

    def worth_another(self, chunks: int) -> bool:
        """Whether one made now, after *chunks* chunks, can be expected to pay.

        An id or a time that changes now and then asks for a new one; if it changes always, giving
        up soon is better.
        """
        if chunks - self._made_at < _PAYS_AFTER:
            self._left -= 1
        return self._left > 0


class Reads:
    """Reads that are one whole chunk with one event, like one that was decoded.

    Where a server sends token by token nearly all reads are such. Between two chunks and two
    events such a read says: one more chunk of output. Knowing that costs less than keeping it.
    """

    __slots__ = ("_around", "_begin", "_digits", "_edges", "_end", "_lead", "_tail")

    def __init__(self, digits: int, lead: bytes, tail: bytes) -> None:
        """
        Args:
            digits: of the chunk's size.
            lead, tail: what surrounds the text, from the size line's end to the chunk's.
        """
        self._digits = digits
        self._lead = lead
        self._tail = tail
        self._begin = digits + len(lead)
        self._end = -len(tail)
        self._edges = self._begin + len(tail)
        self._around = digits + 4  # what is not counted in the size: digits and two line ends

    def fits(self, data: bytes) -> bool:
        """Whether *data* is such a read, with a text that is not empty."""
        return (
            data[self._digits : self._begin] == self._lead
            and data[self._end :] == self._tail
            and not data[self._begin : self._end].translate(None, _PLAIN)
            and len(data) > self._edges
            and known_sizes.get(data[: self._digits]) == len(data) - self._around
        )

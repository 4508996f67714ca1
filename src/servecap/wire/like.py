"""Stream events known by their likeness to one that was decoded."""

from __future__ import annotations

import re

_FORMS_KEPT = (
    64  # making one takes some 1 ms, so a server whose events are never alike gets no more
)
# A text without quote, backslash, control character or anything beyond ASCII ends just where the
# part after it begins, and is valid, whatever it is.
_PLAIN = rb"[ !#-\[\]-~]"
_MEMBER = re.compile(rb'"([A-Za-z_]+)":(?:("%b*")|[1-9][0-9]*)(?=[,}])' % _PLAIN)


class Form:
    """Events that differ from one that was decoded in nothing that is read of them.

    Besides the text that they bring, which is not empty, that is any text or number whose name
    the dialect does not know: an id, a time. Nearly all events of a stream are such, and knowing
    it costs a fraction of decoding them. One form serves all the answers of a server.
    """

    __slots__ = ("_match_event", "_match_read")

    def __init__(self, pattern: bytes) -> None:
        self._match_event = re.compile(pattern).fullmatch
        self._match_read = re.compile(rb"data: %b(?:\n\n|\r\n\r\n)\r\n" % pattern).fullmatch

    def fits(self, event: bytes) -> bool:
        """Whether decoding *event* would tell that there is one more chunk of output, and no more.

        Between two events.
        """
        return self._match_event(event) is not None

    def reads(self, data: bytes) -> bool:
        """Whether *data* is one whole chunk of a body with one such event.

        Between two chunks and two events. Where a server sends token by token nearly all reads
        are such, and counting them costs less than keeping them.
        """
        line = _size_lines.get(len(data))
        if line is None or not data.startswith(line):
            line = _size_line(data)
        return line is not None and self._match_read(data, len(line)) is not None


# The length of a read that is one whole chunk tells what its size line must be.
_size_lines: dict[int, bytes] = {}
_SIZE_LINE = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,7})\r\n")


def _size_line(data: bytes) -> bytes | None:
    """The size line of *data* if that is one whole chunk of a body."""
    found = _SIZE_LINE.match(data)
    if found is None or int(found[1], 16) != len(data) - found.end() - 2:
        return None
    line: bytes = found[0]
    _size_lines[len(data)] = line
    return line


class Forms:
    """The forms of one dialect's events, of all the servers that it is spoken with."""

    def __init__(self, names: frozenset[str]) -> None:
        """
        Args:
            names: of all the members of a JSON object that the dialect reads, on any level.
        """
        self._names = names
        self._made: dict[bytes, Form] = {}
        self.latest: Form | None = None

    def around(self, before: bytes, after: bytes) -> Form | None:
        """The form of an event by what surrounds its text; None: there are too many already."""
        pattern = b"%b%b+%b" % (self._opened(before), _PLAIN, self._opened(after))
        form = self._made.get(pattern)
        if form is None:
            if len(self._made) >= _FORMS_KEPT:
                return None
            form = self._made[pattern] = Form(pattern)
        self.latest = form
        return form

    def _opened(self, part: bytes) -> bytes:
        """A pattern of the JSON in *part*, open to other values of what is not read.

        In valid JSON a quote and a name, a quote and a colon are a member's beginning wherever
        they stand: inside of a text each quote has a backslash before it.
        """
        pattern, at = b"", 0
        for member in _MEMBER.finditer(part):
            name = member[1]
            if name.decode() not in self._names:
                value = b'"%b*"' % _PLAIN if member[2] is not None else b"[1-9][0-9]*"
                pattern += re.escape(part[at : member.start()]) + b'"%b":%b' % (name, value)
                at = member.end()
        return pattern + re.escape(part[at:])

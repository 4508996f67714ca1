"""Every failure that servecap reports on purpose, with its exit code.

Anything that is not a `ServecapError` is a bug of ours and shows its traceback. A failing
*request* is not an error at all: it is data, an `Outcome` in a `Record`.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises of bytes that are no such value; the last: nested too deep."""


class ServecapError(Exception):
    """A failure told in one line: the thing, its value, what is allowed, what to do."""

    exit_code: ClassVar[int]  # of each kind

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # names in damaged files may have several


class GateNotMet(ServecapError):
    """The run is valid, but a limit that was asked for does not hold (exit 1)."""

    exit_code = 1


class UsageError(ServecapError):
    """What was asked for makes no sense, or a file cannot be read as what it should be (exit 2)."""

    exit_code = 2


class DiskError(ServecapError):
    """What was measured cannot be stored: the disk is full or gone (exit 2)."""

    exit_code = 2


class EndpointError(ServecapError):
    """The server cannot be reached or refuses the first request, so nothing can start (exit 3)."""

    exit_code = 3


class InvalidRun(ServecapError):
    """It ran, but its numbers cannot be believed (exit 4)."""

    exit_code = 4

"""Whole messages between two processes of one run, over a stream socket on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from servecap.record import Arrival, Counts, Outcome, Record, Times
from servecap.run import Health

_LENGTH = struct.Struct("!I")
_READ_BYTES = 262_144


class Start(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the run's clock shows 0 at *start_s* of the monotonic clock."""

    start_s: float


class Send(msgspec.Struct, frozen=True, tag=True):
    """To a worker: send this when it is planned."""

    arrival: Arrival


class End(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the run is over; what is in flight ends with *outcome*."""

    outcome: Outcome


class Ping(msgspec.Struct, frozen=True, tag=True):
    """To a worker on another machine: answer at once; sent at *sent_s* of the parent's clock."""

    sent_s: float


class Pong(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the ping came at *there_s* of its own monotonic clock."""

    sent_s: float
    there_s: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it can be given work."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """From a worker: a request has ended."""

    record: Record


class Bye(msgspec.Struct, frozen=True, tag=True):
    """From a worker, its last word: all records were sent."""

    health: Health


Message = Start | Send | End | Ping | Pong | Ready | Done | Bye


def _pack(value: Any) -> Any:
    if isinstance(value, Times | Counts):
        return value.tobytes()
    raise TypeError(f"cannot pack {type(value).__name__}")


def _unpack(kind: type, value: Any) -> Any:
    if kind is Times or kind is Counts:
        found = kind()
        found.frombytes(value)
        return found
    raise TypeError(f"cannot unpack {kind}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_pack)
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message, dec_hook=_unpack)


def encoded(message: Message) -> bytes:
    """*message* as it goes over a pipe."""
    data = _encoder.encode(message)
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Cuts a byte stream into the messages in it, however it was cut before.

    What was fed waits until it is taken, so that a receiver which asks for more while it acts on
    a message gets the one after it, and none twice.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._whole: deque[Message] = deque()

    def feed(self, data: bytes) -> None:
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= 4:
            (size,) = _LENGTH.unpack_from(rest, at)
            if len(rest) - at - 4 < size:
                break
            at += 4 + size
            self._whole.append(_decoder.decode(bytes(rest[at - size : at])))
        del rest[:at]

    def take(self) -> Iterator[Message]:
        """The messages that are whole, each given out once."""
        while self._whole:
            yield self._whole.popleft()


class Pipe:
    """One end of a connection. Nothing that is sent waits for the other side."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.open = True
        self._frames = Frames()
        self._out = bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(
        self,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Message], None],
        on_closed: Callable[[], None],
    ) -> None:
        """Hand messages on as they arrive on *loop*; `on_closed` when the other side is gone."""
        self._loop = loop
        self._on_message = on_message
        self._on_closed = on_closed
        loop.add_reader(self.sock, self._readable)

    def send(self, message: Message) -> None:
        """Send *message*, now or as soon as there is room."""
        waiting = bool(self._out)
        self._out += encoded(message)
        if not waiting:
            self._flush()

    def _flush(self) -> None:
        if not self.open:
            self._out.clear()
            return
        try:
            del self._out[: self.sock.send(self._out)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # the other side is gone, which reading finds out about
            self._out.clear()
        if self._loop is not None:
            if self._out:
                self._loop.add_writer(self.sock, self._flush)
            else:
                self._loop.remove_writer(self.sock)

    def _readable(self) -> None:
        try:
            data = self.sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._on_closed()
            return
        self._frames.feed(data)
        for message in self._frames.take():
            self._on_message(message)

    def wait_for(self, until_s: float) -> Iterator[Message]:
        """Messages one by one, waited for until *until_s* of the monotonic clock, without a loop.

        Ends when the time is over or the other side is gone.
        """
        self._detach()
        yield from self._frames.take()
        while self.open and (left_s := until_s - time.monotonic()) > 0:
            self.sock.settimeout(left_s)
            try:
                if self._out:
                    self.sock.sendall(self._out)
                    self._out.clear()
                data = self.sock.recv(_READ_BYTES)
            except TimeoutError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            self._frames.feed(data)
            yield from self._frames.take()
        if self.open:
            self.sock.setblocking(False)

    def drain(self, until_s: float) -> None:
        """Send what still waits, without a loop, until *until_s* at most."""
        self._detach()
        self.sock.settimeout(max(0.001, until_s - time.monotonic()))
        try:
            self.sock.sendall(self._out)
        except OSError:
            self.close()
        self._out.clear()

    def linger(self, until_s: float) -> None:
        """Say that nothing more will be sent, and wait until the other side closes.

        To close with something unread would reset a TCP connection, and what was sent before
        might be lost on its way.
        """
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        for _ in self.wait_for(until_s):
            pass

    def _detach(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self.sock)
            self._loop.remove_writer(self.sock)
            self._loop = None

    def close(self) -> None:
        """Close this end; the other side is told so."""
        if self.open:
            self._detach()
            self.open = False
            self.sock.close()

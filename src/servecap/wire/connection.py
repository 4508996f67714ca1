"""One TCP (or TLS) connection on the event loop, whose reads are stamped as early as can be."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from time import monotonic
from typing import Any, Protocol

import msgspec

from servecap.wire.clock import SO_TIMESTAMPNS, STAMP_SPACE, Clock, timespec
from servecap.wire.poller import Poller

_READ_BYTES = 16_384
_OFFSET_ERROR_S = 0.001


class Address(msgspec.Struct, frozen=True):
    """Where to connect to: as `socket.getaddrinfo` tells it."""

    family: int
    sockaddr: tuple[Any, ...] | str  # a path for a local socket
    server_name: str
    tls: ssl.SSLContext | None = None
    tunnel: bytes | None = None  # what asks a proxy there for a way through, before TLS begins


class Owner(Protocol):
    """Whoever uses the connection at the moment."""

    def received(self, data: bytes, at_s: float) -> None: ...
    def closed(self, why: str | None, at_s: float) -> None: ...


class Connection:
    """Connects on creation; what is sent at first goes out as soon as it stands.

    Reads go to `owner`. The time of a read is the kernel's receive stamp of its last packet where
    there is one (so that a busy client does not count its own queueing), else the time at which
    it was read. Without an owner the connection is idle, and whatever arrives closes it.

    Raises:
        OSError: no socket can be had (too many open files, or no such network here).
    """

    __slots__ = (
        "_clock",
        "_covered",
        "_fd",
        "_incoming",
        "_last_s",
        "_out",
        "_outgoing",
        "_plain",
        "_poller",
        "_sock",
        "_tls",
        "_tunnel",
        "_watched",
        "established",
        "open",
        "owner",
        "stamped",
    )

    def __init__(self, poller: Poller, clock: Clock, address: Address) -> None:
        self._poller = poller
        self._clock = clock
        self._out = b""
        self._last_s = 0.0
        self.owner: Owner | None = None
        self.established = False
        self.open = True
        self._watched = False
        self._tunnel = address.tunnel
        self._sock = socket.socket(address.family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._fd = self._sock.fileno()
        self._covered = address.tls is not None or address.tunnel is not None
        self._tls: ssl.SSLObject | None = None
        if address.tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = address.tls.wrap_bio(
                self._incoming, self._outgoing, server_hostname=address.server_name
            )
            self._plain = b""
        self._connect(address)

    def _connect(self, address: Address) -> None:
        if address.family != socket.AF_UNIX:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stamped = False
        if SO_TIMESTAMPNS is not None:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
                self.stamped = True
        code = self._sock.connect_ex(address.sockaddr)
        if code not in (0, errno.EINPROGRESS):
            self._fail_soon(os.strerror(code))

    def _fail_soon(self, why: str) -> None:
        """Told later, so that nobody is called back from within the call that found out."""
        self._watched = True
        self._poller.loop.call_soon(self._fail, why)

    def _sent_early(self) -> bool:
        """Whether the connection already stood (as a local one does at once) and took it all.

        It spares a turn of the event loop, which is long when thousands connect together.
        """
        try:
            sent = self._sock.send(self._out)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR, errno.ENOTCONN):
                self._fail_soon(error.strerror or str(error))
            return False
        self._out = self._out[sent:]
        return not self._out

    def _connected(self) -> None:
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(os.strerror(code))
            return
        self._poller.reads(self._fd, self)
        if self._tunnel is not None:
            self._out = self._tunnel
            self._tunnel = b""  # from now on: what the proxy has answered
            self._flush()
            return
        if self._tls is not None:
            self._handshake()
            return
        self.established = True
        self._flush()

    def send(self, data: bytes) -> None:
        """Send *data* as soon as the connection allows."""
        self._last_s = self._clock.now()  # no answer can have arrived before
        if not self._watched:
            self._first(data)
            return
        if self._tls is not None:
            if not self.established:
                self._plain += data
                return
            self._tls.write(data)
            data = self._outgoing.read()
        self._out = self._out + data if self._out else data
        if self.established or self._tls is not None:
            self._flush()

    def _first(self, data: bytes) -> None:
        if self._tls is not None:
            self._plain = data
        else:
            self._out = data
            if self._sent_early():
                self.established = self._watched = True
                self._poller.reads(self._fd, self)
        if not self._watched:
            self._watched = True
            self._poller.writes(self._fd, self._connected)

    def _flush(self) -> None:
        if not self.open or not self._out:
            return
        try:
            sent = self._sock.send(self._out)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        if sent == len(self._out):
            self._out = b""
        else:
            self._out = self._out[sent:]
            self._poller.writes(self._fd, self._writable)

    def _writable(self) -> None:
        self._poller.reads(self._fd, self)
        self._flush()

    def readable(self) -> None:
        """Receive once, and hand it on with its time."""
        try:
            data, control, _, _ = self._sock.recvmsg(_READ_BYTES, STAMP_SPACE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        clock, last_s = self._clock, self._last_s
        now_s = monotonic() - clock.start_s
        if control:
            # A stamp outside what is possible comes from a wall clock that was set meanwhile;
            # a little before the last one is the error of the offset between the two clocks.
            seconds, nanoseconds = timespec(control[0][2])
            kernel_s = seconds - clock.wall_at_start_s + nanoseconds * 1e-9
            if last_s - _OFFSET_ERROR_S <= kernel_s <= now_s:
                now_s = kernel_s if kernel_s > last_s else last_s
        self._last_s = now_s
        owner = self.owner
        if self._covered:
            self._uncover(data, now_s)
        elif not data:
            self._fail(None)
        elif owner is not None:
            owner.received(data, now_s)
        else:
            self.close()

    def _uncover(self, data: bytes, now_s: float) -> None:
        """What comes through a proxy or TLS."""
        if self._tunnel is not None:
            self._from_proxy(data)
        else:
            self._encrypted(data, now_s)

    def _from_proxy(self, data: bytes) -> None:
        """What a proxy says before there is a way through."""
        assert self._tunnel is not None
        answer = self._tunnel = self._tunnel + data
        if not data or len(answer) > _READ_BYTES:
            self._fail("the proxy let nothing through")
            return
        head, mark, rest = answer.partition(b"\r\n\r\n")
        if not mark:
            return
        line = head.split(b"\r\n")[0].decode("latin-1")
        if line.split(" ")[1:2] != ["200"] or rest:
            self._fail(f"the proxy answered {line[:80]!r}")
            return
        self._tunnel = None
        self._handshake()

    def _encrypted(self, data: bytes, now_s: float) -> None:
        assert self._tls is not None
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        if not self.established:
            self._handshake()
            if not self.established:
                return
        try:
            while True:
                plain = self._tls.read(_READ_BYTES)
                if not plain:  # the server's orderly end
                    data = b""
                    break
                if self.owner is None:
                    self.close()
                    return
                self.owner.received(plain, now_s)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            if data:
                self._fail(f"TLS: {error.reason or error}")
                return
        if not data:
            self._fail(None)
        elif self._outgoing.pending:  # an answer of TLS itself, to a change of keys
            self._out += self._outgoing.read()
            self._flush()

    def _handshake(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", None) or error.reason or str(error)
            self._fail(f"TLS: {reason}")
            return
        if self.established and self._plain:
            self._tls.write(self._plain)
            self._plain = b""
        self._out += self._outgoing.read()
        self._flush()

    def _fail(self, why: str | None) -> None:
        """Close and tell the owner: *why* is None when the server closed in an orderly way."""
        owner = self.owner
        at_s = self._clock.now()
        self.close()
        if owner is not None:
            owner.closed(why, at_s)

    def close(self) -> None:
        """Close at once; the owner is not told."""
        if not self.open:
            return
        self.open = False
        self.owner = None
        self._poller.forget(self._fd)
        self._sock.close()

"""A small HTTP server whose every byte and pause is written by the test.

It runs on a thread of its own. What a request for an answer gets is a `Reply`: a coroutine that
writes to the socket as it likes. Health, models and the short trial request of the preflight are
answered properly unless the test takes them over.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

Reply = Callable[["Call"], Awaitable[None]]

JSON = "application/json"
HELLO = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
STOP = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
MODELS = b'{"object":"list","data":[{"id":"scripted"}]}'
TRIAL = b"Name three rivers."


class Call:
    """One request as it came in, and the socket to answer on."""

    def __init__(
        self, server: Server, path: str, body: bytes, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.server = server
        self.path = path
        self.body = body
        self.number = number  # of this connection's requests, from 0
        self.closing = False
        self.head_bytes = b""  # request line and headers
        self._writer = writer

    async def write(self, *parts: bytes) -> None:
        self._writer.write(b"".join(parts))
        await self._writer.drain()

    async def head(self, *headers: str, status: str = "200 OK") -> None:
        lines = "".join(f"{line}\r\n" for line in headers)
        await self.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode())

    async def whole(self, body: bytes, *headers: str, status: str = "200 OK") -> None:
        await self.head(
            f"Content-Type: {JSON}", f"Content-Length: {len(body)}", *headers, status=status
        )
        await self.write(body)

    async def stream(self, *events: bytes, ending: bytes = b"0\r\n\r\n") -> None:
        """Headers of an event stream, each event as a chunk, and the end."""
        await self.head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        for event in events:
            await self.write(chunk(event))
        await self.write(ending)

    async def answer(self, tokens: int = 2, *, pause_s: float = 0.0, first_s: float = 0.0) -> None:
        """A proper stream of so many tokens."""
        await self.head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        await asyncio.sleep(first_s)
        for _ in range(tokens):
            await self.write(chunk(HELLO))
            if pause_s:
                await asyncio.sleep(pause_s)
        usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n'
        await self.write(chunk(STOP), chunk(usage % tokens), chunk(DONE), b"0\r\n\r\n")

    def close(self) -> None:
        self.closing = True

    def half_close(self) -> None:
        """Say no more on this connection, but go on listening."""
        self._writer.write_eof()

    def reset(self) -> None:
        """End the connection as a process that dies does."""
        self.closing = True
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def proper(call: Call) -> None:
    """The reply of a server that works."""
    await call.answer()


class Server:
    """Where it listens, what it was asked, and how it replies."""

    def __init__(self, reply: Reply, *, tls: ssl.SSLContext | None = None) -> None:
        self.reply = reply
        self.trial: Reply = proper  # to the preflight's request
        self.models: Reply | None = None
        self.told: dict[str, bytes] = {}  # the JSON at other paths that are only read
        self.asked: list[bytes] = []  # bodies of requests for an answer, without the trial's
        self.connections = 0
        self._tls = tls
        self.port = 0
        self._ready = threading.Event()
        self._ended: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        assert self._loop is not None
        assert self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, ssl=self._tls, limit=2**20, backlog=1024
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = 0
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS handshake: answered as web servers do
                    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    break
                head = first + await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                body = await reader.readexactly(length)
                call = Call(self, path, body, writer, number)
                call.head_bytes = head
                number += 1
                await self._route(call)
                if call.closing or b"connection: close" in head.lower():
                    break
        writer.close()

    async def _route(self, call: Call) -> None:
        if call.path == "/v1/models" and self.models is not None:
            await self.models(call)
        elif call.path == "/v1/models":
            await call.whole(MODELS)
        elif call.path in self.told:
            await call.whole(self.told[call.path])
        elif not call.body:
            await call.whole(b"{}", status="200 OK" if call.path == "/health" else "404 No")
        elif TRIAL in call.body:
            await self.trial(call)
        else:
            self.asked.append(call.body)
            await self.reply(call)


@contextmanager
def serving(reply: Reply = proper, *, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server that replies so until the block is left."""
    server = Server(reply, tls=tls)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def refused_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port

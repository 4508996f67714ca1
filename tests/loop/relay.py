"""Something between client and server: a local socket, a proxy, or a proxy that tunnels."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

Kind = Literal["plain", "proxy", "tunnel", "refuse"]


class Relay:
    """Where it listens, and the first lines of what went through."""

    def __init__(self, kind: Kind, port: int, path: Path | None) -> None:
        self.lines: list[bytes] = []
        self._kind = kind
        self._port = port
        family = socket.AF_INET if path is None else socket.AF_UNIX
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", 0) if path is None else str(path))
        self._listener.listen(64)
        where = self._listener.getsockname()
        self.url = f"unix://{path}" if path is not None else f"http://127.0.0.1:{where[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            if self._kind in ("tunnel", "refuse"):
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += client.recv(1)
                self.lines.append(head.split(b"\r\n")[0])
                if self._kind == "refuse":
                    client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                    return
                client.sendall(b"HTTP/1.1 200 Connection established\r\n")
                client.sendall(b"Via: relay\r\n\r\n")
            threading.Thread(target=pump, args=(server, client), daemon=True).start()
            while data := client.recv(65536):
                if self._kind == "proxy":  # each request comes in one piece here
                    line, mark, rest = data.partition(b"\r\n")
                    self.lines.append(line)
                    origin = b"http://127.0.0.1:%d" % self._port
                    data = line.replace(origin, b"", 1) + mark + rest
                server.sendall(data)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def relaying(kind: Kind, server_url: str, path: Path | None = None) -> Iterator[Relay]:
    relay = Relay(kind, int(server_url.rpartition(":")[2]), path)
    try:
        yield relay
    finally:
        relay.close()

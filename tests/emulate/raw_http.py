"""Small raw HTTP clients: the tests look at bytes, not at what a client library makes of them."""

from __future__ import annotations

import json
import socket
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from servecap.emulate.config import EmulatorConfig

Json = dict[str, Any]


class Reply(msgspec.Struct, frozen=True):
    """A whole answer: status, headers in lower case, and the body with its chunks as sent."""

    status: int
    headers: dict[str, str]
    chunks: list[bytes]
    complete: bool  # ended as HTTP wants it, not by a broken connection

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def post_bytes(path: str, body: Json | bytes, headers: dict[str, str] | None = None) -> bytes:
    """The bytes of a POST request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: emulator",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


def parse(raw: bytes) -> Reply:
    """The reply in the bytes of a connection that was read to its end."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
    status = int(first.split()[1])
    if headers.get("transfer-encoding") != "chunked":
        whole = len(rest) == int(headers.get("content-length", len(rest)))
        return Reply(status, headers, [rest], whole)
    chunks: list[bytes] = []
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return Reply(status, headers, chunks, True)
        chunks.append(rest[:length])
        rest = rest[length + 2 :]
    return Reply(status, headers, chunks, False)


def exchange(url: str, request: bytes) -> Reply:
    """The reply to one request on a connection of its own."""
    with connect(url) as connection:
        connection.sendall(request)
        parts: list[bytes] = []
        try:
            while data := connection.recv(1 << 16):
                parts.append(data)
        except ConnectionResetError:
            pass
    return parse(b"".join(parts))


def post(url: str, path: str, body: Json | bytes, **headers: str) -> Reply:
    return exchange(url, post_bytes(path, body, headers))


def get(url: str, path: str, **headers: str) -> Reply:
    lines = [f"GET {path} HTTP/1.1", "Host: emulator", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return exchange(url, "\r\n".join([*lines, "", ""]).encode())


def metric(url: str, name: str, **labels: str) -> float:
    """The value of one sample on /metrics."""
    for family in text_string_to_metric_families(get(url, "/metrics").body.decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"/metrics has no {name} {labels}")


def wait_for(url: str, name: str, value: float, **labels: str) -> None:
    """Returns when the metric has that value; asking again and again is the waiting."""
    for _ in range(5000):
        if metric(url, name, **labels) == value:
            return
    raise AssertionError(f"{name} did not become {value}: it is {metric(url, name, **labels)}")


SMALL = EmulatorConfig(model="llama-13b", gpu="a100-40gb", tp=4, speed=20, model_name="tiny")

"""A server of chat completions that computes nothing and only keeps time: the client's own test."""

from __future__ import annotations

import gc
import heapq
import json
import select
import signal
import socket
import time
from multiprocessing.connection import Connection

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FIRST_S = 0.3
_SOON_S = 0.001  # below it epoll's milliseconds are too coarse, and sleeping is not


def _event(delta: str, finish: str = "null", more: str = "") -> bytes:
    data = (
        '{"id":"chatcmpl-0000000000000000000","object":"chat.completion.chunk",'
        '"created":1790000000,"model":"null","choices":[{"index":0,"delta":{'
        f'{delta}}},"logprobs":null,"finish_reason":{finish}}}]{more}}}'
    )
    return _chunk(f"data: {data}\n\n".encode())


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_ROLE = _event('"role":"assistant","content":""')
_TOKEN = _event('"content":" token"')


def _last(tokens: int) -> bytes:
    usage = f',"usage":{{"prompt_tokens":10,"completion_tokens":{tokens}}}'
    return _event("", '"length"', usage) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class _Stream:
    __slots__ = ("asked", "left", "rest", "sent", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""
        self.asked = self.left = 0
        self.sent: list[float] = []


def serve(listener: socket.socket, interval_s: float, out: Connection) -> None:
    """Serve until SIGTERM, then tell on *out* when each event was sent.

    A request for one token is answered at once; one for more gets a token every *interval_s*.
    What is told: for each connection, in the order of their first tokens' requests, the times on
    the monotonic clock.
    """
    over: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: over.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    streams: dict[int, _Stream] = {}
    due: list[tuple[float, int]] = []
    told: dict[str, list[float]] = {}
    phase = 0.0
    while not over:
        _emit(due, streams, interval_s)
        wait_s = max(0.0, due[0][0] - time.monotonic()) if due else 0.2
        if wait_s < _SOON_S:
            time.sleep(wait_s)
            wait_s = 0.0
        for fd, _ in poll.poll(wait_s, 256):
            if fd == listener.fileno():
                _accept(listener, poll, streams)
                continue
            stream = streams[fd]
            name = _request(stream)
            if name is None:
                poll.unregister(fd)
                stream.sock.close()
                del streams[fd]
            elif name and stream.left:
                phase = (phase + 0.6180339887) % 1.0  # streams are not in step
                stream.sent = told.setdefault(name, [])
                heapq.heappush(due, (time.monotonic() + _FIRST_S + phase * interval_s, fd))
    out.send_bytes(json.dumps(told).encode())


def _emit(due: list[tuple[float, int]], streams: dict[int, _Stream], interval_s: float) -> None:
    now_s = time.monotonic()
    while due and due[0][0] <= now_s:
        at_s, fd = due[0]
        stream = streams.get(fd)
        if stream is None:
            heapq.heappop(due)
            continue
        stream.left -= 1
        now_s = time.monotonic()
        stream.sent.append(now_s)
        try:
            stream.sock.send(_TOKEN if stream.left else _TOKEN + _last(stream.asked))
        except OSError:
            stream.left = 0
        if stream.left > 0:
            heapq.heapreplace(due, (at_s + interval_s, fd))
        else:
            heapq.heappop(due)


def _accept(listener: socket.socket, poll: select.epoll, streams: dict[int, _Stream]) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        streams[sock.fileno()] = _Stream(sock)
        poll.register(sock, select.EPOLLIN)


def _request(stream: _Stream) -> str | None:
    """The name that a whole request gives its stream; "" before it is whole, None at the end."""
    try:
        data = stream.sock.recv(65536)
    except BlockingIOError:
        return ""
    except OSError:
        data = b""
    if not data:
        return None
    stream.rest += data
    head, mark, body = stream.rest.partition(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"content-length:")
    if not mark or len(body) < int(length.split(b"\r\n")[0] or 0):
        return ""
    stream.rest = b""
    asked = json.loads(body)
    stream.asked = asked["max_tokens"]
    answer = _HEAD + _ROLE
    stream.left = stream.asked if stream.asked > 1 else 0
    try:
        stream.sock.send(answer if stream.left else answer + _TOKEN + _last(1))
    except OSError:
        return None
    return str(asked["messages"][0]["content"])

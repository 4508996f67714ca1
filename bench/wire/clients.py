"""One client of the comparison, run as a process of its own by bench.py.

    python clients.py KIND PORT STREAMS TOKENS OUT             every stream once
    python clients.py KIND PORT STREAMS 1 - SECONDS            one-token requests, back to back

KIND: product (the `Client` that `servecap run` uses), least (the least that Python can do with the
kernel's stamps: nothing is decoded), aiohttp (chunks, strip, json.loads, as vLLM's benchmark does
it), httpx (lines, json.loads). Prints one line of JSON; OUT and the figures are as in c_client.c.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

BODY_OF = Callable[[int], bytes]
ENTRY = struct.Struct("=IIq")
STAMP = struct.Struct("@qq")  # a timespec
SO_TIMESTAMPNS = 35


class Tally:
    """What one client saw: chunk times per stream, and the resources it took."""

    def __init__(self, streams: int, tokens: int, seconds: float) -> None:
        self.streams, self.tokens, self.seconds = streams, tokens, seconds
        self.sent = [0.0] * streams
        self.chunks: list[list[float]] = [[] for _ in range(streams)]
        self.zero_s = 0.0  # of the chunk times, on the monotonic clock
        self.requests = 0
        self.kib = 0
        self.first_kib = rss_kib()
        self.start_s = time.monotonic()
        self.cpu_s = time.process_time()

    def again(self) -> bool:
        return time.monotonic() - self.start_s < self.seconds

    def sample(self) -> None:
        self.kib = max(self.kib, rss_kib() - self.first_kib)

    def finish(self, out: str) -> None:
        cpu_s, wall_s = time.process_time() - self.cpu_s, time.monotonic() - self.start_s
        events = sum(len(c) for c in self.chunks)
        if out != "-":
            with Path(out).open("wb") as file:
                for stream, chunks in enumerate(self.chunks):
                    file.write(ENTRY.pack(stream, 0, int(self.sent[stream] * 1e9)))
                    for at_s in chunks:
                        file.write(ENTRY.pack(stream, 1, int((self.zero_s + at_s) * 1e9)))
        found = {
            "events": events,
            "requests": self.requests,
            "cpu_s": cpu_s,
            "wall_s": wall_s,
            "kib": self.kib,
        }
        print(json.dumps(found), flush=True)


def rss_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def prompt(stream: int) -> str:
    return f"stream {stream}"


def fields(stream: int, tokens: int) -> dict[str, object]:
    return {
        "model": "null",
        "messages": [{"role": "user", "content": prompt(stream)}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def watch(tally: Tally) -> None:
    while True:
        await asyncio.sleep(0.5)
        tally.sample()


async def product(port: int, tally: Tally) -> None:
    from servecap.record import Arrival, Message, Record, Request
    from servecap.scenario import Timeouts
    from servecap.wire.client import Client
    from servecap.wire.clock import Clock
    from servecap.wire.endpoint import resolve
    from servecap.wire.openai import OpenAi

    loop = asyncio.get_running_loop()
    clock, ended, left = Clock(), loop.create_future(), tally.streams

    def send(stream: int) -> None:
        request = Request(
            request_id=stream,
            messages=(Message("user", prompt(stream)),),
            max_output_tokens=tally.tokens,
        )
        client.send(Arrival(request, stream, clock.now()))

    def on_record(record: Record) -> None:
        nonlocal left
        if not record.ok:
            raise SystemExit(f"{record.outcome}: {record.error}")
        tally.requests += 1
        stream = record.user
        if tally.seconds:
            if tally.again():
                send(stream)
                return
        else:
            tally.sent[stream] = clock.start_s + record.sent_s
            tally.chunks[stream] = record.chunk_s  # type: ignore[assignment]
        left -= 1
        if not left:
            ended.set_result(None)

    client = Client(
        loop,
        clock,
        resolve(f"http://127.0.0.1:{port}"),
        OpenAi(chat=True),
        model="null",
        stream=True,
        timeouts=Timeouts(),
        on_record=on_record,
    )
    for stream in range(tally.streams):
        send(stream)
    while not ended.done():
        await asyncio.wait([ended], timeout=0.2)
        client.sweep()
    tally.zero_s = clock.start_s


async def least(port: int, tally: Tally) -> None:
    """A bare loop of epoll, recvmsg and send of bytes made before: the floor of any in Python.

    It gathers reads as the product does and counts events by their end marks as c_client.c does.
    """
    offset_s = time.time() - time.monotonic()
    poll, gather_s = select.epoll(), 0.0 if tally.seconds else 0.0005
    socks: dict[int, tuple[int, socket.socket]] = {}
    asks: dict[int, bytes] = {}
    for stream in range(tally.streams):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setblocking(False)
        poll.register(sock, select.EPOLLIN)
        fd = sock.fileno()
        socks[fd] = stream, sock
        body = json.dumps(fields(stream, tally.tokens)).encode()
        asks[fd] = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        tally.sent[stream] = time.monotonic()
        sock.send(asks[fd])
    seen = [0] * tally.streams
    while socks:
        if gather_s:
            time.sleep(gather_s)
        ended = []
        for fd, _ in poll.poll(0.1, 128):
            stream, sock = socks[fd]
            data, control, _, _ = sock.recvmsg(16_384, 64)
            at_s = time.monotonic()
            if control:  # the kernel needs a moment until it stamps
                seconds, nanoseconds = STAMP.unpack_from(control[0][2])
                at_s = seconds + nanoseconds * 1e-9 - offset_s
            for _ in range(data.count(b"\n\n")):
                which = seen[stream]  # 0: the role; then the tokens
                seen[stream] += 1
                if 1 <= which <= tally.tokens and not tally.seconds:
                    tally.chunks[stream].append(at_s)
            if data.endswith(b"0\r\n\r\n"):
                ended.append(fd)
        for fd in ended:
            stream, sock = socks[fd]
            tally.requests += 1
            seen[stream] = 0
            if tally.seconds and tally.again():
                sock.send(asks[fd])
            else:
                tally.sample()
                poll.unregister(fd)
                socks.pop(fd)[1].close()


async def with_aiohttp(port: int, tally: Tally) -> None:
    import aiohttp

    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def one(stream: int) -> None:
            tally.sent[stream] = time.monotonic()
            async with session.post(url, json=fields(stream, tally.tokens)) as response:
                rest = b""
                async for data in response.content.iter_any():
                    *events, rest = (rest + data).split(b"\n\n")
                    for event in events:
                        take(tally, stream, event.decode().strip())

        await streams_of(tally, one)


async def with_httpx(port: int, tally: Tally) -> None:
    import httpx

    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=600, trust_env=False) as session:

        async def one(stream: int) -> None:
            tally.sent[stream] = time.monotonic()
            ask = fields(stream, tally.tokens)
            async with session.stream("POST", url, json=ask) as response:
                async for line in response.aiter_lines():
                    take(tally, stream, line.strip())

        await streams_of(tally, one)


def take(tally: Tally, stream: int, line: str) -> None:
    if not line or line.startswith(":"):
        return
    text = line.removeprefix("data: ")
    if text == "[DONE]":
        return
    at_s = time.monotonic()
    choices = json.loads(text)["choices"]
    if choices and choices[0]["delta"].get("content") and not tally.seconds:
        tally.chunks[stream].append(at_s)


async def streams_of(tally: Tally, one: Callable[[int], Awaitable[None]]) -> None:
    async def user(stream: int) -> None:
        while True:
            await one(stream)
            tally.requests += 1
            if not (tally.seconds and tally.again()):
                return

    await asyncio.gather(*(user(stream) for stream in range(tally.streams)))


def import_all(kind: str) -> None:
    """Imports cost time and memory once, not per event: before the counting starts."""
    match kind:
        case "product":
            importlib.import_module("servecap.wire.client")
        case "aiohttp" | "httpx":
            importlib.import_module(kind)


CLIENTS = {"product": product, "least": least, "aiohttp": with_aiohttp, "httpx": with_httpx}


def main() -> None:
    kind, port, streams, tokens, out, *rest = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    import_all(kind)
    tally: Tally | None = None

    async def run() -> None:
        nonlocal tally
        tally = Tally(int(streams), int(tokens), float(rest[0]) if rest else 0.0)
        watcher = asyncio.create_task(watch(tally))
        await CLIENTS[kind](int(port), tally)
        watcher.cancel()

    if kind in ("product", "least"):  # as measure.py runs it
        import uvloop

        gc.collect()
        gc.freeze()
        gc.disable()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    else:
        asyncio.run(run())
    assert tally is not None
    tally.finish(out)


if __name__ == "__main__":
    main()

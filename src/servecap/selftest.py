"""What this machine's client can do: measured against a server that does nothing but keep time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import msgspec
import uvloop

from servecap import __version__, nullserver, process
from servecap.errors import InvalidRun, UsageError
from servecap.record import Arrival, Message, Record, Request
from servecap.scenario import ClosedLoop, Scenario, Timeouts
from servecap.wire.client import Client
from servecap.wire.clock import Clock
from servecap.wire.endpoint import resolve
from servecap.wire.openai import OpenAi

LEVELS = ((64, 50), (256, 50), (1024, 50))  # streams, tokens a second of each
_LEVEL_S = 2.0
_REQUESTS_S = 1.5
_AT_A_TIME = 64
_START_LIMIT_S = 30.0
_BEHIND_SHARE = 0.9  # a server that sends less than this share of its rate was the limit itself


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One rate of token events, as one client process took it."""

    streams: int
    asked_per_s: float
    events_per_s: float  # that the server managed to send
    cpu_share: float  # of the client, while events came
    delay_p50_s: float  # what the client says, less when the server sent it
    delay_p99_s: float
    kept_up: bool  # whether the server did


class Together(msgspec.Struct, frozen=True, kw_only=True):
    """What several client processes took at once, each from a server of its own.

    `events_per_s` is reckoned as for one process, and added up. `requests_per_s` is what all of
    them did; where there are fewer cores than processes, the servers' share of them is missing.
    """

    workers: int
    events_per_s: float
    requests_per_s: float
    delay_p99_s: float  # the worst worker's


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """The client's ceiling on this machine.

    `events_per_core_s`: events at the highest rate that the server kept, over the CPU time that
    the client took for them; nobody can use more than one core per process.
    """

    when_utc: str
    version: str
    machine: str
    events_per_core_s: float
    requests_per_s: float  # one-token requests, as fast as one process can
    levels: tuple[Level, ...]
    shared_cores: bool  # clients and servers had fewer cores than there were of them
    together: Together | None = None  # several processes, if that was asked for


def run(workers: int | None = 1) -> SelfTest:
    """The self-test's figures, measured now in some ten seconds.

    Args:
        workers: also measure so many processes at once; None: one per core but one.

    Raises:
        UsageError: this system cannot run it.
        InvalidRun: the client lost events.
    """
    if not hasattr(socket, "AF_UNIX") or platform.system() != "Linux":
        raise UsageError("self-test needs Linux: its server is built on epoll")
    process.room_for_sockets(Scenario(load=ClosedLoop(users=LEVELS[-1][0])))
    cores = sorted(os.sched_getaffinity(0))
    levels = [_level(streams, rate) for streams, rate in LEVELS]
    kept = [level for level in levels if level.kept_up] or levels[:1]
    best = kept[-1]
    count = max(1, len(cores) - 1) if workers is None else workers
    return SelfTest(
        when_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        machine=machine(),
        events_per_core_s=best.events_per_s / best.cpu_share,
        requests_per_s=_requests_per_s(),
        levels=tuple(levels),
        shared_cores=len(cores) < 2 * count,
        together=_together(count, best) if count > 1 else None,
    )


def machine() -> str:
    """What the figures depend on, in a line."""
    return f"{platform.node()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


def cache_path() -> Path:
    """Where the last self-test of this user is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "servecap" / "selftest.json"


def keep(found: SelfTest) -> None:
    """Store *found* for later runs to compare with; a folder that cannot be written is no harm."""
    with contextlib.suppress(OSError):
        cache_path().parent.mkdir(parents=True, exist_ok=True)
        cache_path().write_bytes(msgspec.json.encode(found))


def kept() -> SelfTest | None:
    """The last self-test, if there was one on this machine with this version."""
    try:
        found = msgspec.json.decode(cache_path().read_bytes(), type=SelfTest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RuntimeError):
        return None
    return found if (found.machine, found.version) == (machine(), __version__) else None


def nearness(records: Sequence[Record], wall_s: float, processes: int) -> str | None:
    """How near to its ceiling the client was, in words; None without a self-test or events."""
    found = kept()
    if found is None or wall_s <= 0:
        return None
    events = sum(len(r.chunk_s) for r in records) / wall_s
    requests = len(records) / wall_s
    most_events = found.events_per_core_s * processes
    most_requests = found.requests_per_s * processes
    by = "the last self-test"
    if found.together is not None and found.together.workers == processes:
        most_events, most_requests = found.together.events_per_s, found.together.requests_per_s
    elif processes > 1:
        by += " of one"
    share = events / most_events + requests / most_requests  # both cost time of the same cores
    return (
        f"the client took {events:,.0f} events/s and {requests:,.0f} requests/s, {share:.0%} of "
        f"what {processes} process{'es' if processes > 1 else ''} can take here by {by}"
    )


@contextlib.contextmanager
def _server(interval_s: float) -> Iterator[tuple[int, dict[str, list[float]]]]:
    """A null server's port, and the times of its events, which are there after the end."""
    told: dict[str, list[float]] = {}
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(
        target=nullserver.serve, args=(listener, interval_s, theirs), daemon=True
    )
    child.start()
    port = listener.getsockname()[1]
    listener.close()
    theirs.close()
    try:
        yield port, told
        child.terminate()
        told |= json.loads(ours.recv_bytes())
    finally:
        child.kill()
        child.join()


async def _ask(port: int, streams: int, tokens: int, again_s: float) -> list[Record]:
    """The records of *streams* requests at a time, sent anew for *again_s* seconds."""
    loop = asyncio.get_running_loop()
    records: list[Record] = []
    clock, ended, left = Clock(), loop.create_future(), streams

    def send(stream: int) -> None:
        request = Request(
            request_id=stream,
            messages=(Message("user", str(stream)),),
            max_output_tokens=tokens,
        )
        client.send(Arrival(request, stream, clock.now()))

    def on_record(record: Record) -> None:
        nonlocal left
        records.append(record)
        if record.ok and clock.now() < again_s:
            send(record.user)
            return
        left -= 1
        if not left:
            ended.set_result(clock.start_s)

    client = Client(
        loop,
        clock,
        resolve(f"http://127.0.0.1:{port}"),
        OpenAi(chat=True),
        model="null",
        stream=True,
        timeouts=Timeouts(total_s=60.0),
        on_record=on_record,
    )
    for stream in range(streams):
        send(stream)
    while not ended.done():
        await asyncio.wait([ended], timeout=0.2)
        client.sweep()
    client.end(records[0].outcome)
    bad = next((r for r in records if not r.ok), None)
    if bad is not None:
        raise InvalidRun(f"self-test: a request failed ({bad.outcome}: {bad.error}); run again")
    for record in records:  # onto the clock that the server uses, too
        for number, at_s in enumerate(record.chunk_s):
            record.chunk_s[number] = at_s + clock.start_s
    return records


def _load(port: int, streams: int, tokens: int, again_s: float = 0.0) -> list[Record]:
    with process.without_gc(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_ask(port, streams, tokens, again_s))


def _level(streams: int, rate: int) -> Level:
    with _server(1.0 / rate) as (port, told):
        cpu_s = time.process_time()
        records = _load(port, streams, round(rate * _LEVEL_S))
        cpu_s = time.process_time() - cpu_s
    delays = sorted(
        seen - sent
        for record in records
        for seen, sent in zip(record.chunk_s, told[str(record.user)], strict=True)
    )
    sent_s = [at_s for times in told.values() for at_s in times]
    took_s = max(sent_s) - min(sent_s)
    events_per_s = len(delays) / took_s
    return Level(
        streams=streams,
        asked_per_s=float(streams * rate),
        events_per_s=events_per_s,
        cpu_share=cpu_s / took_s,
        delay_p50_s=delays[len(delays) // 2],
        delay_p99_s=delays[int(0.99 * (len(delays) - 1))],
        kept_up=events_per_s >= _BEHIND_SHARE * streams * rate,
    )


def _requests_per_s() -> float:
    with _server(1.0) as (port, _):
        return len(_load(port, _AT_A_TIME, 1, _REQUESTS_S)) / _REQUESTS_S


def _together(workers: int, level: Level) -> Together:
    """So many processes at once, each at *level*, then each with one-token requests.

    Raises:
        InvalidRun: one of them failed.
    """
    context = multiprocessing.get_context("fork")
    start = context.Barrier(workers)
    pipes, children = [], []
    for _ in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_one_of, args=(start, level, theirs))
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    try:
        told = [msgspec.json.decode(pipe.recv_bytes(), type=_Part) for pipe in pipes]
    except EOFError:
        raise InvalidRun("self-test: a load process failed; run again") from None
    finally:
        for child in children:
            child.terminate()
            child.join()
    return Together(
        workers=workers,
        events_per_s=sum(t.level.events_per_s / t.level.cpu_share for t in told),
        requests_per_s=sum(t.requests_per_s for t in told),
        delay_p99_s=max(t.level.delay_p99_s for t in told),
    )


class _Part(msgspec.Struct):
    """What one of several processes did."""

    level: Level
    requests_per_s: float


def _one_of(start: Barrier, level: Level, out: Connection) -> None:
    start.wait(_START_LIMIT_S)
    found = _level(level.streams, round(level.asked_per_s / level.streams))
    start.wait(_START_LIMIT_S)
    out.send_bytes(msgspec.json.encode(_Part(found, _requests_per_s())))

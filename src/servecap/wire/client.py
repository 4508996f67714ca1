"""Sends requests and hands back records: the driver between sockets and the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from servecap.record import Arrival, Outcome, Record
from servecap.scenario import Timeouts
from servecap.wire.api import Api
from servecap.wire.clock import Clock
from servecap.wire.connection import Address, Connection
from servecap.wire.endpoint import Endpoint
from servecap.wire.exchange import Exchange
from servecap.wire.http import HttpBroken, ResponseReader, post_head, request_bytes
from servecap.wire.poller import Poller

OnRecord = Callable[[Record], None]

_QUIET_S = 1.0  # after so long without a byte, an answer that has its end mark is over


class Client:
    """Keeps connections open and one exchange per request in flight.

    Nothing here waits: `send` returns at once, and the record of the request is handed to
    `on_record` when it has ended. `sweep` must be called a few times a second; it enforces the
    timeouts, so that no timer per request is needed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        endpoint: Endpoint,
        api: Api,
        *,
        model: str | None,
        stream: bool,
        timeouts: Timeouts,
        on_record: OnRecord,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        self._loop = loop
        self._poller = Poller(loop, self._send_queued)
        self._queued: list[Exchange] = []
        self._clock = clock
        self._head = post_head(
            endpoint.prefix + api.path, host=endpoint.host, headers=endpoint.headers
        )
        self._api = api
        self._model = model
        self._stream = stream
        self._timeouts = timeouts
        self._on_record = on_record
        self._count_tokens = count_tokens
        self._idle: list[Connection] = []
        self._active: dict[int, Exchange] = {}
        self._address = endpoint.addresses[0]
        self._endpoint = endpoint

    @property
    def in_flight(self) -> int:
        return len(self._active)

    def send(self, arrival: Arrival) -> None:
        """Send the request of *arrival* now.

        While sockets are being served that is: as soon as they have been. Then the server is woken
        once for all the requests that follow from a turn and not for each of them, which costs
        more than anything else here; what they wait counts as lag.
        """
        exchange = Exchange(
            arrival, self._api, self._done, self._count_tokens, self._poller.put_off
        )
        body = self._api.body(arrival.request, model=self._model, stream=self._stream)
        exchange.payload = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        self._active[id(exchange)] = exchange
        exchange.sent_s = self._clock.now()
        if self._poller.serving:
            self._queued.append(exchange)
        else:
            self._put(exchange, self._take_idle())

    def _send_queued(self) -> None:
        if not self._queued:
            return
        queued, self._queued = self._queued, []
        for exchange in queued:
            if exchange.record is None:
                exchange.sent_s = self._clock.now()
                self._put(exchange, self._take_idle())

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    def _put(self, exchange: Exchange, connection: Connection | None) -> None:
        """Send over *connection*, or over a new one."""
        if connection is not None:
            exchange.retry = self._again
        else:
            try:
                connection = Connection(self._poller, self._clock, self._address)
            except OSError as error:
                exchange.connection = None
                why = f"no socket can be had: {error.strerror}"
                self._loop.call_soon(exchange.closed, why, self._clock.now())
                return
        exchange.connection = connection
        connection.owner = exchange
        connection.send(exchange.payload)

    def _again(self, exchange: Exchange) -> None:
        """The kept-open connection had been closed by the server: use a fresh one.

        Only when nothing of an answer was received: the request was never served (RFC 9112,
        section 9.3.1, on closing idle connections). Its time goes on counting. A fresh connection
        that fails is the server's doing.
        """
        exchange.retry = None
        exchange.resent = True
        if exchange.record is None:
            self._put(exchange, None)

    def _done(self, exchange: Exchange) -> None:
        del self._active[id(exchange)]
        connection = exchange.connection
        if connection is not None and connection.open:
            connection.owner = None
            self._idle.append(connection)
        exchange.connection = None
        record = exchange.record
        assert record is not None
        if record.error is not None:
            scrubbed = self._endpoint.scrubbed(record.error)
            if scrubbed != record.error:
                record = msgspec.structs.replace(record, error=scrubbed)
        self._on_record(record)

    def sweep(self) -> None:
        """End the exchanges that are past one of their timeouts."""
        self._clock.align()
        now_s = self._clock.now()
        for exchange in [e for e in self._active.values() if e.look_s <= now_s]:
            self._look_at(exchange, now_s)

    def _look_at(self, exchange: Exchange, now_s: float) -> None:
        read_s = exchange.last_read_s
        if read_s is not None and now_s - read_s > _QUIET_S:
            exchange.end_if_answered(now_s)  # whatever keeps the server from closing
            if exchange.record is not None:
                return
        limits = self._timeouts
        age_s = now_s - exchange.sent_s
        why = None
        if age_s > limits.total_s:
            why = f"no end of the answer within {limits.total_s:g} s"
        elif exchange.connection is not None and not exchange.connection.established:
            if age_s > limits.connect_s:
                why = f"no connection within {limits.connect_s:g} s"
        elif read_s is not None and now_s - read_s > limits.gap_s:
            why = f"nothing received for {limits.gap_s:g} s"
        elif age_s > limits.first_token_s and self._stream:
            exchange.understand()
            if exchange.record is None and not exchange.has_first_token:
                why = f"no first token within {limits.first_token_s:g} s"
        if why is not None:
            exchange.abandon(Outcome.TIMEOUT, now_s, why)
        else:
            exchange.look_s = self._next_look_s(exchange, now_s)

    def _next_look_s(self, exchange: Exchange, now_s: float) -> float:
        """Until when none of its timeouts can pass; to look at thousands each time takes long.

        What is received meanwhile puts them off.
        """
        limits, sent_s = self._timeouts, exchange.sent_s
        read_s = exchange.last_read_s
        if read_s is None:
            read_s = now_s
        ends = (
            sent_s + limits.connect_s,
            sent_s + limits.first_token_s,
            sent_s + limits.total_s,
            read_s + limits.gap_s,
            read_s + _QUIET_S,
        )
        return min([now_s + _QUIET_S, *(end for end in ends if end >= now_s)])

    def end(self, outcome: Outcome) -> None:
        """End everything in flight with *outcome* and close all connections."""
        now_s = self._clock.now()
        for exchange in list(self._active.values()):
            exchange.abandon(outcome, now_s)
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self._poller.close()


class Fetched(msgspec.Struct, frozen=True):
    """A plain answer: status, headers (names in lower case) and body."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Fetch:
    def __init__(self, done: asyncio.Future[Fetched]) -> None:
        self._done = done
        self._reader = ResponseReader()
        self._body: list[bytes] = []

    def received(self, data: bytes, at_s: float) -> None:  # noqa: ARG002
        try:
            self._body += self._reader.feed(data)
        except HttpBroken as error:
            self._settle(error)
            return
        if self._reader.complete:
            self._settle(None)

    def closed(self, why: str | None, at_s: float) -> None:  # noqa: ARG002
        whole = self._reader.end_of_connection()
        self._settle(None if whole else HttpBroken(why or "the server closed without an answer"))

    def _settle(self, error: Exception | None) -> None:
        if self._done.done():
            return
        if error is not None:
            self._done.set_exception(error)
        else:
            reader = self._reader
            self._done.set_result(Fetched(reader.status or 0, reader.headers, b"".join(self._body)))


async def fetch(
    endpoint: Endpoint,
    path: str,
    *,
    address: Address | None = None,
    method: str = "GET",
    body: bytes = b"",
    timeout_s: float = 10.0,
) -> Fetched:
    """The answer to one plain request on a connection of its own.

    Raises:
        HttpBroken: there was no whole answer; the message says why.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Fetched] = loop.create_future()
    poller = Poller(loop)
    try:
        connection = Connection(poller, Clock(), address or endpoint.addresses[0])
    except OSError as error:
        poller.close()
        raise HttpBroken(f"no socket can be had: {error.strerror}") from None
    connection.owner = _Fetch(done)
    headers = {**endpoint.headers, "Connection": "close"}
    connection.send(
        request_bytes(
            method, endpoint.prefix + path, host=endpoint.host, headers=headers, body=body
        )
    )
    try:
        return await asyncio.wait_for(done, timeout_s)
    except TimeoutError:
        raise HttpBroken(f"no answer within {timeout_s:g} s") from None
    finally:
        connection.close()
        poller.close()

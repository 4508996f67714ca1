"""The HTTP front of the emulator: routes, refusals and streams."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from servecap import __version__, rand
from servecap.emulate import openai, tgi
from servecap.emulate.answers import AnswerLengths, block_keys
from servecap.emulate.ask import Ask, Rejected, openai_error, tgi_error
from servecap.emulate.config import EmulatorConfig
from servecap.emulate.driver import Driver, Job
from servecap.emulate.metrics import Metrics
from servecap.engine.engine import EngineRequest
from servecap.engine.spec import build

_BODY_MAX_BYTES = 64 * 2**20
_BACKLOG_MAX_BYTES = 2**20  # a client that reads so much too slowly is cut off
_BACKLOG_CHECK_TOKENS = 16
_SERVER = {"Server": f"servecap-emulator/{__version__}"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Events(Protocol):
    """A dialect's view of one streamed answer."""

    def head(self) -> list[bytes]:
        """Events before the first token."""

    def token(self, index: int) -> bytes:
        """The event of one token, counted from 0."""

    def tail(self) -> list[bytes]:
        """Events after the last token."""


class Plan(msgspec.Struct, frozen=True):
    """What will become of an accepted request."""

    job: Job
    ask: Ask
    reason: str  # "stop" or "length"
    began_s: float  # real, monotonic
    validation_s: float


class Server:
    """The routes and what they share. Create it on the running loop that will serve it."""

    def __init__(self, config: EmulatorConfig) -> None:
        self.config = config
        self.metrics = Metrics(config.served_name, config.speed)
        self.driver = Driver(
            build(config.spec),
            speed=config.speed,
            on_gap=self.metrics.on_gap,
            on_first=self.metrics.on_first,
            on_end=self.metrics.on_end,
            freeze_at_s=config.freeze_at_s,
            freeze_s=config.freeze_s,
        )
        self.metrics.watch(self.driver)
        self._lengths = AnswerLengths(mean_tokens=config.output_mean_tokens, seed=config.seed)
        self._faults = rand.stream(config.seed, "emulator", "faults")
        self._ids = itertools.count(1)
        self._created = int(time.time())

    def app(self) -> web.Application:
        """The routes: OpenAI's and TGI's, the probes, and the metrics."""
        app = web.Application(client_max_size=_BODY_MAX_BYTES)
        app.router.add_post("/v1/chat/completions", self._guarded(self._chat, openai_error))
        app.router.add_post("/v1/completions", self._guarded(self._completion, openai_error))
        app.router.add_post("/generate", self._guarded(self._generate, tgi_error))
        app.router.add_post("/generate_stream", self._guarded(self._generate_stream, tgi_error))
        app.router.add_post("/", self._guarded(self._generate_compat, tgi_error))
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        # A client tells the two engines apart by these.
        if self.config.engine == "tgi":
            app.router.add_get("/info", self._guarded(self._info, tgi_error))
        else:
            app.router.add_get("/v1/models", self._guarded(self._models, openai_error))
        return app

    def _guarded(self, handler: Handler, shape: Callable[[Rejected], dict[str, object]]) -> Handler:
        """The handler behind the key check, with refusals put in the dialect's shape."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                self._check_key(request)
                return await handler(request)
            except Rejected as error:
                return _json(shape(error), status=error.status)

        return guarded

    def _check_key(self, request: web.Request) -> None:
        key = self.config.api_key
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            raise Rejected(401, "a valid API key is needed", kind="AuthenticationError")

    # The dialects.

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._openai(request, openai.read_chat, chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._openai(request, openai.read_completion, chat=False)

    async def _openai(
        self, request: web.Request, read: Callable[[bytes, str], Ask], *, chat: bool
    ) -> web.StreamResponse:
        began_s = time.monotonic()
        ask = read(await request.read(), self.config.served_name)
        plan = self._accept(ask, began_s, bad=400)
        model, created = self.config.served_name, int(time.time())
        job, reason = plan.job, plan.reason
        if ask.stream:
            events = openai.Stream(job, ask, chat=chat, model=model, created=created, reason=reason)
            headers = {"Content-Type": "text/event-stream; charset=utf-8"}
            return await self._stream(request, plan, events, headers)
        await self._finish(plan)
        body = openai.whole(job, ask, chat=chat, model=model, created=created, reason=reason)
        return web.Response(body=body, content_type="application/json", headers=_SERVER)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self._tgi(request, stream=False)

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._tgi(request, stream=True)

    async def _generate_compat(self, request: web.Request) -> web.StreamResponse:
        return await self._tgi(request, stream=None)

    async def _tgi(self, request: web.Request, *, stream: bool | None) -> web.StreamResponse:
        began_s = time.monotonic()
        ask = tgi.read(await request.read(), stream=stream)
        plan = self._accept(ask, began_s, bad=422)
        job, tokens = plan.job, plan.job.output_tokens
        if ask.stream:
            events = tgi.Stream(job.id, ask, tokens=tokens, reason=plan.reason)
            headers = {
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                **tgi.compute_headers(ask),
            }
            return await self._stream(request, plan, events, headers)
        await self._finish(plan)
        headers = tgi.timing_headers(
            job,
            ask,
            speed=self.config.speed,
            total_s=time.monotonic() - plan.began_s,
            validation_s=plan.validation_s,
            prefill=self.config.tgi_prefill_header,
        )
        body = tgi.whole(job.id, ask, tokens=tokens, reason=plan.reason)
        return _json([body] if stream is None else body, headers=headers)

    # What they have in common.

    def _accept(self, ask: Ask, began_s: float, *, bad: int) -> Plan:
        """The plan for a request that can be served.

        Raises:
            Rejected: it cannot, or not now; *bad* is the dialect's status for the first.
        """
        engine = self.driver.engine
        limit = self.config.max_queue
        if limit is not None and engine.waiting >= limit:
            kind = "RateLimitError" if bad == 400 else "overloaded"
            raise Rejected(429, "Model is overloaded", kind=kind)
        if self._faults.random() < self.config.fail_share:
            kind = "InternalServerError" if bad == 400 else "incomplete_generation"
            raise Rejected(500, "the emulator was told to fail", kind=kind)
        room = min(engine.max_context_tokens, engine.kv_tokens) - ask.prompt_tokens
        at_most = ask.at_most if ask.at_most is not None else max(1, room)
        tokens, reason = self._lengths.length(
            at_most=at_most, at_least=min(ask.at_least, at_most), ignore_eos=ask.ignore_eos
        )
        keys = block_keys(ask.texts) if self.config.prefix_cache else ()
        asked = EngineRequest(next(self._ids), ask.prompt_tokens, tokens, at_most, keys)
        refusal = engine.refusal(asked)
        if refusal is not None:
            kind = "BadRequestError" if bad == 400 else "validation"
            raise Rejected(bad, refusal, kind=kind)
        arrived_s = self.driver.now_s()
        job = Job(asked, arrived_s=arrived_s)
        return Plan(job, ask, reason, began_s, time.monotonic() - began_s)

    async def _finish(self, plan: Plan) -> None:
        """Returns when the answer is complete; if the client leaves first, so does the job."""
        reason = "abort"
        try:
            self.driver.submit(plan.job)
            await plan.job.done
            reason = plan.reason
        finally:
            self.metrics.ended(reason)
            self.driver.cancel(plan.job)

    async def _stream(
        self, request: web.Request, plan: Plan, events: Events, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**_SERVER, **headers})
        await response.prepare(request)
        transport = request.transport
        if transport is None:  # gone before it began
            return response
        framed = "Transfer-Encoding" in response.headers
        tokens = plan.job.output_tokens
        cut = self._faults.random() < self.config.cut_share
        plan.job.on_token = _Writer(
            transport, events, last=tokens - 1, framed=framed, cut_at=tokens // 2 if cut else None
        )
        await self._finish(plan)
        await response.write_eof()
        return response

    # The probes.

    async def _health(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.Response(headers=_SERVER)

    async def _metrics(self, request: web.Request) -> web.Response:  # noqa: ARG002
        headers = {**_SERVER, "Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=self.metrics.text(), headers=headers)

    async def _models(self, request: web.Request) -> web.Response:  # noqa: ARG002
        limit = self.driver.engine.max_context_tokens
        name = self.config.served_name
        return _json(openai.models(name, created=self._created, max_context_tokens=limit))

    async def _info(self, request: web.Request) -> web.Response:  # noqa: ARG002
        engine = self.driver.engine
        name, limit = self.config.served_name, engine.max_context_tokens
        return _json(tgi.info(name, max_context_tokens=limit, kv_tokens=engine.kv_tokens))


class _Writer:
    """Puts tokens on the wire as they come, without a task of its own.

    Tens of thousands of tokens per second leave no time to wake a handler for each one: events go
    straight to the transport, framed as HTTP chunks. A reader who falls far behind is cut off.
    """

    __slots__ = ("_cut_at", "_events", "_framed", "_last", "_transport")

    def __init__(
        self, transport: asyncio.Transport, events: Events, *, last: int, framed: bool,
        cut_at: int | None,
    ) -> None:  # fmt: skip
        self._transport = transport
        self._events = events
        self._last = last
        self._framed = framed
        self._cut_at = cut_at

    def __call__(self, index: int) -> None:
        transport = self._transport
        if transport.is_closing():
            return
        if index == self._cut_at:
            transport.abort()
            return
        events = [self._events.token(index)]
        if index == 0:
            events = self._events.head() + events
        if index == self._last:
            events += self._events.tail()
        if self._framed:
            events = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        transport.write(b"".join(events))
        if index % _BACKLOG_CHECK_TOKENS == 0:
            backlog = transport.get_write_buffer_size()
            if backlog > _BACKLOG_MAX_BYTES:
                transport.abort()


def _json(
    body: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type="application/json",
        headers={**_SERVER, **(headers or {})},
    )

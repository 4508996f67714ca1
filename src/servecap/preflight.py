"""Before any load: is the server there, which API does it speak, and does it answer one request?"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from servecap.errors import UNREADABLE, EndpointError, UsageError
from servecap.record import Arrival, Message, Outcome, Record, Request
from servecap.scenario import Target, Timeouts
from servecap.wire.answer import clean
from servecap.wire.api import API_NAMES, Api
from servecap.wire.client import Client, fetch
from servecap.wire.clock import Clock
from servecap.wire.endpoint import KEY_VARIABLES, Endpoint
from servecap.wire.http import NO_HTTP, HttpBroken
from servecap.wire.ollama import Ollama
from servecap.wire.openai import OpenAi
from servecap.wire.sglang import SgLang
from servecap.wire.tgi import Tgi

TRIAL_TOKENS = 16
EMULATED = (
    "the server is servecap's emulator: latencies and rates are predictions of the engine model, "
    "not measurements of a GPU"
)


def is_emulator(server: str | None) -> bool:
    """Whether a server that calls itself so is our own emulator."""
    return server is not None and server.startswith("servecap-emulator")


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A server that answered: how to talk to it, and how it does when idle."""

    endpoint: Endpoint
    api: Api
    target: Target
    trial: Record
    notes: tuple[str, ...] = ()
    command: str = ""  # that asked for it

    def response_guess_s(self, output_tokens: float) -> float:
        """Seconds that an answer of so many tokens takes while nobody else is served."""
        trial = self.trial
        if trial.tpot_s is not None and trial.ttft_s is not None:
            return trial.ttft_s + trial.tpot_s * output_tokens
        return trial.e2e_s * output_tokens / max(1, trial.output_tokens or TRIAL_TOKENS)


async def prepare(
    endpoint: Endpoint, *, url: str, api: str, model: str | None, stream: bool, timeouts: Timeouts
) -> Prepared:
    """A server that has answered one short request in the dialect that is then used.

    Raises:
        EndpointError: it cannot be reached, refuses the request, or serves another model.
        UsageError: the API's name is unknown.
    """
    if api not in API_NAMES:
        raise UsageError(f"--api {api!r} is not one of {', '.join(API_NAMES)}")
    endpoint, server = await _reachable(endpoint, url)
    found, served = await _discover(endpoint, url, api, stream)
    model = _choose_model(model, served, found)
    notes: list[str] = [EMULATED] if is_emulator(server) else []
    while True:
        trial = await _trial(endpoint, found, model, stream, timeouts)
        if trial.ok:
            break
        other = _fallback(found, trial, auto=api == "auto")
        if other is None:
            raise EndpointError(explain(trial, url, model))
        found, note = other
        notes.append(note)
    target = Target(url=url, api=found.name, model=model, stream=stream, server=server)
    return Prepared(
        endpoint=endpoint, api=found, target=target, trial=trial, notes=tuple(dict.fromkeys(notes))
    )


async def _reachable(endpoint: Endpoint, url: str) -> tuple[Endpoint, str | None]:
    """The endpoint with the first address that answers, and what the server calls itself."""
    why = "it has no address"
    for address in endpoint.addresses:
        try:
            found = await fetch(endpoint, "/health", address=address)
        except HttpBroken as error:
            why = endpoint.scrubbed(clean(str(error)))
        else:
            name = found.headers.get("server")
            known = msgspec.structs.replace(endpoint, addresses=(address,))
            return known, clean(name) if name else None
    if why.startswith(NO_HTTP):
        raise EndpointError(f"what answers at {url} is no HTTP server ({why}): check host and port")
    if endpoint.proxy is not None:
        raise EndpointError(
            f"no server answers at {url} through the proxy {endpoint.proxy} ({why}): check both"
        )
    raise EndpointError(f"no server answers at {url} ({why}): start it, or check host and port")


async def _discover(
    endpoint: Endpoint, url: str, api: str, stream: bool
) -> tuple[Api, tuple[str, ...]]:
    """The dialect, and the models that the server names."""
    status, served = await _models(endpoint)
    if status in (401, 403):
        raise EndpointError(_wants_key(url, status))
    match api:
        case "openai-chat":
            return OpenAi(chat=True), served
        case "openai-completions":
            return OpenAi(chat=False), served
        case "tgi":
            return Tgi(stream=stream), ()
        case "ollama-chat" | "ollama-generate":
            return Ollama(chat=api == "ollama-chat"), served or await _ollama_models(endpoint)
        case "sglang":
            return SgLang(), ()
    if served:
        return OpenAi(chat=True), served
    return await _discover_own(endpoint, url, status, stream)


async def _discover_own(
    endpoint: Endpoint, url: str, status: int, stream: bool
) -> tuple[Api, tuple[str, ...]]:
    """The dialect of a server without OpenAI's: /v1/models answered *status*."""
    tgi, info = await _get_json(endpoint, "/info")
    if isinstance(info, dict) and "model_id" in info:
        return Tgi(stream=stream), ()
    if named := await _ollama_models(endpoint):
        return Ollama(chat=True), named
    sglang, info = await _get_json(endpoint, "/get_model_info")
    if isinstance(info, dict) and "model_path" in info:
        return SgLang(), ()
    told = f"/v1/models {_told(status)}, /info {_told(tgi)}, /get_model_info {_told(sglang)}"
    raise EndpointError(
        f"no known API at {url}: {told}, /api/tags names no models; check the URL, or name the API "
        f"with --api ({', '.join(API_NAMES[1:])})"
    )


def _told(status: int) -> str:
    """What a path answered that should name models, with that status; 0: nothing proper."""
    match status:
        case 0:
            return "answers nothing"
        case 200:
            return "names no model (HTTP 200)"
        case 301 | 302 | 303 | 307 | 308:
            return f"leads elsewhere (HTTP {status}, which is not followed)"
    return f"answers HTTP {status}"


async def _ollama_models(endpoint: Endpoint) -> tuple[str, ...]:
    _, found = await _get_json(endpoint, "/api/tags")
    listed = found.get("models") if isinstance(found, dict) else None
    names = [m.get("name") for m in listed or () if isinstance(m, dict)]
    return tuple(clean(n) for n in names if isinstance(n, str))


async def _models(endpoint: Endpoint) -> tuple[int, tuple[str, ...]]:
    status, found = await _get_json(endpoint, "/v1/models")
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(data, list):
        return status, ()
    names = [m.get("id") for m in data if isinstance(m, dict)]
    return status, tuple(clean(n) for n in names if isinstance(n, str))


async def _get_json(endpoint: Endpoint, path: str) -> tuple[int, Any]:
    try:
        found = await fetch(endpoint, path)
    except HttpBroken:
        return 0, None
    try:
        return found.status, msgspec.json.decode(found.body) if found.status == 200 else None
    except UNREADABLE:
        return found.status, None


def _choose_model(model: str | None, served: tuple[str, ...], api: Api) -> str | None:
    if model is None:
        if served:
            return served[0]
        if isinstance(api, Tgi | SgLang):
            return None
        raise EndpointError("the server names no model: give one with --model")
    if served and model not in served:
        raise EndpointError(f"model {model!r} is not served here; served: {', '.join(served)}")
    return model


async def _trial(
    endpoint: Endpoint, api: Api, model: str | None, stream: bool, timeouts: Timeouts
) -> Record:
    """One short request, in full."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Record] = loop.create_future()
    clock = Clock()
    client = Client(
        loop,
        clock,
        endpoint,
        api,
        model=model,
        stream=stream,
        timeouts=timeouts,
        on_record=ended.set_result,
    )
    request = Request(
        request_id=0,
        messages=(Message("user", "Name three rivers."),),
        max_output_tokens=TRIAL_TOKENS,
        exact_output=True,
    )
    client.send(Arrival(request, 0, clock.now()))
    try:
        while not ended.done():
            await asyncio.wait([ended], timeout=0.1)
            client.sweep()
        return ended.result()
    finally:
        if ended.done():
            client.end(Outcome.CANCELLED)


def _fallback(api: Api, trial: Record, *, auto: bool) -> tuple[Api, str] | None:
    """Another way to put the request, if the server said what it minds."""
    said = (trial.error or "").lower()
    if trial.status in (400, 422):
        for field in api.optional_fields:
            if field in said:
                other = api.without(field)
                if other.body(_EMPTY, model=None, stream=True) != api.body(
                    _EMPTY, model=None, stream=True
                ):
                    return other, f"the server refuses {field!r}, so it is not sent"
    chat = isinstance(api, OpenAi) and api.name == "openai-chat"
    no_chat = trial.status in (404, 405) or "chat template" in said or "chat_template" in said
    if auto and chat and no_chat and "model" not in said:
        return OpenAi(chat=False), "the server has no chat API: plain completions are used"
    return None


_EMPTY = Request(request_id=0, messages=(), max_output_tokens=1, exact_output=True)


def _wants_key(url: str, status: int) -> str:
    return (
        f"{url} wants an API key (HTTP {status}): set {KEY_VARIABLES[0]} in the environment, "
        "or check the one that is set"
    )


def explain(trial: Record, url: str, model: str | None) -> str:
    """Why a server that failed its first request cannot be tested, in one line."""
    said = trial.error or str(trial.outcome)
    match trial.status:
        case 401 | 403:
            return _wants_key(url, trial.status)
        case 404:
            return f"{url} does not know model {model!r}, or not this path (HTTP 404: {said})"
        case 429:
            return f"{url} refuses even a single request as too many (HTTP 429: {said})"
        case status if status is not None and status >= 400:
            return f"{url} answers the first request with HTTP {status}: {said}"
    return f"{url} does not answer the first request properly ({trial.outcome}: {said})"

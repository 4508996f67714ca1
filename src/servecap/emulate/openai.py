"""OpenAI's chat completions and completions, in the shapes of vLLM."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from servecap.emulate.answers import WORDS, count_tokens, text
from servecap.emulate.ask import Ask, Rejected
from servecap.emulate.driver import Job
from servecap.errors import UNREADABLE

_Count = Annotated[int, msgspec.Meta(ge=1)]
_DONE = b"data: [DONE]\n\n"


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=1)] | None = None


class _ChatBody(_Body, frozen=True, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]


class _CompletionBody(_Body, frozen=True, kw_only=True):
    prompt: str | list[str | int]  # a text, a list of one text, or token ids


_AnyBody = TypeVar("_AnyBody", bound=_Body)
_chat_decoder = msgspec.json.Decoder(_ChatBody)
_completion_decoder = msgspec.json.Decoder(_CompletionBody)


def read_chat(body: bytes, served: str) -> Ask:
    """What a chat completion asks for.

    Raises:
        Rejected: the body makes no sense (400), or another model is meant (404).
    """
    asked = _read(_chat_decoder, body, served)
    parts: list[str] = []
    for message in asked.messages:
        if isinstance(message.content, str):
            parts.append(message.content)
        elif message.content is not None:
            parts += [part.text for part in message.content]
    return _ask(asked, sum(map(count_tokens, parts)), parts)


def read_completion(body: bytes, served: str) -> Ask:
    """What a completion asks for; a prompt may be a text or a list of token ids.

    Raises:
        Rejected: the body makes no sense (400), or another model is meant (404).
    """
    asked = _read(_completion_decoder, body, served)
    prompt = asked.prompt
    if isinstance(prompt, str):
        return _ask(asked, count_tokens(prompt), [prompt])
    texts = [part for part in prompt if isinstance(part, str)]
    if len(prompt) == len(texts) == 1:
        return _ask(asked, count_tokens(texts[0]), texts)
    if prompt and not texts:
        return _ask(asked, len(prompt), [" ".join(map(str, prompt))], characters=len(prompt))
    raise _bad("the emulator takes one prompt per request", "prompt")


def _read(decoder: msgspec.json.Decoder[_AnyBody], body: bytes, served: str) -> _AnyBody:
    try:
        asked = decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or None
        raise _bad(f"{field}: {message}" if field else message, field) from None
    except UNREADABLE as error:
        raise _bad(f"the body is not valid JSON: {error}", None) from None
    if asked.model is not None and asked.model != served:
        message = f"The model `{asked.model}` does not exist."
        raise Rejected(404, message, kind="NotFoundError", param="model")
    return asked


def _ask(
    asked: _Body, prompt_tokens: int, texts: list[str], *, characters: int | None = None
) -> Ask:
    at_most = asked.max_completion_tokens or asked.max_tokens
    at_least = asked.min_tokens or 0
    if at_most is not None and at_least > at_most:
        raise _bad(f"min_tokens {at_least} is greater than max_tokens {at_most}", "min_tokens")
    return Ask(
        prompt_tokens=max(1, prompt_tokens),
        prompt_characters=sum(map(len, texts)) if characters is None else characters,
        texts=tuple(texts),
        at_most=at_most,
        at_least=at_least,
        ignore_eos=bool(asked.ignore_eos),
        stream=bool(asked.stream),
        include_usage=asked.stream_options is not None and asked.stream_options.include_usage,
    )


def _bad(message: str, param: str | None) -> Rejected:
    return Rejected(400, message, kind="BadRequestError", param=param)


class Stream:
    """The events of one streamed answer, one token each; encoded beforehand but for the word."""

    def __init__(
        self, job: Job, ask: Ask, *, chat: bool, model: str, created: int, reason: str,
    ) -> None:  # fmt: skip
        request_id, tokens = job.id, job.output_tokens
        self._offset = request_id * 31
        self._last = tokens - 1
        self._job = job if ask.include_usage else None
        self._ask = ask
        self._frame = {
            "id": _name(request_id, chat),
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._chat = chat
        self._before, self._after = _around(self._frame, self._choice(None))
        _, self._after_last = _around(self._frame, self._choice(reason))

    def _choice(self, reason: str | None) -> dict[str, Any]:
        said = {"delta": {"content": _MARK}} if self._chat else {"text": _MARK}
        end: dict[str, Any] = {"logprobs": None, "finish_reason": reason}
        if reason is not None or not self._chat:
            end["stop_reason"] = None
        return {"index": 0, **said, **end}

    def head(self) -> list[bytes]:
        """What goes before the first token: in chat, a chunk with the role and no text."""
        if not self._chat:
            return []
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return [_event({**self._frame, "choices": [choice]})]

    def token(self, index: int) -> bytes:
        """The event of the token with that number; the last one carries the finish reason."""
        word = _WORDS[(self._offset + index * 7) % len(_WORDS)]
        return self._before + word + (self._after if index < self._last else self._after_last)

    def tail(self) -> list[bytes]:
        """What goes after the last token."""
        if self._job is None:
            return [_DONE]
        return [
            _event({**self._frame, "choices": [], "usage": _usage(self._ask, self._job)}),
            _DONE,
        ]


def whole(job: Job, ask: Ask, *, chat: bool, model: str, created: int, reason: str) -> bytes:
    """The body of an answer that is not streamed."""
    request_id = job.id
    answer = text(request_id, job.output_tokens)
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": answer}} if chat else {"text": answer}
    )
    end = {"logprobs": None, "finish_reason": reason, "stop_reason": None}
    body = {
        "id": _name(request_id, chat),
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, **said, **end}],
        "usage": _usage(ask, job),
    }
    return msgspec.json.encode(body)


def models(served: str, *, created: int, max_context_tokens: int) -> dict[str, Any]:
    """The body of /v1/models."""
    only = {
        "id": served,
        "object": "model",
        "created": created,
        "owned_by": "servecap-emulator",
        "root": served,
        "parent": None,
        "max_model_len": max_context_tokens,
    }
    return {"object": "list", "data": [only]}


_MARK = "\x00"  # where the word goes; its JSON is \u0000, which no other field contains
_WORDS = tuple(word.encode() for word in WORDS)


def _around(frame: dict[str, Any], choice: dict[str, Any]) -> tuple[bytes, bytes]:
    before, _, after = _event({**frame, "choices": [choice]}).partition(b"\\u0000")
    return before, after


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _name(request_id: int, chat: bool) -> str:
    return f"{'chatcmpl' if chat else 'cmpl'}-{request_id:016x}"


def _usage(ask: Ask, job: Job) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": ask.prompt_tokens,
        "total_tokens": ask.prompt_tokens + job.output_tokens,
        "completion_tokens": job.output_tokens,
    }
    if job.cached_tokens:  # vLLM tells of hits only
        usage["prompt_tokens_details"] = {"cached_tokens": job.cached_tokens}
    return usage

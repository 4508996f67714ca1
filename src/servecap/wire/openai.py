"""The OpenAI dialects, as spoken by vLLM, SGLang, llama.cpp, TGI, Ollama and OpenAI itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from servecap.errors import UNREADABLE
from servecap.record import Request, ServerTimings
from servecap.wire import tgi
from servecap.wire.answer import Answer, BadAnswer, clean, is_mark, message_of, parse, reason
from servecap.wire.like import Form, Forms

_COUNT_MAX = 2**31  # tokens


class _Details(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct, frozen=True, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()  # in a union with None, Raw reads nothing but null


class _Logprobs(msgspec.Struct, frozen=True, gc=False):
    """One entry per token: in `content` for chat, in `tokens` for completions."""

    content: list[msgspec.Raw] | None = None
    tokens: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct, frozen=True, gc=False):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _LlamaTimings(msgspec.Struct, frozen=True, gc=False):
    """llama.cpp's own clock: milliseconds of prefill (prompt) and decode (predicted)."""

    prompt_ms: float | None = None
    predicted_ms: float | None = None
    predicted_n: int | None = None


class _Chunk(msgspec.Struct, frozen=True, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: _LlamaTimings | None = None
    error: Any = None
    object: str | None = None
    message: Any = None  # SGLang's flat error


_SHORTEST_JSON = 16  # no chunk of this dialect is shorter

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Chunk)
_READ = (_Details, _Usage, _Delta, _Logprobs, _Choice, _LlamaTimings, _Chunk)
_forms = Forms(frozenset(name for struct in _READ for name in struct.__struct_encode_fields__))


class OpenAi:
    """Chat completions, or plain completions of the joined messages."""

    def __init__(self, *, chat: bool, dropped: frozenset[str] = frozenset()) -> None:
        """
        Args:
            dropped: request fields that this server refuses; see `optional_fields`.
        """
        self._chat = chat
        self._dropped = dropped
        self.name = "openai-chat" if chat else "openai-completions"
        self.path = "/v1/chat/completions" if chat else "/v1/completions"

    optional_fields = ("ignore_eos", "min_tokens", "stream_options", "temperature", "max_tokens")

    def without(self, field: str) -> OpenAi:
        """The same dialect that no longer sends *field*."""
        return OpenAi(chat=self._chat, dropped=self._dropped | {field})

    def body(self, request: Request, *, model: str | None, stream: bool) -> bytes:
        """The JSON body of *request*."""
        before, after = self._around(model, request.max_output_tokens, request.exact_output, stream)
        if self._chat:
            return before + _encoder.encode(request.messages) + after
        return before + _encoder.encode(request.text) + after

    @lru_cache(maxsize=4096)  # noqa: B019 - there are a few dialects, and they live long
    def _around(
        self, model: str | None, tokens: int | None, exact: bool, stream: bool
    ) -> tuple[bytes, bytes]:
        """What is before and after the prompt in a body; most requests have it from an earlier."""
        prompt = "messages" if self._chat else "prompt"
        fields: dict[str, Any] = {"model": model} if model is not None else {}
        fields[prompt] = None
        if tokens is not None:
            old = "max_tokens" not in self._dropped
            fields["max_tokens" if old else "max_completion_tokens"] = tokens
            if exact:
                fields |= {"ignore_eos": True, "min_tokens": tokens}
        fields["temperature"] = 0.0
        if stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        kept = {k: v for k, v in fields.items() if k not in self._dropped}
        before, _, after = _encoder.encode(kept).partition(b'"%b":null' % prompt.encode())
        return before + b'"%b":' % prompt.encode(), after

    def event(self, answer: Answer, data: bytes, at_s: float) -> None:
        """Read one server-sent event that arrived at *at_s*.

        Raises:
            BadAnswer: it is not valid JSON of this dialect.
        """
        if not answer.keep_text:
            form = answer.form or _forms.latest
            if form is not None and form.fits(data):
                answer.form = form
                answer.chunk_s.append(at_s)
                return
        if len(data) < _SHORTEST_JSON and is_mark(answer, data):
            return
        chunk = parse(_decoder, data)
        if chunk.error is not None or chunk.object == "error":
            _take_error(answer, chunk)
            return
        for choice in chunk.choices:
            _take_choice(answer, choice, chunk.usage, at_s)
        if chunk.usage is not None or chunk.timings is not None:
            _take_totals(answer, chunk)
        chunks = len(answer.chunk_s)
        if chunks >= answer.form_from and not answer.keep_text:
            answer.form_from = 2 * chunks
            answer.form = _form_of(data, chunk) or answer.form

    def whole(self, answer: Answer, body: bytes, headers: Mapping[str, str]) -> None:
        """Read an answer that was not streamed; TGI sends its timing headers here, too.

        Raises:
            BadAnswer: it is not valid JSON of this dialect, or has no choices.
        """
        chunk = parse(_decoder, body)
        if chunk.error is not None or chunk.object == "error":
            _take_error(answer, chunk)
            return
        if not chunk.choices:
            raise BadAnswer("the answer has no choices")
        for choice in chunk.choices:
            _carries_output(choice, answer)
            if choice.finish_reason is not None:
                answer.finish_reason = reason(choice.finish_reason)
        _take_totals(answer, chunk)
        if answer.timings is None:
            answer.timings = tgi.timings(headers, answer.output_tokens)
        answer.done = True


def _take_choice(answer: Answer, choice: _Choice, usage: _Usage | None, at_s: float) -> None:
    if _carries_output(choice, answer):
        answer.chunk_s.append(at_s)
        if choice.logprobs is not None or usage is not None:
            _count_tokens(answer, choice, usage)
    if choice.finish_reason is not None:
        answer.finish_reason = reason(choice.finish_reason)
        if _is_silent(choice):
            answer.last_token_s = at_s


def _carries_output(choice: _Choice, answer: Answer) -> bool:
    """Whether the chunk brings output of any kind; a role alone or an empty delta is none."""
    text = _text(choice)
    if text:
        if answer.keep_text:
            answer.text.append(text)
        return True
    delta = choice.delta or choice.message
    return delta is not None and bytes(delta.tool_calls) not in (b"", b"null", b"[]")


def _is_silent(choice: _Choice) -> bool:
    """Whether the chunk brings a token without text: vLLM's for an end mark that the model said, or
    for the first bytes of a character that was never finished. The server counts those, too."""
    return (choice.delta.content if choice.delta is not None else choice.text) == ""


def _count_tokens(answer: Answer, choice: _Choice, usage: _Usage | None) -> None:
    """Note the tokens of a chunk with output, where the server tells: by logprobs, or by usage
    figures in every chunk (vLLM's and SGLang's continuous_usage_stats)."""
    told = choice.logprobs
    listed = (told.content or told.tokens) if told is not None else None
    if listed:
        tokens = len(listed)
    elif usage is not None and (sofar := _count(usage.completion_tokens)) is not None:
        tokens = max(0, sofar - answer.counted)
    else:
        return
    answer.counted += tokens
    answer.chunk_tokens.append(tokens)


def _count(told: int | None) -> int | None:
    """A number of tokens that can be; anything else is not known."""
    return told if told is not None and 0 <= told < _COUNT_MAX else None


def _text(choice: _Choice) -> str | None:
    if choice.text:
        return choice.text
    delta = choice.delta or choice.message
    if delta is None:
        return None
    return delta.content or delta.reasoning_content or delta.reasoning or delta.refusal


_PROBE = b"probe"


def _form_of(data: bytes, chunk: _Chunk) -> Form | None:
    """The form of *data*, which was decoded as *chunk*; None where it brings more than text.

    That the text is where it seems to be is proved by decoding the event with another in its
    place.
    """
    text = _only_text(chunk)
    if not text:
        return None
    before, quoted, after = data.partition(msgspec.json.encode(text))
    before, after = before + b'"', b'"' + after
    try:
        found = bool(quoted) and _only_text(_decoder.decode(before + _PROBE + after)) == "probe"
    except UNREADABLE:
        found = False
    return _forms.around(before, after) if found else None


def _only_text(chunk: _Chunk) -> str | None:
    """The text of a chunk that brings one text and nothing else that is read of it."""
    if len(chunk.choices) != 1 or chunk.usage is not None or chunk.timings is not None:
        return None
    if chunk.error is not None or chunk.object == "error":
        return None
    choice = chunk.choices[0]
    if choice.finish_reason is not None or choice.logprobs is not None:
        return None
    return _text(choice)


def _take_totals(answer: Answer, chunk: _Chunk) -> None:
    usage = chunk.usage
    if usage is not None:
        answer.prompt_tokens = _count(usage.prompt_tokens)
        answer.output_tokens = _count(usage.completion_tokens)
        if usage.prompt_tokens_details is not None:
            answer.cached_tokens = _count(usage.prompt_tokens_details.cached_tokens)
    t = chunk.timings
    if t is not None and t.prompt_ms is not None and t.predicted_ms is not None:
        later = (t.predicted_n or 0) - 1
        answer.timings = ServerTimings(
            origin="llama.cpp timings",
            prefill_s=t.prompt_ms / 1e3,
            inference_s=(t.prompt_ms + t.predicted_ms) / 1e3,
            # predicted_ms runs from the end of the prompt; its first token costs no decode step.
            tpot_s=t.predicted_ms / 1e3 / later if later > 0 else None,
        )


def _take_error(answer: Answer, chunk: _Chunk) -> None:
    found = chunk.error if chunk.error is not None else chunk.message
    answer.error = clean(message_of(found))
    if isinstance(found, dict):
        code = found.get("code")
        answer.error_status = code if isinstance(code, int) else None

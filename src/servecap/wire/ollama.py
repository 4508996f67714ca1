"""Ollama's own dialect: /api/chat and /api/generate, one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from servecap.record import Request, ServerTimings
from servecap.wire.answer import Answer, BadAnswer, clean, message_of, parse, reason


class _Message(msgspec.Struct, frozen=True, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Line(msgspec.Struct, frozen=True, gc=False):
    """One part of an answer, or all of it; counts and durations (ns) come with the last."""

    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool = False
    done_reason: str | None = None
    total_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Line)


class Ollama:
    """Chat, or a completion of the joined messages; the last line is marked as done.

    Ollama has no switch to ignore the end-of-sequence token: an exact length can only be limited,
    and `audit` tells where answers came out shorter.
    """

    optional_fields: tuple[str, ...] = ()

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self.name = "ollama-chat" if chat else "ollama-generate"
        self.path = "/api/chat" if chat else "/api/generate"

    def without(self, field: str) -> Ollama:  # noqa: ARG002
        """The same dialect: there is no field that some servers refuse."""
        return self

    def body(self, request: Request, *, model: str | None, stream: bool) -> bytes:
        """The JSON body of *request*."""
        options: dict[str, Any] = {"temperature": 0.0}
        if request.max_output_tokens is not None:
            options["num_predict"] = request.max_output_tokens
        fields: dict[str, Any] = {"model": model, "stream": stream, "options": options}
        if self._chat:
            fields["messages"] = request.messages
        else:
            fields["prompt"] = request.text
        return msgspec.json.encode(fields)

    def event(self, answer: Answer, data: bytes, at_s: float) -> None:
        """Read one line that arrived at *at_s*.

        Raises:
            BadAnswer: it is not valid JSON of this dialect.
        """
        line = parse(_decoder, data)
        if line.error is not None:
            answer.error = clean(message_of(line.error))
            return
        if _carries_output(line, answer):
            answer.chunk_s.append(at_s)
        if line.done:
            _take_end(answer, line)

    def whole(self, answer: Answer, body: bytes, headers: Mapping[str, str]) -> None:  # noqa: ARG002
        """Read an answer that was not streamed.

        Raises:
            BadAnswer: it is not valid JSON of this dialect, or no whole answer.
        """
        line = parse(_decoder, body)
        if line.error is not None:
            answer.error = clean(message_of(line.error))
            return
        if not line.done:
            raise BadAnswer("the answer is not marked as done")
        _carries_output(line, answer)
        _take_end(answer, line)


def _carries_output(line: _Line, answer: Answer) -> bool:
    message = line.message
    if message is not None:
        text = message.content or message.thinking
        calls = bool(message.tool_calls)
    else:
        text, calls = line.response or line.thinking, False
    if text and answer.keep_text:
        answer.text.append(text)
    return bool(text) or calls


def _take_end(answer: Answer, line: _Line) -> None:
    """Counts and timings. A prompt that was cached whole is not counted, and unknown here.

    Source:
        Ollama, docs/api.md: prompt_eval_duration and eval_duration are nanoseconds of the
        prompt's evaluation and of the answer's generation. The latter begins with the first
        token (runner: the generation's start is taken when one was decoded).
    """
    answer.done = True
    answer.finish_reason = reason(line.done_reason) if line.done_reason else None
    answer.prompt_tokens = line.prompt_eval_count
    answer.output_tokens = line.eval_count
    prefill_s = _seconds(line.prompt_eval_duration)
    decode_s = _seconds(line.eval_duration)
    if decode_s is None:
        return
    later = (line.eval_count or 0) - 1
    answer.timings = ServerTimings(
        origin="Ollama durations",
        prefill_s=prefill_s,
        inference_s=None if prefill_s is None else prefill_s + decode_s,
        tpot_s=decode_s / later if later > 0 else None,
        total_s=_seconds(line.total_duration),
    )


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9

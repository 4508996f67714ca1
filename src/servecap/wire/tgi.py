"""Hugging Face TGI's own dialect: /generate and /generate_stream, with its timing headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from servecap.record import Request, ServerTimings
from servecap.wire.answer import Answer, BadAnswer, clean, message_of, parse, reason

_MS_MAX = 1e12  # 30 years; beyond it, or NaN, is no time
_COUNT_MAX = 2**31


class _Token(msgspec.Struct, frozen=True, gc=False):
    special: bool = False


class _Details(msgspec.Struct, frozen=True, gc=False):
    finish_reason: str | None = None
    generated_tokens: int | None = None
    input_length: int | None = None
    prefill: list[msgspec.Raw] = []


class _Event(msgspec.Struct, frozen=True, gc=False):
    token: _Token | None = None
    generated_text: str | None = None
    details: _Details | None = None
    error: Any = None


_event_decoder = msgspec.json.Decoder(_Event)
_whole_decoder = msgspec.json.Decoder(_Event | list[_Event])


class Tgi:
    """One token per event; the last one carries the details; there is no `[DONE]`."""

    name = "tgi"
    optional_fields = ("details", "decoder_input_details")

    def __init__(self, *, stream: bool, dropped: frozenset[str] = frozenset()) -> None:
        self._stream = stream
        self._dropped = dropped
        self.path = "/generate_stream" if stream else "/generate"

    def without(self, field: str) -> Tgi:
        """The same dialect that no longer sends *field*."""
        return Tgi(stream=self._stream, dropped=self._dropped | {field})

    def body(self, request: Request, *, model: str | None, stream: bool) -> bytes:  # noqa: ARG002
        """The JSON body of *request*.

        TGI has no switch to ignore the end-of-sequence token, so an exact length can only be
        asked for; `audit` tells where answers came out shorter.
        """
        parameters: dict[str, Any] = {"details": True, "decoder_input_details": not stream}
        if request.max_output_tokens is not None:
            parameters["max_new_tokens"] = request.max_output_tokens
        if request.exact_output:
            parameters["ignore_eos_token"] = True  # known to some forks; others pass it over
        kept = {k: v for k, v in parameters.items() if k not in self._dropped}
        return msgspec.json.encode({"inputs": request.text, "parameters": kept})

    def event(self, answer: Answer, data: bytes, at_s: float) -> None:
        """Read one server-sent event that arrived at *at_s*.

        Raises:
            BadAnswer: it is not valid JSON of this dialect.
        """
        event = parse(_event_decoder, data)
        if event.error is not None:
            answer.error = clean(message_of(event.error))
            return
        if event.token is not None:
            answer.chunk_s.append(at_s)
            answer.chunk_tokens.append(1)
        if event.generated_text is not None or event.details is not None:
            answer.done = True
            answer.output_tokens = len(answer.chunk_s)
            _take_details(answer, event.details)

    def whole(self, answer: Answer, body: bytes, headers: Mapping[str, str]) -> None:
        """Read an answer that was not streamed, and its timing headers.

        Raises:
            BadAnswer: it is not valid JSON of this dialect.
        """
        found = parse(_whole_decoder, body)
        if isinstance(found, list):
            if not found:
                raise BadAnswer("the answer is an empty list")
            found = found[0]
        if found.error is not None:
            answer.error = clean(message_of(found.error))
            return
        if found.generated_text is None:
            raise BadAnswer("the answer has no generated_text")
        answer.text.append(found.generated_text)
        _take_details(answer, found.details)
        answer.prompt_tokens = _whole_number(headers, "x-prompt-tokens") or answer.prompt_tokens
        answer.output_tokens = _whole_number(headers, "x-generated-tokens") or answer.output_tokens
        answer.timings = timings(headers, answer.output_tokens)
        answer.done = True


def _take_details(answer: Answer, details: _Details | None) -> None:
    if details is None:
        return
    answer.finish_reason = reason(details.finish_reason) if details.finish_reason else None
    if details.generated_tokens is not None and 0 <= details.generated_tokens < _COUNT_MAX:
        answer.output_tokens = details.generated_tokens
    if details.input_length is not None:
        answer.prompt_tokens = details.input_length
    elif details.prefill:
        answer.prompt_tokens = len(details.prefill)


def timings(headers: Mapping[str, str], generated: int | None) -> ServerTimings | None:
    """The server's timings from TGI's headers (whole milliseconds), or None without them.

    `x-prefill-time` is sent by some forks only. Without it prefill is what the later tokens leave:
    inference - time_per_token x (generated - 1), too high by up to 1 ms per token because the
    header is cut to whole milliseconds. Released routers however state inference / generated as
    the time per token (first token included); that holds no prefill time, so none is given.
    `origin` says which of the three it was.

    Source:
        TGI, router/src/server.rs (time_per_token = inference_time / generated_tokens).
    """
    inference_s = _ms(headers, "x-inference-time")
    if inference_s is None:
        return None
    tpot_s = _ms(headers, "x-time-per-token")
    prefill_s = _ms(headers, "x-prefill-time")
    origin = "TGI headers"
    if generated == 1 and prefill_s is None:
        prefill_s = inference_s  # one token is all prefill
    elif prefill_s is not None and generated is not None and generated > 1:
        tpot_s = (inference_s - prefill_s) / (generated - 1)
    elif tpot_s is not None and generated:
        if int(inference_s * 1e3 / generated) == round(tpot_s * 1e3):
            origin = "TGI headers; time per token includes the first: prefill is not known"
        else:
            origin = "TGI headers; prefill = inference - time per token x (generated - 1)"
            prefill_s = max(0.0, inference_s - tpot_s * (generated - 1))
    return ServerTimings(
        origin=origin,
        queue_s=_ms(headers, "x-queue-time"),
        prefill_s=prefill_s,
        inference_s=inference_s,
        tpot_s=tpot_s,
        total_s=_ms(headers, "x-total-time"),
    )


def _ms(headers: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(headers[name])
    except (KeyError, ValueError):
        return None
    return value / 1e3 if 0 <= value < _MS_MAX else None


def _whole_number(headers: Mapping[str, str], name: str) -> int | None:
    try:
        value = int(headers[name])
    except (KeyError, ValueError):
        return None
    return value if 0 <= value < _COUNT_MAX else None

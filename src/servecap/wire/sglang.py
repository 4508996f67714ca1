"""SGLang's own dialect: /generate, whose events repeat the whole text so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from servecap.record import Request, ServerTimings
from servecap.wire.answer import Answer, BadAnswer, clean, is_mark, message_of, parse


class _Finish(msgspec.Struct, frozen=True, gc=False):
    type: str | None = None
    message: str | None = None
    status_code: int | None = None


class _Meta(msgspec.Struct, frozen=True, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: _Finish | str | None = None
    e2e_latency: float | None = None  # seconds


class _Event(msgspec.Struct, frozen=True, gc=False):
    text: str | None = None
    meta_info: _Meta | None = None
    error: Any = None
    object: str | None = None
    message: Any = None  # of a flat error
    code: Any = None


_decoder = msgspec.json.Decoder(_Event)
_whole_decoder = msgspec.json.Decoder(_Event | list[_Event])
_FIELDS = ("ignore_eos", "min_new_tokens")


class SgLang:
    """Completions of the joined messages.

    Each event holds the text and the number of tokens so far (or, if the server was started so,
    the new text alone), so what an event brings is told by how much the count has grown.
    """

    name = "sglang"
    path = "/generate"
    optional_fields = _FIELDS

    def __init__(self, *, dropped: frozenset[str] = frozenset()) -> None:
        self._dropped = dropped

    def without(self, field: str) -> SgLang:
        """The same dialect that no longer sends *field*."""
        return SgLang(dropped=self._dropped | {field})

    def body(self, request: Request, *, model: str | None, stream: bool) -> bytes:  # noqa: ARG002
        """The JSON body of *request*; a server of /generate has one model."""
        sampling: dict[str, Any] = {"temperature": 0.0}
        if request.max_output_tokens is not None:
            sampling["max_new_tokens"] = request.max_output_tokens
            if request.exact_output:
                sampling |= {"ignore_eos": True, "min_new_tokens": request.max_output_tokens}
        kept = {k: v for k, v in sampling.items() if k not in self._dropped}
        body = {"text": request.text, "sampling_params": kept, "stream": stream}
        return msgspec.json.encode(body)

    def event(self, answer: Answer, data: bytes, at_s: float) -> None:
        """Read one server-sent event that arrived at *at_s*.

        Raises:
            BadAnswer: it is not valid JSON of this dialect.
        """
        if is_mark(answer, data):
            return
        event = parse(_decoder, data)
        if _failed(answer, event):
            return
        so_far = event.meta_info.completion_tokens if event.meta_info is not None else None
        if event.text:
            if so_far is None:
                answer.chunk_s.append(at_s)
            elif so_far > answer.counted:
                answer.chunk_s.append(at_s)
                answer.chunk_tokens.append(so_far - answer.counted)
                answer.counted = so_far
            _keep(answer, event.text)
        _take_meta(answer, event.meta_info)

    def whole(self, answer: Answer, body: bytes, headers: Mapping[str, str]) -> None:  # noqa: ARG002
        """Read an answer that was not streamed.

        Raises:
            BadAnswer: it is not valid JSON of this dialect, or has no text.
        """
        event = parse(_whole_decoder, body)
        if isinstance(event, list):
            if len(event) != 1:
                raise BadAnswer(f"one answer was asked for, and {len(event)} came")
            event = event[0]
        if _failed(answer, event):
            return
        if event.text is None:
            raise BadAnswer("the answer has no text")
        _keep(answer, event.text)
        _take_meta(answer, event.meta_info)
        answer.done = True


def _keep(answer: Answer, text: str) -> None:
    """Note the text so far: *text* itself if it goes on from what there was, else both."""
    if answer.keep_text:
        before = "".join(answer.text)
        answer.text = [text if text.startswith(before) else before + text]


def _failed(answer: Answer, event: _Event) -> bool:
    """Note an error: flat, in an `error` field, or as the reason why the answer was ended."""
    found: Any = event.error
    code: Any = found.get("code") if isinstance(found, dict) else None
    if found is None and event.object == "error":
        found, code = event.message, event.code
    meta = event.meta_info
    if found is None and meta is not None and isinstance(meta.finish_reason, _Finish):
        finish = meta.finish_reason
        if finish.type == "abort" and finish.message:
            found, code = finish.message, finish.status_code
    if found is None:
        return False
    answer.error = clean(message_of(found))
    answer.error_status = code if isinstance(code, int) else None
    return True


def _take_meta(answer: Answer, meta: _Meta | None) -> None:
    if meta is None:
        return
    answer.prompt_tokens = meta.prompt_tokens
    answer.output_tokens = meta.completion_tokens
    answer.cached_tokens = meta.cached_tokens
    finish = meta.finish_reason
    reason = finish.type if isinstance(finish, _Finish) else finish
    if reason is not None:
        answer.finish_reason = clean(reason)
    if meta.e2e_latency is not None:
        answer.timings = ServerTimings(origin="SGLang meta_info", total_s=meta.e2e_latency)

"""TGI's /generate and /generate_stream, in the shapes of its router."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from servecap.emulate.answers import WORDS, count_tokens, text, word
from servecap.emulate.ask import Ask, Rejected
from servecap.emulate.driver import Job
from servecap.errors import UNREADABLE

DEFAULT_MAX_NEW_TOKENS = 100  # as in TGI's API


class _Parameters(msgspec.Struct, frozen=True, kw_only=True):
    max_new_tokens: int | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    # Not in TGI, which always stops at the end-of-sequence token: for tests of exact lengths.
    ignore_eos: bool | None = None
    ignore_eos_token: bool | None = None
    min_new_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    inputs: str
    parameters: _Parameters | None = None
    stream: bool | None = None


_decoder = msgspec.json.Decoder(_Body)


def read(body: bytes, *, stream: bool | None) -> Ask:
    """What a request asks for; *stream* None: its own `stream` field decides (the path "/").

    Raises:
        Rejected: the body makes no sense (422).
    """
    try:
        asked = _decoder.decode(body)
    except UNREADABLE as error:
        raise _bad(str(error)) from None
    given = asked.parameters or _Parameters()
    if not asked.inputs:
        raise _bad("`inputs` cannot be empty")
    if given.max_new_tokens is not None and given.max_new_tokens < 1:
        raise _bad("`max_new_tokens` must be strictly positive")
    streaming = bool(asked.stream) if stream is None else stream
    if streaming and given.decoder_input_details:
        raise _bad("`decoder_input_details` == true is not supported when streaming tokens")
    at_most = given.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    return Ask(
        prompt_tokens=count_tokens(asked.inputs),
        prompt_characters=len(asked.inputs),
        texts=(asked.inputs,),
        at_most=at_most,
        at_least=min(given.min_new_tokens or 0, at_most),
        ignore_eos=bool(given.ignore_eos or given.ignore_eos_token),
        stream=streaming,
        details=bool(given.details),
        prefill_details=bool(given.decoder_input_details),
    )


def _bad(message: str) -> Rejected:
    return Rejected(422, f"Input validation error: {message}", kind="validation")


def finish_reason(reason: str) -> str:
    """TGI's word for OpenAI's finish reason."""
    return "eos_token" if reason == "stop" else reason


class Stream:
    """The events of one streamed answer; the last one carries the whole text and the details."""

    def __init__(self, request_id: int, ask: Ask, *, tokens: int, reason: str) -> None:
        self._request_id = request_id
        self._last = tokens - 1
        self._ask = ask
        self._reason = reason

    def head(self) -> list[bytes]:
        """Nothing goes before the first token."""
        return []

    def token(self, index: int) -> bytes:
        """The event of the token with that number (its `index` counts from 1)."""
        said = _token(self._request_id, index)
        last = index == self._last
        body = {
            "index": index + 1,
            "token": said,
            "generated_text": text(self._request_id, index + 1) if last else None,
            "details": self._details() if last and self._ask.details else None,
        }
        return b"data:" + msgspec.json.encode(body) + b"\n\n"

    def _details(self) -> dict[str, Any]:
        return {
            "finish_reason": finish_reason(self._reason),
            "generated_tokens": self._last + 1,
            "seed": None,
            "input_length": self._ask.prompt_tokens,
        }

    def tail(self) -> list[bytes]:
        """Nothing goes after the last token, no [DONE] either."""
        return []


def whole(request_id: int, ask: Ask, *, tokens: int, reason: str) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    body: dict[str, Any] = {"generated_text": text(request_id, tokens)}
    if ask.details:
        prefill = range(ask.prompt_tokens) if ask.prefill_details else range(0)
        body["details"] = {
            "finish_reason": finish_reason(reason),
            "generated_tokens": tokens,
            "seed": None,
            "prefill": [{"id": n, "text": "", "logprob": None} for n in prefill],
            "tokens": [_token(request_id, index) for index in range(tokens)],
        }
    return body


def _token(request_id: int, index: int) -> dict[str, Any]:
    said = word(request_id, index)
    return {"id": WORDS.index(said), "text": said, "logprob": -1.0, "special": False}


def compute_headers(ask: Ask) -> dict[str, str]:
    """The headers that streams carry as well."""
    return {
        "x-compute-type": "gpu+optimized",
        "x-compute-characters": str(ask.prompt_characters),
    }


def timing_headers(
    job: Job, ask: Ask, *, speed: float, total_s: float, validation_s: float, prefill: bool
) -> dict[str, str]:
    """The router's timing headers: real milliseconds, cut to whole ones.

    `x-time-per-token` is the inference time divided by all tokens, the first included; so it is
    in every TGI release. `x-prefill-time` is in none: only with *prefill*.

    Source: router/src/server.rs of TGI 1.4 to 2.x.
    """
    inference_s = (job.prefill_s + job.decode_s) / speed
    headers = {
        **compute_headers(ask),
        "x-compute-time": str(total_s),
        "x-total-time": _ms(total_s),
        "x-validation-time": _ms(validation_s),
        "x-queue-time": _ms(job.queue_s / speed),
        "x-inference-time": _ms(inference_s),
        "x-time-per-token": _ms(inference_s / job.output_tokens),
        "x-prompt-tokens": str(job.prompt_tokens),
        "x-generated-tokens": str(job.output_tokens),
    }
    if prefill:
        headers["x-prefill-time"] = _ms(job.prefill_s / speed)
    return headers


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))


def info(served: str, *, max_context_tokens: int, kv_tokens: int) -> dict[str, Any]:
    """The body of /info."""
    return {
        "model_id": served,
        "model_sha": None,
        "model_dtype": "torch.float16",
        "model_device_type": "cuda",
        "max_input_length": max_context_tokens - 1,
        "max_total_tokens": max_context_tokens,
        "max_batch_total_tokens": kv_tokens,
        "version": "servecap-emulator",
        "sha": None,
        "docker_label": None,
    }

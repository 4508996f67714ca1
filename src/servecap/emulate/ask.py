"""What a request asks for, in whichever dialect it was put, and how it is refused."""

from __future__ import annotations

from typing import Any

import msgspec


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt and how long the answer may, must and shall be; tokens."""

    prompt_tokens: int
    prompt_characters: int
    texts: tuple[str, ...] = ()  # the prompt's parts, as far as blocks of it can be told alike
    at_most: int | None = None  # None: as much as the context leaves
    at_least: int = 0
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False  # OpenAI: usage in a last chunk
    details: bool = False  # TGI
    prefill_details: bool = False  # TGI


class Rejected(Exception):
    """The request is answered with an error: HTTP status and what the body says."""

    def __init__(self, status: int, message: str, *, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param


def openai_error(error: Rejected) -> dict[str, Any]:
    """The body in OpenAI's shape, as vLLM fills it."""
    fields = {"type": error.kind, "param": error.param, "code": error.status}
    return {"error": {"message": error.message, **fields}}


def tgi_error(error: Rejected) -> dict[str, Any]:
    """The body in TGI's shape."""
    return {"error": error.message, "error_type": error.kind}

"""Prompts of conversations: ShareGPT, OpenAI messages, Alpaca, MT-bench turns, vLLM custom.

Each function turns one record into one `Sample`, or says why it cannot be used (`Dropped`).
Raises msgspec.ValidationError where the record has not the format's shape.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from servecap.record import Message
from servecap.workload.sample import Dropped, Sample

EMPTY = Dropped("empty prompt")
NOT_TEXT = Dropped("content that is not text")

# The names under which dumps of ShareGPT know the two speakers.
_HUMAN = ("human", "user")
_ASSISTANT = ("gpt", "assistant", "chatgpt", "bard", "bing", "model")


class _Turn(msgspec.Struct):
    speaker: str = msgspec.field(name="from")
    value: str | None = None


class _ShareGpt(msgspec.Struct):
    conversations: list[_Turn]


def sharegpt(value: Any) -> Sample | Dropped:
    """The first human turn that an answer follows, and that answer.

    A system message that leads the conversation stays a system message. Records are often tail
    pieces of a split conversation and start with the assistant's turn: that turn is passed over.
    vLLM instead takes message 0 as the prompt and message 1 as the answer whatever their roles,
    so for those records it sends an *answer* as the prompt; for all others the two agree.
    The rule on lengths (`source.vllm_rule`) needs token counts and comes later.
    """
    turns = msgspec.convert(value, _ShareGpt).conversations
    if len(turns) < 2:
        return Dropped("fewer than 2 messages")
    first = _first_answered(turns)
    if first is None:
        return Dropped("no human turn followed by an answer")
    prompt, answer = turns[first].value or "", turns[first + 1].value or ""
    if not prompt.strip():
        return EMPTY
    system = turns[0].value or ""
    lead = (Message("system", system),) if turns[0].speaker == "system" and system.strip() else ()
    return Sample(
        messages=(*lead, Message("user", prompt)),
        answer=answer,
        turns=tuple(Message(_role(turn.speaker), turn.value or "") for turn in turns[first + 1 :]),
    )


def _first_answered(turns: list[_Turn]) -> int | None:
    for i, (turn, following) in enumerate(pairwise(turns)):
        if turn.speaker in _HUMAN and following.speaker in _ASSISTANT:
            return i
    return None


def _role(speaker: str) -> str:
    if speaker in _HUMAN:
        return "user"
    return "assistant" if speaker in _ASSISTANT else speaker


class _Custom(msgspec.Struct):
    prompt: str
    output_tokens: int | None = None


def vllm_custom(value: Any) -> Sample | Dropped:
    """The record's `prompt`; `output_tokens` is the answer's length where it is given."""
    record = msgspec.convert(value, _Custom)
    if not record.prompt.strip():
        return EMPTY
    tokens = record.output_tokens
    if tokens is not None and tokens < 1:
        return Dropped("output_tokens below 1")
    return Sample(messages=(Message("user", record.prompt),), answer_tokens=tokens)


class _ChatMessage(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Chat(msgspec.Struct):
    messages: list[_ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def openai(value: Any) -> Sample | Dropped:
    """The messages up to the last that is not the assistant's; what follows is the answer.

    Lines of a batch file (`body`) are unwrapped. Without an answer, `max_completion_tokens` or
    `max_tokens` stands for its length. Tool messages and parts that are not text are dropped.
    """
    if isinstance(value, dict) and "body" in value and "messages" not in value:
        value = value["body"]
    record = msgspec.convert(value, _Chat)
    messages = []
    for message in record.messages:
        text = _plain(message.content)
        if text is None or message.role in ("tool", "function"):
            return NOT_TEXT
        messages.append(Message(message.role, text))
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    prompt, rest = tuple(messages[:end]), tuple(messages[end:])
    if not any(message.content.strip() for message in prompt if message.role == "user"):
        return EMPTY
    limit = record.max_completion_tokens or record.max_tokens
    return Sample(
        messages=prompt,
        answer=rest[0].content if rest else None,
        answer_tokens=limit if not rest and limit is not None and limit > 0 else None,
        turns=rest,
    )


def _plain(content: str | list[dict[str, Any]] | None) -> str | None:
    """The text of a message's content, or None where a part of it is something else."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if part.get("type") in ("text", "input_text")]
    if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        return None
    return "".join(str(text) for text in texts)


class _Alpaca(msgspec.Struct):
    instruction: str
    input: str | None = None
    output: str | None = None
    system: str | None = None
    history: list[tuple[str, str]] | None = None


def alpaca(value: Any) -> Sample | Dropped:
    """The instruction, with the input on the next line where there is one."""
    record = msgspec.convert(value, _Alpaca)
    prompt = f"{record.instruction}\n{record.input}" if record.input else record.instruction
    if not prompt.strip():
        return EMPTY
    lead = [Message("system", record.system)] if record.system else []
    for question, answer in record.history or ():
        lead += [Message("user", question), Message("assistant", answer)]
    return Sample(messages=(*lead, Message("user", prompt)), answer=record.output)


class _MtBench(msgspec.Struct):
    turns: list[str]
    reference: list[str] | None = None


def mt_bench(value: Any) -> Sample | Dropped:
    """The first turn; later turns are kept, and a reference answer is used where there is one."""
    record = msgspec.convert(value, _MtBench)
    if not record.turns or not record.turns[0].strip():
        return EMPTY
    return Sample(
        messages=(Message("user", record.turns[0]),),
        answer=record.reference[0] if record.reference else None,
        turns=tuple(Message("user", turn) for turn in record.turns[1:]),
    )


def plain(line: str) -> Sample | Dropped:
    """The line as it stands, as the prompt."""
    return Sample(messages=(Message("user", line),)) if line.strip() else EMPTY

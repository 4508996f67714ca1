"""What a data set amounts to: prompts with their answers, and how many were left out and why."""

from __future__ import annotations

import msgspec

from servecap.record import Message


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a session; its messages begin with those of the turn before."""

    messages: tuple[Message, ...]
    prompt_tokens: int
    answer_tokens: int | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of a data set, with the answer that the data has for it.

    `turns` is the rest of the conversation after the prompt, as the data has it (only the users'
    turns where the data has no answers); the answer itself is its first message if there is one.
    """

    messages: tuple[Message, ...]
    answer: str | None = None
    answer_tokens: int | None = None  # stated by the data, or counted from `answer`
    prompt_tokens: int | None = None  # counted; None until a counter has seen it
    prefix_key: str | None = None  # samples with the same key start with the same document
    prefix_chars: int | None = None  # length of that document, at the start of the first message
    prefix_tokens: int | None = None  # the same in tokens, where another sample shares it
    turns: tuple[Message, ...] = ()
    record: int | None = None  # which of the data set's records it is from, from 0
    session: tuple[Turn, ...] = ()  # the turns that are sent, where sessions are asked for

    @property
    def text(self) -> str:
        """The prompt's messages joined, as they are counted."""
        return "\n".join(message.content for message in self.messages)


class Dropped(msgspec.Struct, frozen=True):
    """A well-formed record that cannot be used, and why."""

    reason: str


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """A data set as read: `records` = samples + what was dropped, by reason."""

    format: str
    records: int
    samples: tuple[Sample, ...]
    dropped: dict[str, int]


def tally(format: str, outcomes: list[Sample | Dropped]) -> Parsed:
    """The samples and the counts of the rest by reason; together they are all of *outcomes*."""
    dropped: dict[str, int] = {}
    for outcome in outcomes:
        if isinstance(outcome, Dropped):
            dropped[outcome.reason] = dropped.get(outcome.reason, 0) + 1
    samples = tuple(outcome for outcome in outcomes if isinstance(outcome, Sample))
    return Parsed(format=format, records=len(outcomes), samples=samples, dropped=dropped)


def dropped_text(dropped: dict[str, int]) -> str:
    """The counts in words, most frequent first; "none" when nothing was dropped.

    >>> dropped_text({"empty prompt": 2, "no answer": 5})
    '5 no answer, 2 empty prompt'
    """
    ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered) or "none"

"""Conversations of several turns: each request carries the history of its session.

The history holds the answers that the *data* has and not those of the server under test, so that
every run sends the same prompts, whatever the server answers. Where the data has no answers
(MT-bench), random words of the length that is asked for stand in for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from servecap import rand
from servecap.errors import UsageError
from servecap.record import Message, Request
from servecap.workload.fixed import MAX_TOKENS, Fixed
from servecap.workload.sample import Parsed, Sample, Turn
from servecap.workload.tokens import Counter
from servecap.workload.words import WORDS, Draws

PREFIX = "sessions:"
TOKENS_MAX = 4096  # a session ends before the turn that would need a longer context
STAND_IN_TOKENS = 200  # of an answer that neither the data nor the user tells the length of
_SPEC = re.compile(r"sessions:([0-9]{1,4})x([0-9]{1,8})/([0-9]{1,8})")
_UNIQUE_PIECES = 3


def with_sessions(parsed: Parsed, counter: Counter, stand_in_tokens: int | None) -> Parsed:
    """The same samples, each with the turns of its conversation; those without any are dropped.

    Raises:
        UsageError: none has a turn.
    """
    samples = [
        msgspec.structs.replace(sample, session=turns(sample, counter, stand_in_tokens))
        for sample in parsed.samples
    ]
    kept = tuple(sample for sample in samples if sample.session)
    if not kept:
        raise UsageError("no conversation has a turn with an answer: give --output N")
    lost = len(samples) - len(kept)
    dropped = parsed.dropped | ({"no turn with an answer": lost} if lost else {})
    return msgspec.structs.replace(parsed, samples=kept, dropped=dropped)


def note(parsed: Parsed) -> str:
    """What the sessions amount to, to follow what is said of the prompts."""
    mean = sum(len(sample.session) for sample in parsed.samples) / len(parsed.samples)
    return (
        f"; {len(parsed.samples)} sessions of {mean:.1f} turns on average, of at most"
        f" {TOKENS_MAX} tokens each, the history with the data's answers"
    )


def turns(sample: Sample, counter: Counter, stand_in_tokens: int | None) -> tuple[Turn, ...]:
    """The turns of a sample's conversation that have an answer and fit into `TOKENS_MAX`.

    Args:
        stand_in_tokens: length of answers that the data lacks; None: the conversation ends there.
    """
    history, found = list(sample.messages), list[Turn]()
    prompt_tokens = sum(counter.count(message.content) for message in history)
    rest = _joined(sample.turns) if _has_answers(sample) else list(sample.turns)
    if sample.answer and not _has_answers(sample):
        rest.insert(0, Message("assistant", sample.answer))
    while True:
        answered = bool(rest) and rest[0].role == "assistant"
        if not answered and stand_in_tokens is None:
            return tuple(found)
        answer = rest.pop(0) if answered else _stand_in(stand_in_tokens or 1, len(found))
        answer_tokens = counter.count(answer.content) if answer.content.strip() else 0
        if found and prompt_tokens + answer_tokens > TOKENS_MAX:
            return tuple(found)
        turn = Turn(
            messages=tuple(history),
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens or None,
        )
        found.append(turn)
        if not rest or not answer_tokens or rest[0].role != "user":
            return tuple(found)
        question = rest.pop(0)
        history += [answer, question]
        prompt_tokens += answer_tokens + counter.count(question.content)


def _has_answers(sample: Sample) -> bool:
    return any(turn.role == "assistant" for turn in sample.turns)


def _joined(messages: tuple[Message, ...]) -> list[Message]:
    """The messages with neighbours of one speaker put together: many templates refuse them."""
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role and message.role == "user":
            joined[-1] = Message("user", f"{joined[-1].content}\n{message.content}")
        else:
            joined.append(message)
    return joined


def _stand_in(tokens: int, number: int) -> Message:
    words = rand.stream(0, "session", "answer", number).choices(WORDS, k=tokens)
    return Message("assistant", " ".join(words))


class Synthetic(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions of random words: each turn adds `words.in_tokens`, each answer has `out_tokens`."""

    turns: int
    words: Fixed

    def requests(self, seed: int, first_id: int = 0) -> Iterator[Request]:
        """Endless sessions, the turns of each one after another."""
        starts = Draws(self.words.pieces, _UNIQUE_PIECES, seed, "session", "start")
        request_id, session = first_id, 0
        while True:
            rng = rand.stream(seed, "session", session)
            history: tuple[Message, ...] = ()
            for turn in range(self.turns):
                start = starts[session][: self.words.in_tokens] if turn == 0 else []
                history = (*history, Message("user", self.words.text(rng, start)))
                before = turn * (self.words.in_tokens + self.words.out_tokens)
                yield Request(
                    request_id=request_id,
                    messages=history,
                    prompt_tokens=before + self.words.in_tokens,
                    max_output_tokens=self.words.out_tokens,
                    exact_output=True,
                    session=session,
                    turn=turn,
                    turns_left=self.turns - 1 - turn,
                    prefix_tokens=before - self.words.out_tokens if turn else None,
                )
                request_id += 1
                answer = msgspec.structs.replace(self.words, in_tokens=self.words.out_tokens)
                history = (*history, Message("assistant", answer.text(rng, [])))
            session += 1


def parse(source: str) -> tuple[int, int, int]:
    """Turns, input tokens added by each, and output tokens of each, in `sessions:TURNSxIN/OUT`.

    Raises:
        UsageError: it is not written so, or a number is below 1.
    """
    match = _SPEC.fullmatch(source)
    numbers = tuple(int(group) for group in match.groups()) if match else (0, 0, 0)
    if min(numbers) < 1 or max(numbers) > MAX_TOKENS:
        raise UsageError(
            f"workload {source!r} cannot be read: write sessions:TURNSxIN/OUT, tokens added by each"
            " turn and tokens of each answer, such as sessions:5x100/200"
        )
    return numbers[0], numbers[1], numbers[2]

"""`fixed:IN/OUT`: prompts of IN tokens, all different, each asking for exactly OUT."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import msgspec

from servecap import rand
from servecap.errors import UsageError
from servecap.record import Message, Request, TokenSource
from servecap.workload.tokens import Counter, TokenizerFile
from servecap.workload.words import WORDS, Draws

PREFIX = "fixed:"
MAX_TOKENS = 10_000_000
_SPEC = re.compile(r"fixed:([0-9]{1,9})/([0-9]{1,9})")
_VOCABULARY_WORD = re.compile("[Ġ▁ ]([a-z]{2,8})")
_LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
_POOL_MAX = 512
_POOL_MIN = 16
_UNIQUE_PIECES = 3  # pieces at the start that no other prompt of the run has in that order
_ROUNDS = 200


class Fixed(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths in tokens, and the pieces that prompts are made of.

    Every piece is one token, at the start (without its blank) and after another. With a
    tokenizer file each prompt is counted again after it was made; without one the pieces are
    words that practically every vocabulary holds whole, and only the server's usage can confirm
    the length.
    """

    in_tokens: int
    out_tokens: int
    pieces: tuple[str, ...]
    counter: Counter

    def requests(self, seed: int, first_id: int = 0) -> Iterator[Request]:
        """Endless requests, the same for the same seed.

        Prompts differ while there are combinations: with IN = 1 only as many as `pieces`.

        Raises:
            UsageError: the tokenizer gives no text of exactly that many tokens.
        """
        positions = min(_UNIQUE_PIECES, self.in_tokens)
        starts = Draws(self.pieces, positions, seed, "fixed", "start")
        request_id = first_id
        while True:
            rng = rand.stream(seed, "fixed", request_id)
            text = self.text(rng, starts[request_id])
            yield Request(
                request_id=request_id,
                messages=(Message("user", text),),
                prompt_tokens=self.in_tokens,
                max_output_tokens=self.out_tokens,
                exact_output=True,
            )
            request_id += 1

    def text(self, rng: random.Random, start: list[str]) -> str:
        """A text of exactly `in_tokens` tokens that begins with the pieces of *start*.

        Raises:
            UsageError: the tokenizer gives none.
        """
        pieces = start + rng.choices(self.pieces, k=self.in_tokens - len(start))
        if self.counter.source is TokenSource.ESTIMATE:
            return _join(pieces)
        keep = min(len(start), self.in_tokens - 1)
        for _ in range(_ROUNDS):
            text = _join(pieces)
            missing = self.in_tokens - self.counter.count(text)
            if missing == 0:
                return text
            # Pieces that join at a seam, or at the start: grow, shrink, or try another ending.
            if missing > 0:
                pieces += rng.choices(self.pieces, k=missing)
            else:
                del pieces[max(keep, len(pieces) + missing) :]
                pieces[-1:] = rng.choices(self.pieces, k=1)
        raise UsageError(
            f"workload fixed:{self.in_tokens}/{self.out_tokens}: found no text that this tokenizer"
            f" cuts into exactly {self.in_tokens} tokens; ask for more, or leave --tokenizer away"
        )


def _join(pieces: list[str]) -> str:
    return "".join(pieces).lstrip(" ")


def parse(source: str, counter: Counter) -> Fixed:
    """The lengths in `fixed:IN/OUT`, and the pieces to make such prompts of.

    Raises:
        UsageError: it is not written so, a length is below 1, or no pieces can be had.
    """
    match = _SPEC.fullmatch(source)
    if match is None:
        raise UsageError(
            f"workload {source!r} cannot be read: write fixed:IN/OUT, both in tokens, such as"
            " fixed:42/285"
        )
    in_tokens, out_tokens = int(match[1]), int(match[2])
    for name, value in (("IN", in_tokens), ("OUT", out_tokens)):
        if not 1 <= value <= MAX_TOKENS:
            raise UsageError(
                f"workload {source!r}: {name} is {value}, but must lie within 1 and {MAX_TOKENS}"
            )
    return Fixed(
        in_tokens=in_tokens,
        out_tokens=out_tokens,
        pieces=pieces_for(source, counter),
        counter=counter,
    )


def pieces_for(source: str, counter: Counter) -> tuple[str, ...]:
    """Pieces of one token each, by that counter, to make the prompts of *source* of.

    Raises:
        UsageError: this tokenizer has none.
    """
    common = tuple(f" {word}" for word in WORDS)
    if not isinstance(counter, TokenizerFile):
        return common
    known = [m[1] for m in map(_VOCABULARY_WORD.fullmatch, counter.vocabulary()) if m]
    random.Random(0).shuffle(known)
    for candidates in (tuple(f" {word}" for word in known), common, _LETTERS):
        pieces = _of_one_token(counter, candidates)
        if len(pieces) >= _POOL_MIN:
            return pieces
    raise UsageError(
        f"workload {source!r}: this tokenizer has no words or letters of one token each;"
        " leave --tokenizer away"
    )


def _of_one_token(counter: Counter, candidates: tuple[str, ...]) -> tuple[str, ...]:
    """Those (at most 512) that count as one token at the start and after themselves."""
    pieces: list[str] = []
    for piece in candidates:
        start = piece.lstrip(" ")
        if counter.count(start) == 1 and counter.count(f"{start}{piece}{piece}") == 3:
            pieces.append(piece)
            if len(pieces) == _POOL_MAX:
                break
    return tuple(pieces)

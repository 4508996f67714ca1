"""What the emulated model reads and says: token counts, answer lengths and the words themselves."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable

from servecap import rand
from servecap.engine.kv import BLOCK_TOKENS

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]{{1,8}}|[^\w\s]|_")

# Each is one token, and needs no escaping in JSON.
_COMMON = (
    "a all and are as at be but by can do each for from had has have how if in is it its like "
    "made make many may more most no not now of on one only or other our out over said see "
    "she some so than that the their them then there these they this time to two up use was "
    "way we were what when which who will with word would you your"
)
WORDS = tuple(f" {word}" for word in _COMMON.split())


def count_tokens(text: str) -> int:
    """Tokens of *text* as the emulator counts them, at least 1.

    A word is one token for every eight letters or part of eight, a CJK character and a
    punctuation mark are one each, white space is none. Nothing is added for a chat template.

    >>> count_tokens("Name three rivers."), count_tokens("\u4f60\u597d, internationally")
    (4, 5)
    """
    return max(1, len(_TOKEN.findall(text)))


def block_keys(texts: Iterable[str]) -> tuple[int, ...]:
    """A key for each full block of the prompt's tokens: of its content and all before it.

    >>> a, b = block_keys(["one two " * 20]), block_keys(["one two " * 12 + "three " * 16])
    >>> len(a), len(b), a[0] == b[0], a[1] == b[1]
    (2, 2, True, False)
    """
    found = [token for text in texts for token in _TOKEN.findall(text)]
    keys, key = [], b""
    for at in range(0, len(found) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        words = "\0".join(found[at : at + BLOCK_TOKENS]).encode("utf-8", "replace")
        key = hashlib.blake2b(key + words, digest_size=7).digest()  # it is no negative number
        keys.append(int.from_bytes(key, "big"))
    return tuple(keys)


class AnswerLengths:
    """Lengths of answers that the model ends by itself: lognormal, from a seed.

    Source: the spread (sigma) is that of a lognormal with the mean (721 tokens) and the median
    (549) of the model answers to Arena-Hard's questions; the mean is the user's.
    """

    _SIGMA = 0.74

    def __init__(self, *, mean_tokens: float, seed: int) -> None:
        self._random = rand.stream(seed, "emulator", "answers")
        self._mu = math.log(mean_tokens) - self._SIGMA**2 / 2

    def natural(self) -> int:
        """The next answer's length in tokens, at least 1."""
        return max(1, round(self._random.lognormvariate(self._mu, self._SIGMA)))

    def length(self, *, at_most: int, at_least: int, ignore_eos: bool) -> tuple[int, str]:
        """Length and finish reason ("stop" or "length") of the next answer.

        Args:
            at_most: the limit that the client set (or the context leaves), in tokens.
            at_least: the client's `min_tokens`; not above *at_most*.
            ignore_eos: the model may not end by itself.
        """
        if ignore_eos:
            return at_most, "length"
        natural = max(self.natural(), at_least)
        return (natural, "stop") if natural < at_most else (at_most, "length")


def word(request_id: int, index: int) -> str:
    """The *index*-th word of the answer to that request."""
    return WORDS[(request_id * 31 + index * 7) % len(WORDS)]


def text(request_id: int, tokens: int) -> str:
    """A whole answer of so many tokens."""
    return "".join([word(request_id, index) for index in range(tokens)])

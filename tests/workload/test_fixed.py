"""fixed:IN/OUT: exact lengths where they can be counted, different prompts, clear errors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trained import byte_pairs, sentence_pieces, single_bytes

from servecap.errors import UsageError
from servecap.workload import fixed, tokens
from servecap.workload.words import WORDS, Draws


@pytest.mark.parametrize("tokenizer", [byte_pairs, sentence_pieces, single_bytes])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 42, 700])
def test_prompts_have_exactly_that_many_tokens(tokenizer: Callable[[], str], length: int) -> None:
    counter = tokens.counter(tokenizer())
    plan = fixed.parse(f"fixed:{length}/9", counter)
    for made in islice(plan.requests(seed=3), 12):
        assert counter.count(made.messages[0].content) == length
        assert (made.prompt_tokens, made.max_output_tokens, made.exact_output) == (length, 9, True)


def test_without_a_tokenizer_every_token_is_a_common_word() -> None:
    plan = fixed.parse("fixed:42/285", tokens.counter(None))
    texts = [made.messages[0].content for made in islice(plan.requests(seed=0), 300)]
    assert len(set(texts)) == 300
    for text in texts:
        words = text.split(" ")
        assert len(words) == 42
        assert set(words) <= set(WORDS)


def test_even_prompts_of_one_token_differ_until_the_words_are_used_up() -> None:
    plan = fixed.parse("fixed:1/1", tokens.counter(None))
    texts = [made.messages[0].content for made in islice(plan.requests(seed=1), len(WORDS))]
    assert sorted(texts) == sorted(WORDS)


def test_the_numbering_decides_the_prompt_not_the_position() -> None:
    plan = fixed.parse("fixed:8/1", tokens.counter(None))
    late = list(islice(plan.requests(seed=1, first_id=5), 3))
    assert late == list(islice(plan.requests(seed=1), 8))[5:]
    assert late != list(islice(plan.requests(seed=2, first_id=5), 3))


@pytest.mark.parametrize(
    "text",
    [
        "fixed:42",
        "fixed:a/b",
        "fixed:0/5",
        "fixed:5/0",
        "fixed:-1/5",
        "fixed:/",
        "fixed:1/2/3",
        "fixed:1.5/2",
        "fixed:99999999/1",
        "fixed:",
        "fixed:٣/٤",
    ],
)
def test_a_bad_length_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="fixed:") as caught:
        fixed.parse(text, tokens.counter(None))
    assert "\n" not in str(caught.value)


@given(
    st.integers(0, 2**64),
    st.sets(st.integers(0, 10**6), min_size=2, max_size=50),
    st.integers(2, 4),
)
def test_draws_never_repeat(seed: int, indices: set[int], positions: int) -> None:
    draws = Draws(WORDS, 3, seed, "test") if positions == 3 else Draws(WORDS[:7], positions, seed)
    space = len(draws.words) ** draws.positions
    indices = {index % space for index in indices}
    assert len({tuple(draws[index]) for index in indices}) == len(indices)


def test_words_differ_and_stay_short() -> None:
    assert len(set(WORDS)) == len(WORDS) > 500
    assert all(word.isascii() and word.islower() and len(word) <= 10 for word in WORDS)

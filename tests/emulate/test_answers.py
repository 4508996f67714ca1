from __future__ import annotations

import pytest

from servecap.emulate.answers import WORDS, AnswerLengths, count_tokens, text


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ("", 1),
        (" \n\t", 1),
        ("Name three rivers.", 4),
        ("the cat and the dog " * 8, 40),
        ("internationalisation", 3),
        ("你好，世界", 5),
        ("abc中文def", 4),
        ("x_1 = f(a, b)", 10),
        ("Привет мир", 2),
    ],
)
def test_tokens_are_counted_by_the_stated_rule(said: str, tokens: int) -> None:
    assert count_tokens(said) == tokens


def test_every_word_the_emulator_says_is_one_token() -> None:
    assert all(count_tokens(word) == 1 for word in WORDS)
    assert len(set(WORDS)) == len(WORDS)
    assert count_tokens(text(3, 500)) == 500


def test_natural_lengths_have_the_mean_asked_for_and_depend_on_the_seed_only() -> None:
    lengths = AnswerLengths(mean_tokens=200, seed=1)
    drawn = [lengths.natural() for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(200, rel=0.03)
    again = AnswerLengths(mean_tokens=200, seed=1)
    assert [again.natural() for _ in range(100)] == drawn[:100]
    other = AnswerLengths(mean_tokens=200, seed=2)
    assert [other.natural() for _ in range(100)] != drawn[:100]


def test_limits_cut_and_lengthen() -> None:
    lengths = AnswerLengths(mean_tokens=200, seed=1)
    for _ in range(200):
        tokens, reason = lengths.length(at_most=150, at_least=100, ignore_eos=False)
        assert 100 <= tokens <= 150
        assert reason == ("length" if tokens == 150 else "stop")
    assert lengths.length(at_most=7, at_least=0, ignore_eos=True) == (7, "length")

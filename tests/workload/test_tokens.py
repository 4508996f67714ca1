"""Token counts: the tokenizer's own, and an estimate close to it on real texts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trained import byte_pairs

from servecap.errors import UsageError
from servecap.record import TokenSource
from servecap.workload import builtin, tokens


def test_a_tokenizer_file_counts_as_it_does_itself() -> None:
    counter = tokens.counter(byte_pairs())
    assert counter.source is TokenSource.TOKENIZER
    assert counter.count("") == 0
    assert counter.count("xyzzy") >= counter.count("the") >= 1
    folder = str(Path(byte_pairs()).parent)
    assert tokens.counter(folder).count("the house") == counter.count("the house")


def test_no_tokenizer_is_an_estimate_and_says_so() -> None:
    assert tokens.counter(None).source is TokenSource.ESTIMATE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("the", 1),
        (" word", 1),
        ("one two three four", 4),
        ("camelCaseName", 3),
        ("2024", 2),
        ("a\n\n\nb", 3),
        ("你好世界，今天天气很好", 7),
        ("😀", 2),
    ],
)
def test_the_estimate_follows_its_rule(text: str, expected: int) -> None:
    assert tokens.Estimate().count(text) == expected


@given(st.text(max_size=200))
def test_an_estimate_is_positive_and_grows_with_the_text(text: str) -> None:
    count = tokens.Estimate().count
    assert (count(text) > 0) == (text != "")
    assert count(f"{text}\nmore words") >= count(text)


def test_the_estimate_is_near_a_vocabulary_trained_on_other_texts() -> None:
    # The trained vocabulary is small (4000 pieces), so it needs more tokens than a real one.
    exact, estimate = tokens.counter(byte_pairs()), tokens.Estimate()
    texts = [sample.text for sample in builtin.load("chat-en").samples[::2]]
    ratio = sum(map(estimate.count, texts)) / sum(map(exact.count, texts))
    assert 0.6 < ratio < 1.0


def test_bad_tokenizers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"does not exist; name a tokenizer\.json"):
        tokens.counter(str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match=r"tokenizer\.json does not exist"):
        tokens.counter(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(UsageError, match=r"is no tokenizer\.json"):
        tokens.counter(str(tmp_path / "tokenizer.json"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'servecap\[tokenizer\]'"):
        tokens.counter(str(tmp_path / "tokenizer.json"))

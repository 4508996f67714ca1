"""Small tokenizers, trained on the spot on built-in texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servecap.workload import builtin


def _train(path: Path, tokenizer: Any, trainer: Any) -> str:
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.save(str(path))
    return str(path)


def _texts() -> Iterator[str]:
    for sample in builtin.load("chat-en").samples[1::2]:
        yield sample.text
        yield sample.answer or ""


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level BPE of 4000 pieces, cut at blanks as GPT's and Llama 3's are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, show_progress=False, initial_alphabet=alphabet)
    return _train(tmp_path_factory.mktemp("bpe") / "tokenizer.json", tokenizer, trainer)


@pytest.fixture(scope="session")
def sentence_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A unigram vocabulary with a mark at each word's start, as Llama 2's have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=2000, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]
    )
    return _train(tmp_path_factory.mktemp("unigram") / "tokenizer.json", tokenizer, trainer)


@pytest.fixture(scope="session")
def bytes_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One token per byte: no word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)

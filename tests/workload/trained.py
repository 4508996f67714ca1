"""Paths of small tokenizers, trained on the spot on built-in texts and removed at exit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from servecap.workload import builtin

_FOLDER = tempfile.TemporaryDirectory(prefix="servecap-tokenizers-")


def _texts() -> Iterator[str]:
    for sample in builtin.load("chat-en").samples[1::2]:
        yield sample.text
        yield sample.answer or ""


def _save(tokenizer: Tokenizer, name: str) -> str:
    path = Path(_FOLDER.name) / name / "tokenizer.json"
    path.parent.mkdir()
    tokenizer.save(str(path))
    return str(path)


@cache
def byte_pairs() -> str:
    """A byte-level BPE of 4000 pieces, cut at blanks as GPT's and Llama 3's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_texts(), trainer)
    return _save(tokenizer, "byte-pairs")


@cache
def sentence_pieces() -> str:
    """A unigram vocabulary with a mark at each word's start, as Llama 2's have."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=2000, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return _save(tokenizer, "sentence-pieces")


@cache
def single_bytes() -> str:
    """One token per byte: no word is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _save(tokenizer, "single-bytes")

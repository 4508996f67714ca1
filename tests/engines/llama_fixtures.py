"""Real llama.cpp servers for the tests of this folder; each runs once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llama import build_model, running_llama


def _need_llama() -> None:
    for module in ("xllamacpp", "gguf"):
        pytest.importorskip(
            module,
            reason=f"{module} is not installed: pip install 'servecap[dev]' to run llama.cpp",
        )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of about 2 MB, half a millisecond per token."""
    _need_llama()
    return build_model(tmp_path_factory.mktemp("llama") / "tiny.gguf", "tiny")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of about 70 MB, some 6 ms per token: one that a few users can saturate."""
    _need_llama()
    return build_model(tmp_path_factory.mktemp("llama") / "slow.gguf", "slow")


@pytest.fixture(scope="session")
def llama_url(tiny_model: Path) -> Iterator[str]:
    """The tiny model with 8 slots."""
    with running_llama(tiny_model, 8) as url:
        yield url


@pytest.fixture(scope="session")
def slow_llama_url(slow_model: Path) -> Iterator[str]:
    """The slow model with 4 slots."""
    with running_llama(slow_model, 4) as url:
        yield url

"""Real vLLM servers for the tests of this folder; each runs once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_server import PYTHON, Vllm, build_model, running_vllm

QUEUED_MOST = 4
TOKENS_PER_CHUNK = 4


@pytest.fixture(scope="session")
def vllm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not os.environ.get(PYTHON):
        pytest.skip(f"{PYTHON} names no Python with vLLM: `make test-vllm` sets one up")
    return build_model(tmp_path_factory.mktemp("vllm") / "model")


@pytest.fixture(scope="session")
def vllm(vllm_model: Path) -> Iterator[Vllm]:
    """16 requests are batched, the others queue."""
    with running_vllm(vllm_model, vllm_model.parent / "vllm.log") as server:
        yield server


@pytest.fixture(scope="module")
def strict_vllm(vllm_model: Path) -> Iterator[Vllm]:
    """It lets few requests wait, and sends several tokens in each chunk."""
    options = (f"--max-num-queued-reqs={QUEUED_MOST}", f"--stream-interval={TOKENS_PER_CHUNK}")
    with running_vllm(vllm_model, vllm_model.parent / "strict.log", *options) as server:
        yield server

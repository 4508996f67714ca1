"""A server that keeps what prompts begin with: it is faster, it says so, and the audit sees it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_http import SMALL, Json, post

from servecap.emulate.answers import block_keys, count_tokens
from servecap.emulate.launch import running
from servecap.probe import TargetSpec, open_bench
from servecap.scenario import ClosedLoop, Scenario, StopRule, WorkloadSpec
from servecap.summarize import summarize

CACHING = msgspec.structs.replace(SMALL, prefix_cache=True)
CHAT = "/v1/chat/completions"


def chat(prompt: str, *, stream: bool) -> Json:
    return {
        "messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "ignore_eos": True,
        "stream": stream, "stream_options": {"include_usage": True},
    }  # fmt: skip


def usage(url: str, prompt: str, *, stream: bool) -> Json:
    reply = post(url, CHAT, chat(prompt, stream=stream))
    if stream:
        found: Json = json.loads(reply.chunks[-2].removeprefix(b"data: "))["usage"]
        return found
    body: Json = json.loads(reply.body)["usage"]
    return body


def cached(url: str, prompt: str, *, stream: bool = True) -> int | None:
    details = usage(url, prompt, stream=stream).get("prompt_tokens_details")
    return None if details is None else int(details["cached_tokens"])


def test_hits_are_whole_blocks_and_never_the_last_token() -> None:
    with running(CACHING) as url:
        long = "word " * 40
        assert cached(url, long) is None
        assert cached(url, long) == 32
        assert cached(url, long, stream=False) == 32
        assert cached(url, "word " * 32) == 16  # of two blocks, the second has the last token
        assert cached(url, "word " * 16 + "other " * 30) == 16
        assert cached(url, "other " * 16 + "word " * 30) is None


def test_without_the_option_nothing_is_kept() -> None:
    with running(SMALL) as url:
        assert [cached(url, "word " * 40) for _ in range(2)] == [None, None]


def test_the_same_run_again_is_invalid_since_the_server_knows_its_prompts(tmp_path: Path) -> None:
    scenario = Scenario(
        load=ClosedLoop(users=8, think_s=(0.05, 0.1)),
        workload=WorkloadSpec(source="chat-en", output="8"),
        stop=StopRule(requests=60, max_duration_s=20.0),
    )
    with running(msgspec.structs.replace(CACHING, speed=20.0)) as url:
        bench = open_bench(TargetSpec(url=url), scenario.workload, scenario.timeouts)
        first, again = (summarize(bench.run(scenario, tmp_path / n)) for n in ("a", "b"))
    assert not [r for r in first.invalid_reasons if "prefix cache" in r]
    (reason,) = [r for r in again.invalid_reasons if "prefix cache" in r]
    assert "restart it, switch its cache off" in reason


texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=80), max_size=6)


@given(texts, texts, texts)
def test_keys_are_equal_as_far_as_the_tokens_are(
    same: list[str], one: list[str], other: list[str]
) -> None:
    a, b = block_keys([*same, *one]), block_keys([*same, *other])
    tokens = sum(count_tokens(text) for text in same if text.strip())
    assert a == block_keys([*same, *one])
    whole = len(block_keys(same))
    assert whole <= tokens // 16 + 1
    assert a[:whole] == b[:whole] == block_keys(same)


@pytest.mark.parametrize("change", ["first", "last"])
def test_a_block_that_differs_changes_its_key_and_all_after_it(change: str) -> None:
    words = [f"w{n}" for n in range(64)]
    before = block_keys([" ".join(words)])
    words[0 if change == "first" else -1] = "x"
    after = block_keys([" ".join(words)])
    equal = [a == b for a, b in zip(before, after, strict=True)]
    assert equal == ([False] * 4 if change == "first" else [True] * 3 + [False])

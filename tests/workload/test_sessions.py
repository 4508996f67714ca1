"""Sessions with growing history, and mixes of workloads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice, pairwise
from pathlib import Path

import pytest

from servecap.errors import UsageError
from servecap.record import Request
from servecap.scenario import WorkloadSpec
from servecap.workload import source
from servecap.workload.sessions import TOKENS_MAX


def sharegpt(path: Path, conversations: list[list[tuple[str, str]]]) -> str:
    file = path / "chats.json"
    turns = [[{"from": who, "value": what} for who, what in chat] for chat in conversations]
    file.write_text(json.dumps([{"conversations": chat} for chat in turns]))
    return str(file)


def sessions_of(requests: Iterator[Request], number: int) -> list[list[Request]]:
    """The first *number* requests by session, checked to grow turn by turn."""
    found = [list(group) for _, group in groupby(islice(requests, number), lambda r: r.session)]
    for session in found[:-1]:
        assert [r.turn for r in session] == list(range(len(session)))
        assert [r.turns_left for r in session] == list(range(len(session)))[::-1]
        for before, after in pairwise(session):
            assert after.messages[: len(before.messages)] == before.messages
            assert [m.role for m in after.messages[-2:]] == ["assistant", "user"]
            assert (after.prompt_tokens or 0) > (before.prompt_tokens or 0)
            assert after.prefix_tokens == before.prompt_tokens
    return found


CHAT = [
    ("human", "What is the capital of France?"),
    ("gpt", "Paris is the capital of France."),
    ("human", "And of Spain?"),
    ("gpt", "Madrid is the capital of Spain."),
    ("human", "Thank you"),
    ("human", "very much!"),
    ("gpt", "You are welcome, any time at all."),
    ("human", "One more thing"),
]


def test_all_answered_turns_of_a_conversation_are_sent(tmp_path: Path) -> None:
    spec = WorkloadSpec(source=sharegpt(tmp_path, [CHAT]), sessions=True)
    workload = source.load(spec)
    first, second = sessions_of(workload.requests(0), 6)
    assert [r.messages[-1].content for r in first[1:]] == ["And of Spain?", "Thank you\nvery much!"]
    assert first[0].messages[0].content.endswith("What is the capital of France?")
    assert [m.content for m in first[2].messages[1::2]] == [CHAT[1][1], CHAT[3][1]]
    assert all(r.exact_output and r.max_output_tokens for r in first)
    assert first[0].messages[0] != second[0].messages[0], "sessions are marked to differ"
    assert "1 sessions of 3.0 turns" in workload.note
    assert [r.request_id for r in (*first, *second)] == list(range(6))


def test_history_is_cut_off_before_it_outgrows_the_context(tmp_path: Path) -> None:
    long = " ".join(["river"] * 900)
    chat = [("human", "Tell me of rivers"), ("gpt", long)] * 9
    spec = WorkloadSpec(source=sharegpt(tmp_path, [chat]), sessions=True)
    first, _ = sessions_of(source.load(spec).requests(0), 8)[:2]
    assert 2 <= len(first) < 9
    assert (first[-1].prompt_tokens or 0) + (first[-1].max_output_tokens or 0) <= TOKENS_MAX + 10


def test_questions_without_answers_get_stand_ins(tmp_path: Path) -> None:
    file = tmp_path / "mt.jsonl"
    file.write_text('{"turns": ["Name three rivers.", "And three lakes.", "And a sea."]}\n')
    spec = WorkloadSpec(source=str(file), sessions=True, output="40")
    first, _ = sessions_of(source.load(spec).requests(0), 6)
    assert len(first) == 3
    assert len(first[2].messages[1].content.split()) == 40
    assert first[2].messages[-1].content == "And a sea."


def test_synthetic_sessions_have_exact_lengths() -> None:
    workload = source.load(WorkloadSpec(source="sessions:3x20/30"))
    first, second, third = sessions_of(workload.requests(5), 9)
    assert [r.prompt_tokens for r in first] == [20, 70, 120]
    assert [sum(len(m.content.split()) for m in r.messages) for r in second] == [20, 70, 120]
    assert len({s[0].messages[0].content for s in (first, second, third)}) == 3
    again = sessions_of(workload.requests(5), 9)
    assert again[0] == first


@pytest.mark.parametrize("text", ["sessions:", "sessions:0x4/5", "sessions:3x4", "sessions:3x4/0"])
def test_sessions_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="write sessions:TURNSxIN/OUT"):
        source.load(WorkloadSpec(source=text))


def test_mix_draws_by_share_and_keeps_sessions_whole() -> None:
    spec = WorkloadSpec(source="mix:70%fixed:10/5,20%sessions:2x8/4,10%fixed:50/9")
    requests = list(islice(source.load(spec).requests(1), 4000))
    assert [r.request_id for r in requests] == list(range(4000))
    kinds = Counter(r.max_output_tokens for r in requests)
    started = kinds[5] + kinds[4] / 2 + kinds[9]
    assert kinds[5] / started == pytest.approx(0.7, abs=0.03)
    assert kinds[9] / started == pytest.approx(0.1, abs=0.03)
    assert {(r.part, r.max_output_tokens) for r in requests} == {(0, 5), (1, 4), (2, 9)}
    for one, two in pairwise(requests):
        if one.turns_left:
            assert (two.session, two.turn) == (one.session, 1)
    assert requests[:50] == list(islice(source.load(spec).requests(1), 50))
    assert requests[:50] != list(islice(source.load(spec).requests(2), 50))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mix:70%chat-en", "shares are 0.7 of 1"),
        ("mix:", "is no share"),
        ("mix:chat-en,docqa-en", "is no share"),
        ("mix:-5%chat-en,105%docqa-en", "is no share"),
        ("mix:50%chat-en,50%nonsense", "neither a file nor a built-in"),
    ],
)
def test_mixes_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        source.load(WorkloadSpec(source=text))

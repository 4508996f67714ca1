"""From a spec to requests: lengths, repeatability, marks, filters and what the user is told."""

from __future__ import annotations

import json
import re
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trained import byte_pairs

from servecap.errors import UsageError
from servecap.record import Request, TokenSource
from servecap.scenario import WorkloadSpec
from servecap.workload import builtin
from servecap.workload.describe import describe
from servecap.workload.source import NATURAL_CAP_TOKENS, Workload, load

DATA = Path(__file__).resolve().parents[2] / "../shared/data/datasets"
CHAT = load(WorkloadSpec(source="chat-en"))
PLAIN = load(WorkloadSpec(source="docqa-zh", unique=False))


def take(workload: Workload, n: int, *, seed: int = 0, first_id: int = 0) -> list[Request]:
    return list(islice(workload.requests(seed, first_id=first_id), n))


def write(folder: Path, *records: Any, name: str = "set.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return str(path)


def dialogue(prompt: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"conversations": turns}


@pytest.mark.parametrize("name", builtin.BUILTINS)
def test_built_in_sets_are_as_their_sources_say(name: str) -> None:
    workload = load(WorkloadSpec(source=name))
    known = describe(workload)
    assert known.prompt_tokens is not None
    assert known.answer_tokens is not None
    assert known.dropped == {}
    assert known.token_source is TokenSource.ESTIMATE
    assert "estimated" in known.note
    told = (resources.files("servecap.workload") / "data/SOURCES.md").read_text("utf-8")
    (heading,) = re.findall(rf"## {re.escape(builtin.BUILTINS[name].file)}: (.*)", told)
    figures = {int(figure) for figure in re.findall("[0-9]+", heading)}
    assert {known.n, round(known.prompt_tokens.mean), round(known.answer_tokens.mean)} <= figures


def test_the_data_s_answer_length_is_asked_for_exactly() -> None:
    lengths = {sample.text: sample.answer_tokens for sample in CHAT.samples}
    for made in take(CHAT, 250):
        text = made.messages[-1].content.split("] ", 1)[1]
        assert made.max_output_tokens == lengths[text]
        assert made.exact_output


def test_other_output_lengths() -> None:
    exact = take(load(WorkloadSpec(output="64")), 5)
    assert {(made.max_output_tokens, made.exact_output) for made in exact} == {(64, True)}
    natural = take(load(WorkloadSpec(output="natural")), 5)
    assert {(made.max_output_tokens, made.exact_output) for made in natural} == {
        (NATURAL_CAP_TOKENS, False)
    }


@settings(max_examples=20)
@given(seed=st.integers(0, 2**63), first_id=st.integers(0, 10**6))
def test_requests_are_the_same_for_the_same_seed(seed: int, first_id: int) -> None:
    made = take(PLAIN, 60, seed=seed, first_id=first_id)
    assert made == take(PLAIN, 60, seed=seed, first_id=first_id)
    assert [one.request_id for one in made] == list(range(first_id, first_id + 60))


def test_each_pass_holds_every_sample_once_in_a_new_order() -> None:
    n = len(PLAIN.samples)
    texts = [made.messages[0].content for made in take(PLAIN, 2 * n)]
    assert sorted(texts[:n]) == sorted(texts[n:]) == sorted(s.text for s in PLAIN.samples)
    assert texts[:n] != texts[n:]
    assert texts[:n] != [made.messages[0].content for made in take(PLAIN, n, seed=1)]


@settings(max_examples=10)
@given(seeds=st.sets(st.integers(0, 2**63), min_size=2, max_size=3))
def test_marked_prompts_share_no_beginning(seeds: set[int]) -> None:
    starts = [
        made.messages[0].content.split("]", 1)[0]
        for seed in seeds
        for made in take(CHAT, 300, seed=seed)
    ]
    assert all(re.fullmatch(r"\[[a-z]+( [a-z]+){3}", start) for start in starts)
    assert len(set(starts)) == len(starts)


def test_the_mark_is_counted_and_stands_before_a_system_message(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    record = {"messages": [system, {"role": "user", "content": "Why is the sky blue?"}]}
    workload = load(WorkloadSpec(source=write(tmp_path, record), output="5"))
    (made,) = take(workload, 1)
    assert made.messages[0].role == "system"
    assert made.messages[0].content.startswith("[")
    assert made.messages[1].content == "Why is the sky blue?"
    assert workload.samples[0].prompt_tokens is not None
    assert made.prompt_tokens is not None
    assert 4 <= made.prompt_tokens - workload.samples[0].prompt_tokens <= 9


def test_unmarked_prompts_tell_how_much_of_them_is_shared() -> None:
    for made in take(PLAIN, 30):
        assert made.prefix_tokens is not None
        assert made.prompt_tokens is not None
        assert 0 < made.prefix_tokens < made.prompt_tokens
    marked = load(WorkloadSpec(source="docqa-zh"))
    assert all(made.prefix_tokens is None for made in take(marked, 5))


def test_vllm_s_rule_drops_by_reason_and_can_be_left_away(tmp_path: Path) -> None:
    words = "word " * 1500
    path = write(
        tmp_path,
        dialogue("Hi", "long enough an answer"),
        dialogue("long enough a prompt", "No"),
        dialogue(words, "long enough an answer"),
        dialogue(words[:5000], words),
        dialogue("long enough a prompt", "long enough an answer"),
    )
    workload = load(WorkloadSpec(source=path))
    assert workload.records == 5
    assert len(workload.samples) == 1
    assert workload.dropped == {
        "prompt below 4 tokens": 1,
        "answer below 4 tokens": 1,
        "prompt above 1024 tokens": 1,
        "prompt + answer above 2048 tokens": 1,
    }
    assert "1 answer below 4 tokens" in workload.note
    every = load(WorkloadSpec(source=path, format="sharegpt-unfiltered"))
    assert len(every.samples) == 5


def test_records_without_an_answer_are_dropped_only_where_it_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "Why?", "output_tokens": 7}, {"prompt": "When?"})
    asked = load(WorkloadSpec(source=path))
    assert asked.dropped == {"no answer to take the length from": 1}
    assert take(asked, 1)[0].max_output_tokens == 7
    assert len(load(WorkloadSpec(source=path, output="9")).samples) == 2


def test_a_tokenizer_replaces_the_estimate() -> None:
    workload = load(WorkloadSpec(source="chat-en", tokenizer=byte_pairs()))
    assert workload.token_source is TokenSource.TOKENIZER
    assert "estimated" not in workload.note
    assert workload.records == len(workload.samples) + sum(workload.dropped.values())


def test_fixed_lengths_are_a_workload_like_any_other() -> None:
    workload = load(WorkloadSpec(source="fixed:42/285"))
    assert workload.token_source is TokenSource.ESTIMATE
    assert "confirmed by the server's usage" in workload.note
    (made,) = take(workload, 1)
    assert (made.prompt_tokens, made.max_output_tokens) == (42, 285)
    known = describe(workload)
    assert known.n is None
    assert known.prompt_tokens is not None
    assert known.prompt_tokens.max == 42


def test_a_description_tells_what_is_asked_for() -> None:
    asked = describe(load(WorkloadSpec(output="64"))).asked_tokens
    assert asked is not None
    assert asked.mean == 64
    natural = describe(load(WorkloadSpec(output="natural")))
    assert natural.asked_tokens is None
    assert natural.cap_tokens == NATURAL_CAP_TOKENS


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (WorkloadSpec(source="chat_en"), "did you mean chat-en"),
        (WorkloadSpec(source="nothing"), "built in are chat-en, chat-zh"),
        (WorkloadSpec(source=""), "neither a file nor a built-in"),
        (WorkloadSpec(source=" "), "neither a file nor a built-in"),
        (WorkloadSpec(source="a" * 5000), "neither a file nor a built-in"),
        (WorkloadSpec(source="a/" * 5000 + "b.json"), "cannot be read"),
        (WorkloadSpec(source="a\0b"), "neither a file nor a built-in"),
        (WorkloadSpec(source="no/such/file.json"), "does not exist"),
        (WorkloadSpec(source="chat-en", format="text"), "leave --format away"),
        (WorkloadSpec(source="fixed:1/1", format="text"), "leave --format away"),
        (WorkloadSpec(source="fixed:1/1", output="natural"), "contradicts 'natural'"),
        (WorkloadSpec(source="fixed:1/1", output="2"), "contradicts '2'"),
        (WorkloadSpec(output="0"), "output length '0'"),
        (WorkloadSpec(output="-5"), "output length '-5'"),
        (WorkloadSpec(output="many"), "output length 'many'"),
        (WorkloadSpec(output="٣"), "output length"),
        (WorkloadSpec(output="9" * 5000), "output length"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(spec: WorkloadSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_prompts_without_answers_need_an_output_length(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "Why?"})
    with pytest.raises(UsageError, match="--output N for exactly N tokens, or --output natural"):
        load(WorkloadSpec(source=path))


def test_a_set_that_is_empty_after_filtering_tells_why(tmp_path: Path) -> None:
    path = write(tmp_path, dialogue("Hi", "Hello to you my friend"), {"conversations": []})
    with pytest.raises(
        UsageError, match=r"of 2 records.*1 fewer than 2 messages, 1 prompt below 4"
    ):
        load(WorkloadSpec(source=path))


@pytest.mark.skipif(not DATA.is_dir(), reason="the sample data folder is not beside the repository")
@pytest.mark.parametrize("path", sorted(DATA.glob("[ez]*.json*")), ids=lambda path: path.stem)
def test_counts_of_real_files_add_up(path: Path) -> None:
    workload = load(WorkloadSpec(source=str(path), output="16"))
    assert workload.records == len(workload.samples) + sum(workload.dropped.values())
    assert len(take(workload, 20)) == 20

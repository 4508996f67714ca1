"""Loaders: each format in each container, the traps of real files, and errors in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servecap.errors import UsageError
from servecap.record import Message
from servecap.workload import formats
from servecap.workload.sample import Dropped, Parsed, tally

DATA = Path(__file__).resolve().parents[2] / "../shared/data/datasets"
REUSE = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

SHAREGPT = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
RECORDS: dict[str, dict[str, Any]] = {
    "sharegpt": SHAREGPT,
    "vllm-custom": {"prompt": "Why?", "output_tokens": 7},
    "openai": {"messages": [{"role": "user", "content": "Why?"}]},
    "alpaca": {"instruction": "Why?", "input": "", "output": "So."},
    "longbench": {"input": "Why?", "context": "Long ago.", "answers": ["So."], "length": 2},
    "squad": {
        "data": [
            {
                "paragraphs": [
                    {"context": "Long ago.", "qas": [{"question": "Why?", "answers": []}]},
                    {"context": "Later.", "qas": [{"question": "When?", "answers": []}]},
                ]
            }
        ]
    },
    "dureader": {"question": "Why?", "documents": [{"paragraphs": ["Long ago."]}], "answers": []},
    "mt-bench": {"turns": ["Why?", "And then?"], "question_id": 81},
}


def write(folder: Path, content: str | bytes, name: str = "set.jsonl") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def load(folder: Path, *records: Any, format: str | None = None) -> Parsed:
    return formats.load(write(folder, "\n".join(map(json.dumps, records))), format)


@pytest.mark.parametrize("name", RECORDS)
def test_a_format_is_told_from_its_fields_in_every_container(tmp_path: Path, name: str) -> None:
    record = RECORDS[name]
    compact = json.dumps(record)
    texts = [compact, f"{compact}\n{compact}\n", f"[{compact}]", json.dumps(record, indent=2)]
    for text in texts:
        parsed = formats.load(write(tmp_path, text))
        assert parsed.format == name
        assert parsed.samples
        assert parsed.records == len(parsed.samples)


def test_sharegpt_takes_the_first_human_turn_that_an_answer_follows(tmp_path: Path) -> None:
    turns = [("gpt", "tail"), ("human", "Q1"), ("human", "Q2"), ("gpt", "A2"), ("human", "Q3")]
    parsed = load(tmp_path, {"conversations": [{"from": f, "value": v} for f, v in turns]})
    (sample,) = parsed.samples
    assert sample.messages == (Message("user", "Q2"),)
    assert sample.answer == "A2"
    assert sample.turns == (Message("assistant", "A2"), Message("user", "Q3"))


def test_sharegpt_keeps_a_leading_system_message(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("human", "Q"), ("gpt", "A")]
    parsed = load(tmp_path, {"conversations": [{"from": f, "value": v} for f, v in turns]})
    assert parsed.samples[0].messages == (Message("system", "Be brief."), Message("user", "Q"))


def test_sharegpt_drops_are_counted_by_reason(tmp_path: Path) -> None:
    def conversation(*turns: tuple[str, str]) -> dict[str, Any]:
        return {"conversations": [{"from": f, "value": v} for f, v in turns]}

    parsed = load(
        tmp_path,
        conversation(),
        conversation(("human", "alone")),
        conversation(("gpt", "A"), ("human", "Q")),
        conversation(("human", "call"), ("function_call", "{}"), ("observation", "1")),
        conversation(("human", "  "), ("gpt", "A")),
        SHAREGPT,
    )
    assert parsed.records == 6
    assert len(parsed.samples) == 1
    assert parsed.dropped == {
        "fewer than 2 messages": 2,
        "no human turn followed by an answer": 2,
        "empty prompt": 1,
    }


def test_openai_separates_the_answer_and_unwraps_batch_lines(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "x"}],
        },
        {"role": "assistant", "content": "Hello."},
    ]
    batch = {"custom_id": "1", "body": {"messages": messages[:2], "max_tokens": 9}}
    answered, limited = load(tmp_path, {"messages": messages}, batch).samples
    assert answered.messages == (Message("system", "Be brief."), Message("user", "Hi x"))
    assert (answered.answer, answered.answer_tokens) == ("Hello.", None)
    assert (limited.answer, limited.answer_tokens) == (None, 9)


def test_openai_content_that_is_not_text_is_dropped(tmp_path: Path) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    tool = {"role": "tool", "content": "42"}
    null = {"role": "assistant", "content": None}
    odd = {"role": "user", "content": [{"type": "text", "text": 5}]}
    user = {"role": "user", "content": "Hi"}
    parsed = load(tmp_path, *({"messages": [user, x]} for x in (image, tool, null, odd)))
    assert parsed.dropped == {"content that is not text": 4}


def test_alpaca_joins_input_system_and_history(tmp_path: Path) -> None:
    record = {"instruction": "Sort:", "input": "b a", "output": "a b", "system": "S"}
    (sample,) = load(tmp_path, {**record, "history": [["q", "a"]]}).samples
    assert [message.role for message in sample.messages] == ["system", "user", "assistant", "user"]
    assert sample.messages[-1].content == "Sort:\nb a"
    assert sample.answer == "a b"


def test_mt_bench_keeps_all_turns(tmp_path: Path) -> None:
    (sample,) = load(tmp_path, RECORDS["mt-bench"]).samples
    assert sample.messages == (Message("user", "Why?"),)
    assert sample.turns == (Message("user", "And then?"),)


def test_squad_joins_an_article_or_takes_the_paragraph(tmp_path: Path) -> None:
    joined = load(tmp_path, RECORDS["squad"]).samples
    single = load(tmp_path, RECORDS["squad"], format="squad-paragraph").samples
    assert joined[0].text.startswith("Long ago.\n\nLater.\n\nQuestion: Why?")
    assert joined[0].prefix_key == joined[1].prefix_key
    assert single[1].text.startswith("Later.\n\nQuestion: When?")
    assert single[0].prefix_key != single[1].prefix_key


def test_documents_come_first_and_questions_in_their_language(tmp_path: Path) -> None:
    chinese = {"input": "为什么？", "context": "从前。", "answers": []}
    summary = {"input": "", "context": "Long ago.", "answers": []}
    empty = {"input": "Why?", "context": " ", "answers": []}
    parsed = load(tmp_path, chinese, summary, empty)
    assert parsed.samples[0].text == "从前。\n\n问题：为什么？\n请根据上面的文字回答。"
    assert parsed.samples[1].text == "Long ago.\n\nSummarise the text above."
    assert parsed.samples[0].prefix_chars == 3
    assert parsed.dropped == {"no document": 1}


def test_plain_lines_keep_their_inside_and_lose_the_line_end(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffone\u2028still one\r\n\r\ntwo\x85still two", "set.txt")
    parsed = formats.load(path)
    assert [sample.text for sample in parsed.samples] == [
        "one\u2028still one",
        "two\x85still two",
    ]


@REUSE
@given(prompts=st.lists(st.text(min_size=1).filter(lambda t: bool(t.strip())), min_size=1))
def test_jsonl_round_trips_any_text(tmp_path: Path, prompts: list[str]) -> None:
    prompts = [prompt + "\u2028\x85\u2029" for prompt in prompts]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    for end in ("\n", "\r\n"):
        path = write(tmp_path, "\ufeff" + end.join(lines) + end)
        assert [sample.text for sample in formats.load(path).samples] == prompts


def test_half_a_surrogate_pair_is_replaced_since_it_cannot_be_sent(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "cut \\ud83d", "score": NaN}')
    assert formats.load(path).samples[0].text == "cut \ufffd"


def test_gzip_is_unpacked(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"prompt": "Why?"}')
    assert formats.load(write(tmp_path, packed, "set.jsonl.gz")).samples[0].text == "Why?"
    with pytest.raises(UsageError, match="not a whole gzip file"):
        formats.load(write(tmp_path, packed[:-4]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
        (b'{"prompt": "caf\xe9"}', r"not UTF-8 at byte 15 \(line 1\)"),
        (b"[]", "empty JSON array"),
        (b'{"prompt": "a"}\n\n{"prompt": "b"', r"line 3: malformed JSON at column 15"),
        (b'[{"prompt": "a"},\n{"prompt" "b"}]', r"line 2: malformed JSON at column 11"),
        (b'{"prompt": "a"}\n{"text": "b"}', r"line 2: not a vllm-custom record.*`prompt`"),
        (b'[{"conversations": [{"from": 1}]}]', r"record 1: not a sharegpt record"),
        (b'{"timestamp": 1, "input_length": 2}', r"'timestamp', 'input_length'.*--format"),
        (b"[1, 2]", "expected a JSON object, found a number"),
        (b"[" * 100_000, "nested too deeply"),
        (b"hello", "is not JSON"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UsageError, match=message) as caught:
        formats.load(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_tables_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        formats.load(str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="is a folder"):
        formats.load(str(tmp_path))
    with pytest.raises(UsageError, match="cannot be read"):
        formats.load("a\0b")
    with pytest.raises(UsageError, match="CSV"):
        formats.load(write(tmp_path, "TIMESTAMP,ContextTokens\n1,2", "trace.csv"))
    with pytest.raises(UsageError, match="'sharegtp' is not one of sharegpt"):
        formats.load(write(tmp_path, "{}"), "sharegtp")


FIELD_NAMES = """conversations from value messages role content turns data instruction context input
answers documents question prompt paragraphs qas body text type"""
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELD_NAMES.split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@REUSE
@given(
    content=st.binary(max_size=80)
    | st.lists(json_values, max_size=3).map(lambda v: json.dumps(v).encode()),
    name=st.sampled_from(["set.json", "set.jsonl", "set.txt", "set"]),
    format=st.none() | st.sampled_from(formats.FORMATS),
)
def test_whatever_the_file_holds_only_usage_errors_are_raised(
    tmp_path: Path, content: bytes, name: str, format: str | None
) -> None:
    try:
        parsed = formats.load(write(tmp_path, content, name), format)
    except UsageError:
        return
    assert parsed.records == len(parsed.samples) + sum(parsed.dropped.values())
    assert all(sample.text.encode().strip() for sample in parsed.samples)


def test_tally_adds_up() -> None:
    parsed = tally("text", [Dropped("a"), Dropped("b"), Dropped("a")])
    assert (parsed.records, parsed.samples, parsed.dropped) == (3, (), {"a": 2, "b": 1})


@pytest.mark.skipif(not DATA.is_dir(), reason="the sample data folder is not beside the repository")
@pytest.mark.parametrize(
    ("name", "format", "records"),
    [
        ("en_arena_hard_sharegpt.json", "sharegpt", None),
        ("en_openai_messages.jsonl", "openai", 300),
        ("en_prompts_vllm_custom.jsonl", "vllm-custom", None),
        ("en_squad_xquad.json", "squad", 1190),
        ("zh_chat_sharegpt.json", "sharegpt", None),
        ("zh_docqa_longbench_multifieldqa_zh.jsonl", "longbench", 130),
        ("zh_mt_bench_turns.jsonl", "mt-bench", 80),
        ("zh_prompts_vllm_custom.jsonl", "vllm-custom", None),
        ("zh_squad_xquad.json", "squad", 1190),
    ],
)
def test_every_real_file_loads_whole(name: str, format: str, records: int | None) -> None:
    text = (DATA / name).read_text("utf-8")
    expected = records or (
        len(json.loads(text)) if text.startswith("[") else text.rstrip("\n").count("\n") + 1
    )
    parsed = formats.load(str(DATA / name))
    assert parsed.format == format
    assert parsed.records == expected
    assert parsed.records == len(parsed.samples) + sum(parsed.dropped.values())
    assert len(parsed.samples) > 0.9 * parsed.records

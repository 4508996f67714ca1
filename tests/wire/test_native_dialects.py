"""Ollama's and SGLang's own dialects: what they ask for, and what is made of their answers."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay import REQUEST, STREAMS, Played, chunk, played, response

from servecap.record import Outcome
from servecap.wire.answer import Answer, BadAnswer
from servecap.wire.lines import LineDecoder
from servecap.wire.ollama import Ollama
from servecap.wire.sglang import SgLang

EXACT = msgspec.structs.replace(REQUEST, exact_output=True)
HEAD = response(b"").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
DONE = (
    b'"done":true,"done_reason":"length","total_duration":3000000000,"prompt_eval_count":9,'
    b'"prompt_eval_duration":500000000,"eval_count":5,"eval_duration":2000000000}'
)


def asked(api: Ollama | SgLang, *, stream: bool = True) -> dict[str, object]:
    found: dict[str, object] = msgspec.json.decode(api.body(EXACT, model="m", stream=stream))
    return found


def test_ollama_asks_with_its_own_names() -> None:
    options = {"temperature": 0.0, "num_predict": 12}
    messages = [{"role": "user", "content": "Name three rivers."}]
    chat = asked(Ollama(chat=True))
    assert chat == {"model": "m", "stream": True, "options": options, "messages": messages}
    plain = asked(Ollama(chat=False), stream=False)
    assert plain["prompt"] == "Name three rivers."
    assert plain["stream"] is False, "it would stream if nothing were said"


def test_sglang_asks_for_an_exact_length() -> None:
    sampling = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True, "min_new_tokens": 12}
    text = "Name three rivers."
    assert asked(SgLang()) == {"text": text, "sampling_params": sampling, "stream": True}
    fewer = asked(SgLang().without("ignore_eos").without("min_new_tokens"))
    assert fewer["sampling_params"] == {"temperature": 0.0, "max_new_tokens": 12}


def test_ollama_tells_its_own_timings() -> None:
    """Six tokens: five decode steps after the first."""
    for name in ("ollama-chat", "ollama-generate"):
        api = Ollama(chat=name == "ollama-chat")
        server = played((STREAMS / f"{name}.http").read_bytes(), api).server
        assert server is not None
        assert server.origin == "Ollama durations"
        assert (server.prefill_s, server.inference_s, server.total_s) == (0.25, 1.25, 1.5)
        assert server.tpot_s == pytest.approx(0.2)
        assert server.ttft_s is None, "how long a request queued is not told"


def test_ollama_whole_answers() -> None:
    for api, body in (
        (Ollama(chat=True), b'{"message":{"role":"assistant","content":"Rhine"},' + DONE),
        (Ollama(chat=False), b'{"response":"Rhine",' + DONE),
    ):
        data = response(body, kind="application/json; charset=utf-8", chunked=False)
        record = Played(api).push([data]).record
        assert (record.outcome, record.prompt_tokens, record.output_tokens) == (Outcome.OK, 9, 5)
        assert record.finish_reason == "length"
        assert record.server is not None
        assert record.server.tpot_s == pytest.approx(0.5)


def test_prompt_that_ollama_had_cached_is_not_counted() -> None:
    answer = Answer()
    Ollama(chat=False).whole(answer, b'{"response":"x","done":true,"eval_count":1}', {})
    assert (answer.prompt_tokens, answer.output_tokens, answer.timings) == (None, 1, None)


@pytest.mark.parametrize(
    ("line", "output"),
    [
        (b'{"message":{"content":"a"},"done":false}', True),
        (b'{"message":{"content":"","thinking":"a"},"done":false}', True),
        (b'{"message":{"content":"","tool_calls":[{"function":{}}]},"done":false}', True),
        (b'{"response":"a","done":false}', True),
        (b'{"response":"","thinking":"a","done":false}', True),
        (b'{"message":{"content":""},"done":false}', False),
        (b'{"message":{"role":"assistant"},"done":false}', False),
        (b'{"response":"","done":true}', False),
    ],
)
def test_what_of_ollama_is_output(line: bytes, output: bool) -> None:
    answer = Answer()
    Ollama(chat=True).event(answer, line, 1.0)
    assert bool(answer.chunk_s) is output


def so_far(text: str, tokens: int | None, finish: object = None) -> bytes:
    meta: dict[str, object] = {"prompt_tokens": 5, "finish_reason": finish}
    if tokens is not None:
        meta["completion_tokens"] = tokens
    body = msgspec.json.encode({"text": text, "meta_info": meta})
    return chunk(b"data: " + body + b"\n\n")


LENGTH = {"type": "length", "length": 6}
END = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@pytest.mark.parametrize("texts", [("", "a", "ab", "ab", "abcd"), ("", "a", "b", "b", "cd")])
def test_first_token_and_pace_of_texts_that_repeat_or_do_not(texts: tuple[str, ...]) -> None:
    """Whether each event has the whole text or the new part: the counts tell what is new."""
    tokens = (0, 1, 2, 3, 6)
    last = len(texts) - 1
    reads = [
        HEAD,
        *(so_far(t, n, LENGTH if i == last else None) for i, (t, n) in enumerate(
            zip(texts, tokens, strict=True)
        )),
        END,
    ]  # fmt: skip
    record = Played(SgLang()).push(reads, at_s=[2.0, 2.1, 3.0, 4.0, 5.0, 6.0, 6.5]).record
    assert (record.outcome, record.output_tokens, record.prompt_tokens) == (Outcome.OK, 6, 5)
    assert list(record.chunk_s) == [3.0, 4.0, 5.0, 6.0]
    assert record.chunk_tokens.tolist() == [1, 1, 1, 3]
    assert record.ttft_s == 2.0
    assert record.tpot_s == pytest.approx(3.0 / 5)


def test_event_that_repeats_everything_is_no_output() -> None:
    reads = [HEAD, so_far("a", 1), so_far("ab", 2), so_far("ab", 2, LENGTH), END]
    record = Played(SgLang()).push(reads).record
    assert (len(record.chunk_s), record.output_tokens) == (2, 2)


def test_text_of_sglang_is_counted_once_by_a_tokenizer() -> None:
    for texts in (("a", "ab", "abc"), ("a", "b", "c")):
        reads = [HEAD, *(so_far(t, None) for t in texts), so_far(texts[-1], None, LENGTH), END]
        seen: list[str] = []
        Played(SgLang(), count_tokens=lambda text, seen=seen: seen.append(text) or 3).push(reads)  # type: ignore[misc]
        assert seen[0].startswith("abc")


def test_whole_answers_of_sglang() -> None:
    one = b'{"text":"Rhine","meta_info":{"completion_tokens":4,"prompt_tokens":5,' + (
        b'"finish_reason":{"type":"stop","matched":2},"e2e_latency":0.5}}'
    )
    for body in (one, b"[" + one + b"]"):
        data = response(body, kind="application/json", chunked=False)
        record = Played(SgLang()).push([data]).record
        assert (record.outcome, record.output_tokens, record.finish_reason) == (
            Outcome.OK,
            4,
            "stop",
        )
        assert record.server is not None
        assert (record.server.total_s, record.server.ttft_s) == (0.5, None)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (b'{"error":{"message":"full","code":503}}', "503: full"),
        (b'{"object":"error","message":"full","code":503}', "503: full"),
        (
            b'{"text":"","meta_info":{"finish_reason":{"type":"abort","message":"full",'
            b'"status_code":503}}}',
            "503: full",
        ),
    ],
)
def test_errors_inside_a_stream_of_sglang(event: bytes, said: str) -> None:
    record = Played(SgLang()).push([HEAD, so_far("a", 1), chunk(b"data: " + event + b"\n\n"), END])
    assert (record.record.outcome, record.record.error) == (Outcome.HTTP_ERROR, said)


def test_answer_that_sglang_gave_up_without_a_word_is_broken() -> None:
    reads = [HEAD, so_far("a", 1), so_far("a", 1, {"type": "abort"}), END]
    record = Played(SgLang()).push(reads).record
    assert record.outcome is Outcome.BROKEN_STREAM


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (Ollama(chat=True), b"{}"),
        (Ollama(chat=True), b'{"message":{"content":"a"},"done":false}'),
        (Ollama(chat=False), b"[]"),
        (SgLang(), b"{}"),
        (SgLang(), b"[]"),
        (SgLang(), b'[{"text":"a"},{"text":"b"}]'),
        (SgLang(), b"null"),
    ],
)
def test_whole_answer_of_another_shape_is_bad(api: Ollama | SgLang, body: bytes) -> None:
    with pytest.raises(BadAnswer) as caught:
        api.whole(Answer(), body, {})
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=120), st.booleans())
def test_any_event_of_these_ends_as_a_record(data: bytes, lines: bool) -> None:
    if lines:
        body = response(data + b"\n", kind="application/x-ndjson")
        record = Played(Ollama(chat=True)).push([body]).close().record
    else:
        record = Played(SgLang()).push([response(b"data: " + data + b"\n\n")]).close().record
    assert record.outcome in (Outcome.OK, Outcome.BROKEN_STREAM, Outcome.HTTP_ERROR)


@given(
    st.lists(st.sampled_from([b"{}", b'{"a":1}', b"", b"\r"]), max_size=8),
    st.lists(st.integers(0, 80), max_size=5),
)
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines) + b'{"cut'
    edges = [0, *sorted(c % len(data) for c in cuts), len(data)]
    decoder = LineDecoder()
    found = [line for a, b in pairwise(edges) for line in decoder.feed(data[a:b])]
    assert found == [line for line in lines if line.strip()]

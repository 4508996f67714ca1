"""What each API dialect asks for, and what it makes of whole answers, headers and errors."""

from __future__ import annotations

import msgspec
import pytest
from replay import REQUEST, Played, response

from servecap.record import Message, Outcome, Request, ServerTimings
from servecap.wire.answer import Answer, BadAnswer, error_text
from servecap.wire.openai import OpenAi
from servecap.wire.tgi import Tgi, timings

EXACT = msgspec.structs.replace(REQUEST, exact_output=True)
TGI_HEADERS = {
    "x-compute-type": "1-nvidia-a30",
    "x-compute-time": "3.9",
    "x-total-time": "3900",
    "x-validation-time": "1",
    "x-queue-time": "250",
    "x-inference-time": "3600",
    "x-time-per-token": "36",
    "x-prompt-tokens": "42",
    "x-generated-tokens": "100",
}
GENERATED = (
    b'{"generated_text":"Rhine","details":{"finish_reason":"length","generated_tokens":100}}'
)


def body_of(
    api: OpenAi | Tgi, request: Request = EXACT, *, stream: bool = True
) -> dict[str, object]:
    found: dict[str, object] = msgspec.json.decode(api.body(request, model="m", stream=stream))
    return found


def test_chat_asks_for_exact_length_and_usage() -> None:
    assert body_of(OpenAi(chat=True)) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Name three rivers."}],
        "max_tokens": 12,
        "ignore_eos": True,
        "min_tokens": 12,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_natural_length_leaves_the_end_to_the_model() -> None:
    asked = body_of(OpenAi(chat=True), REQUEST, stream=False)
    assert not {"ignore_eos", "min_tokens", "stream", "stream_options"} & set(asked)


def test_completions_join_the_turns() -> None:
    two = Request(request_id=0, messages=(Message("system", "Be."), Message("user", "Do.")))
    assert body_of(OpenAi(chat=False), two)["prompt"] == "Be.\nDo."


@pytest.mark.parametrize("field", OpenAi.optional_fields)
def test_field_that_a_server_refuses_is_left_away(field: str) -> None:
    kept = body_of(OpenAi(chat=True).without(field))
    assert field not in kept
    if field == "max_tokens":
        assert kept["max_completion_tokens"] == 12


def test_tgi_asks_for_details() -> None:
    asked = body_of(Tgi(stream=False), stream=False)
    assert asked["inputs"] == "Name three rivers."
    assert asked["parameters"] == {
        "details": True,
        "decoder_input_details": True,
        "max_new_tokens": 12,
        "ignore_eos_token": True,
    }


def told(headers: dict[str, str], api: OpenAi | Tgi, body: bytes) -> ServerTimings:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    data = response(body, kind="application/json", headers=lines, chunked=False)
    record = Played(api).push([data]).record
    assert record.outcome is Outcome.OK
    assert (record.prompt_tokens, record.output_tokens) == (42, 100)
    assert record.server is not None
    return record.server


def test_tgi_headers_with_prefill_time() -> None:
    server = told({**TGI_HEADERS, "x-prefill-time": "135"}, Tgi(stream=False), GENERATED)
    assert server.origin == "TGI headers"
    assert server.queue_s == pytest.approx(0.250)
    assert server.prefill_s == pytest.approx(0.135)
    assert server.ttft_s == pytest.approx(0.385)
    assert server.inference_s == pytest.approx(3.6)
    assert server.total_s == pytest.approx(3.9)
    assert server.tpot_s == pytest.approx((3.6 - 0.135) / 99), "finer than the whole milliseconds"


def test_a_decode_only_time_per_token_leaves_the_prefill() -> None:
    server = told({**TGI_HEADERS, "x-time-per-token": "34"}, Tgi(stream=False), GENERATED)
    assert "inference - time per token" in server.origin
    assert server.prefill_s == pytest.approx(3.6 - 0.034 * 99)
    assert server.tpot_s == pytest.approx(0.034)
    assert server.ttft_s == pytest.approx(0.25 + 3.6 - 0.034 * 99)


def test_released_tgi_tells_no_prefill_time() -> None:
    """Its time per token is inference / generated: 3600 ms / 100, so nothing can be left over."""
    server = told(TGI_HEADERS, Tgi(stream=False), GENERATED)
    assert "prefill is not known" in server.origin
    assert (server.prefill_s, server.ttft_s) == (None, None)
    assert server.tpot_s == pytest.approx(0.036)


def test_tgi_headers_on_its_chat_api() -> None:
    body = (
        b'{"choices":[{"message":{"content":"Rhine"},"finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":42,"completion_tokens":100}}'
    )
    server = told({**TGI_HEADERS, "x-prefill-time": "135"}, OpenAi(chat=True), body)
    assert server.ttft_s == pytest.approx(0.385)


def test_headers_that_are_missing_or_nonsense_are_unknown() -> None:
    assert timings({}, 5) is None
    assert timings({"x-inference-time": "fast"}, 5) is None
    some = timings({"x-inference-time": "100"}, None)
    assert some is not None
    assert (some.prefill_s, some.queue_s, some.ttft_s, some.tpot_s) == (None, None, None, None)
    one = timings({"x-inference-time": "100", "x-queue-time": "5"}, 1)
    assert one is not None
    assert one.ttft_s == pytest.approx(0.105)


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (OpenAi(chat=True), b"{}"),
        (OpenAi(chat=True), b'{"choices":[]}'),
        (OpenAi(chat=True), b"[]"),
        (OpenAi(chat=True), b"<html>"),
        (OpenAi(chat=True), b'{"choices":[{"text":' + b"[" * 100_000),
        (Tgi(stream=False), b"[]"),
        (Tgi(stream=False), b"{}"),
        (Tgi(stream=False), b"null"),
    ],
)
def test_whole_answer_of_another_shape_is_a_bad_answer(api: OpenAi | Tgi, body: bytes) -> None:
    with pytest.raises(BadAnswer) as caught:
        api.whole(Answer(), body, {})
    assert "\n" not in str(caught.value)


def test_tool_calls_and_reasoning_are_output_but_nulls_are_not() -> None:
    api, answer = OpenAi(chat=True), Answer()
    for delta in (
        b'{"tool_calls":[{"function":{"arguments":"{"}}]}',
        b'{"reasoning_content":"Hm"}',
        b'{"reasoning":"Hm"}',
        b'{"refusal":"No"}',
        b'{"tool_calls":null}',
        b'{"tool_calls":[]}',
        b'{"content":null,"reasoning_content":null}',
        b'{"role":"assistant"}',
        b"{}",
        b"null",
    ):
        api.event(answer, b'{"choices":[{"delta":' + delta + b"}]}", 1.0)
    assert len(answer.chunk_s) == 4


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"m","type":"t"}}', "m"),
        (b'{"error":"m","error_type":"overloaded"}', "m"),
        (b'{"object":"error","message":"m","code":400}', "m"),
        (b'{"detail":[{"loc":["body"],"msg":"m"}]}', "m"),
        (b'{"detail":"m"}', "m"),
        (b"plain m", "plain m"),
        (b"\xff\x00m\r\nn", "\ufffd m n"),
        (b"[" * 100_000, "[" * 300),
        (b'{"error":' * 5000 + b'"m"' + b"}" * 5000, None),
        (b"", ""),
    ],
)
def test_message_of_an_error_body(body: bytes, text: str | None) -> None:
    found = error_text(body)
    assert len(found) <= 300
    if text is not None:
        assert found == text

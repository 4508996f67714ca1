"""What the emulator puts on the wire, byte by byte, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from raw_http import SMALL, Json, Reply, get, parse, post

from servecap.emulate.answers import WORDS
from servecap.emulate.launch import running

STREAMS = Path(__file__).resolve().parents[2] / "../shared/data/streams"
needs_streams = pytest.mark.skipif(
    not STREAMS.exists(), reason=f"the recorded streams are not there: {STREAMS}"
)
MESSAGES = [{"role": "user", "content": "Name three rivers."}]


@pytest.fixture(scope="module")
def vllm() -> Iterator[str]:
    with running(SMALL) as url:
        yield url


@pytest.fixture(scope="module")
def tgi() -> Iterator[str]:
    with running(msgspec.structs.replace(SMALL, engine="tgi", speed=1)) as url:
        yield url


def chat(tokens: int, **more: Any) -> Json:
    return {"messages": MESSAGES, "max_tokens": tokens, "ignore_eos": True, **more}


def events(reply: Reply) -> list[Any]:
    """The JSON of each event, "[DONE]" as text."""
    found: list[Any] = []
    for event in reply.body.decode().split("\n\n")[:-1]:
        assert event.startswith("data:")
        data = event.removeprefix("data:")
        found.append("[DONE]" if data.strip() == "[DONE]" else json.loads(data))
    return found


def kind(event: Any) -> str:
    """What an OpenAI event is for."""
    if event == "[DONE]":
        return "done"
    if not event["choices"]:
        return "usage"
    choice = event["choices"][0]
    if choice.get("delta", {}).get("role"):
        return "role"
    return "token" if choice["finish_reason"] is None else "last token"


def kinds(reply: Reply) -> list[str]:
    """The stream's grammar: repeated tokens count once."""
    found: list[str] = []
    for event in events(reply):
        if kind(event) != "token" or found[-1:] != ["token"]:
            found.append(kind(event))
    return found


def fields(value: Any, path: str = "") -> set[str]:
    """All paths of fields in a JSON value."""
    if isinstance(value, dict):
        return {f"{path}.{k}" for k in value} | {
            p for k, v in value.items() for p in fields(v, f"{path}.{k}")
        }
    if isinstance(value, list):
        return {p for v in value for p in fields(v, f"{path}[]")}
    return set()


def test_a_chat_stream_to_the_byte(vllm: str) -> None:
    reply = post(
        vllm, "/v1/chat/completions",
        chat(2, model="tiny", stream=True, stream_options={"include_usage": True}),
    )  # fmt: skip
    assert reply.status == 200
    assert reply.complete
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    first = json.loads(reply.chunks[0].removeprefix(b"data: "))
    words = [json.loads(c[6:])["choices"][0]["delta"]["content"] for c in reply.chunks[1:3]]
    assert set(words) <= set(WORDS)
    frame = (
        f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk",'
        f'"created":{first["created"]},"model":"tiny","choices":['
    )
    assert [chunk.decode() for chunk in reply.chunks] == [
        frame + '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
        '"finish_reason":null}]}\n\n',
        frame + f'{{"index":0,"delta":{{"content":"{words[0]}"}},"logprobs":null,'
        '"finish_reason":null}]}\n\n',
        frame + f'{{"index":0,"delta":{{"content":"{words[1]}"}},"logprobs":null,'
        '"finish_reason":"length","stop_reason":null}]}\n\n',
        frame + '],"usage":{"prompt_tokens":4,"total_tokens":6,"completion_tokens":2}}\n\n',
        "data: [DONE]\n\n",
    ]


@pytest.mark.parametrize(
    ("file", "path", "usage"),
    [
        ("vllm-chat-stream.http", "/v1/chat/completions", True),
        ("vllm-chat-stream-no-usage.http", "/v1/chat/completions", False),
        ("vllm-completions-stream.http", "/v1/completions", True),
    ],
)
@needs_streams
def test_streams_have_the_grammar_and_the_fields_of_a_real_vllm(
    vllm: str, file: str, path: str, usage: bool
) -> None:
    recorded = parse((STREAMS / file).read_bytes())
    body = {**chat(12, stream=True), "prompt": "How are you?"}
    reply = post(vllm, path, body | ({"stream_options": {"include_usage": True}} if usage else {}))
    assert kinds(reply) == kinds(recorded)
    assert reply.headers["content-type"] == recorded.headers["content-type"]
    for ours in events(reply):
        same = [e for e in events(recorded) if kind(e) == kind(ours)]
        assert fields(ours) <= {p for e in same for p in fields(e)}


@needs_streams
def test_a_whole_chat_answer_has_fields_of_a_real_vllm_only(vllm: str) -> None:
    recorded = parse((STREAMS / "vllm-chat.http").read_bytes())
    reply = post(vllm, "/v1/chat/completions", chat(12))
    assert fields(reply.json) <= fields(recorded.json)
    assert reply.json["usage"] == {
        "prompt_tokens": 4, "total_tokens": 16, "completion_tokens": 12,
    }  # fmt: skip
    assert len(reply.json["choices"][0]["message"]["content"].split()) == 12


@pytest.mark.parametrize("tokens", [1, 2, 137])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_ignore_eos_gives_exactly_the_tokens_asked_for(vllm: str, path: str, tokens: int) -> None:
    body = {**chat(tokens, stream=True), "prompt": "How are you?"}
    reply = post(vllm, path, {**body, "stream_options": {"include_usage": True}})
    found = events(reply)
    assert sum(kind(e) in ("token", "last token") for e in found) == tokens
    assert found[-2]["usage"]["completion_tokens"] == tokens
    assert kinds(reply)[-3:] == ["last token", "usage", "done"]


def test_an_answer_of_natural_length_stops_and_respects_min_tokens(vllm: str) -> None:
    reasons = set()
    for least in (1, 150, 400):
        body = {"messages": MESSAGES, "max_tokens": 400, "min_tokens": least}
        reply = post(vllm, "/v1/chat/completions", body)
        tokens = reply.json["usage"]["completion_tokens"]
        assert least <= tokens <= 400
        reason = reply.json["choices"][0]["finish_reason"]
        assert reason == ("length" if tokens == 400 else "stop")
        reasons.add(reason)
    assert "length" in reasons


def test_the_new_name_of_max_tokens_and_text_parts_are_understood(vllm: str) -> None:
    parts = [{"type": "text", "text": "one two"}, {"type": "text", "text": "three"}]
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": parts},
        ],
        "max_completion_tokens": 5,
        "ignore_eos": True,
    }
    usage = post(vllm, "/v1/chat/completions", body).json["usage"]
    assert usage == {"prompt_tokens": 6, "total_tokens": 11, "completion_tokens": 5}


def test_a_prompt_of_token_ids_is_as_long_as_the_list(vllm: str) -> None:
    reply = post(vllm, "/v1/completions", {"prompt": [5] * 42, "max_tokens": 1})
    assert reply.json["usage"]["prompt_tokens"] == 42


def test_tgi_streams_to_the_byte(tgi: str) -> None:
    body = {"inputs": "a b c", "parameters": {"max_new_tokens": 2, "details": True}}
    body["parameters"] |= {"ignore_eos": True}  # type: ignore[operator]
    reply = post(tgi, "/generate_stream", body)
    assert reply.complete
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["x-compute-type"] == "gpu+optimized"
    assert not {h for h in reply.headers if h.endswith(("-time", "-per-token"))}
    words = [json.loads(c.removeprefix(b"data:"))["token"] for c in reply.chunks]
    assert [chunk.decode() for chunk in reply.chunks] == [
        f'data:{{"index":1,"token":{{"id":{words[0]["id"]},"text":"{words[0]["text"]}",'
        '"logprob":-1.0,"special":false},"generated_text":null,"details":null}\n\n',
        f'data:{{"index":2,"token":{{"id":{words[1]["id"]},"text":"{words[1]["text"]}",'
        f'"logprob":-1.0,"special":false}},"generated_text":"{words[0]["text"]}{words[1]["text"]}",'
        '"details":{"finish_reason":"length","generated_tokens":2,"seed":null,"input_length":3}}'
        "\n\n",
    ]


def test_tgi_tells_its_timings_in_whole_milliseconds(tgi: str) -> None:
    body = {"inputs": "a b c", "parameters": {"max_new_tokens": 10, "ignore_eos": True}}
    reply = post(tgi, "/generate", body)
    assert set(reply.json) == {"generated_text"}
    headers = reply.headers
    assert headers["x-prompt-tokens"] == "3"
    assert headers["x-generated-tokens"] == "10"
    assert headers["x-compute-characters"] == "5"
    assert "x-prefill-time" not in headers
    ms = {n: int(headers[f"x-{n}-time"]) for n in ("total", "validation", "queue", "inference")}
    per_token = int(headers["x-time-per-token"])
    assert per_token == ms["inference"] // 10
    # 40 layers x 0.75 ms of launches and 2.8 ms per step: an eager engine.
    assert per_token == 32
    assert ms["total"] >= ms["inference"]
    assert float(headers["x-compute-time"]) >= ms["inference"] / 1000


def test_tgi_details_and_the_compatible_path(tgi: str) -> None:
    parameters = {"max_new_tokens": 3, "ignore_eos": True, "details": True}
    body = {"inputs": "a b", "parameters": {**parameters, "decoder_input_details": True}}
    (answer,) = post(tgi, "/", body).json
    assert answer["details"]["generated_tokens"] == len(answer["details"]["tokens"]) == 3
    assert len(answer["details"]["prefill"]) == 2
    assert answer["generated_text"] == "".join(t["text"] for t in answer["details"]["tokens"])
    streamed = post(tgi, "/", {"inputs": "a b", "parameters": parameters, "stream": True})
    assert len(events(streamed)) == 3


def test_prefill_time_is_told_only_on_demand() -> None:
    with running(msgspec.structs.replace(SMALL, engine="tgi", tgi_prefill_header=True)) as url:
        body = {"inputs": "a b c", "parameters": {"max_new_tokens": 10, "ignore_eos": True}}
        headers = post(url, "/generate", body).headers
    assert int(headers["x-prefill-time"]) <= int(headers["x-inference-time"])


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/chat/completions", {"messages": "x"}, 400, "messages: Expected `array`"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages: Expected `array` of length"),
        ("/v1/chat/completions", b"{", 400, "not valid JSON"),
        ("/v1/chat/completions", b"\xff\xfe", 400, "not valid JSON"),
        ("/v1/chat/completions", chat(0), 400, "max_tokens: Expected `int` >= 1"),
        ("/v1/chat/completions", chat(5000), 400, "more than the model's context of 2048"),
        ("/v1/chat/completions", chat(5, min_tokens=6), 400, "min_tokens 6 is greater"),
        ("/v1/chat/completions", chat(5, n=2), 400, "n: Expected `int` <= 1"),
        ("/v1/chat/completions", chat(5, model="gpt-4"), 404, "`gpt-4` does not exist"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "one prompt per request"),
        ("/v1/completions", {"prompt": ["a", 1]}, 400, "one prompt per request"),
        ("/v1/completions", {}, 400, "missing required field `prompt`"),
    ],
)
def test_openai_refusals(
    vllm: str, path: str, body: Json | bytes, status: int, message: str
) -> None:
    reply = post(vllm, path, body)
    assert reply.status == reply.json["error"]["code"] == status
    assert message in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/generate", {"inputs": ""}, "`inputs` cannot be empty"),
        ("/generate", b"{", "Input data was truncated"),
        ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 0}}, "strictly positive"),
        ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 3000}}, "context"),
        (
            "/generate_stream",
            {"inputs": "a", "parameters": {"decoder_input_details": True}},
            "not supported when streaming",
        ),
    ],
)
def test_tgi_refusals(tgi: str, path: str, body: Json | bytes, message: str) -> None:
    reply = post(tgi, path, body)
    assert reply.status == 422
    assert reply.json["error_type"] == "validation"
    assert message in reply.json["error"]


def test_each_engine_is_told_by_its_own_probe(vllm: str, tgi: str) -> None:
    (only,) = get(vllm, "/v1/models").json["data"]
    assert (only["id"], only["max_model_len"]) == ("tiny", 2048)
    assert get(vllm, "/info").status == 404
    info = get(tgi, "/info").json
    assert (info["model_id"], info["max_total_tokens"]) == ("tiny", 2048)
    assert get(tgi, "/v1/models").status == 404
    for url in (vllm, tgi):
        assert get(url, "/health").status == 200

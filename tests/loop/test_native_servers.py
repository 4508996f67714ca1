"""Small servers that speak only Ollama's or SGLang's own API: recognised, tested, judged."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner
from drive import WORKLOAD, measured
from scripted import Call, Reply, chunk, serving

from servecap import cli
from servecap.errors import EndpointError
from servecap.probe import TargetSpec
from servecap.record import Outcome
from servecap.scenario import ClosedLoop, Scenario

FIRST_S, NEXT_S = 0.04, 0.01
LOAD = Scenario(load=ClosedLoop(users=3, think_s=(0.0, 0.02), queue=12), workload=WORKLOAD)
TAGS = b'{"models":[{"name":"tiny:1b","size":1}]}'
INFO = b'{"model_path":"some/model","is_generation":true}'


def asked_tokens(call: Call) -> int:
    body = json.loads(call.body)
    told = body.get("options") or body["sampling_params"]
    return int(told.get("num_predict") or told["max_new_tokens"])


async def ollama(call: Call) -> None:
    await call.head("Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    text = (
        '"message":{"role":"assistant","content":"x"}' if "chat" in call.path else '"response":"x"'
    )
    tokens = asked_tokens(call)
    for number in range(tokens):
        await asyncio.sleep(NEXT_S if number else FIRST_S)
        await call.write(chunk(b'{"model":"m","created_at":"%d",%b,"done":false}\n' % (
            number, text.encode()
        )))  # fmt: skip
    end = (
        b'{"done":true,"done_reason":"length","total_duration":9,"prompt_eval_count":8,'
        b'"prompt_eval_duration":30000000,"eval_count":%d,"eval_duration":80000000}\n' % tokens
    )
    await call.write(chunk(end), b"0\r\n\r\n")


async def sglang(call: Call) -> None:
    await call.head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
    tokens = asked_tokens(call)
    for number in range(1, tokens + 1):
        await asyncio.sleep(NEXT_S if number > 1 else FIRST_S)
        finish = {"type": "length", "length": tokens} if number == tokens else None
        meta = {"prompt_tokens": 8, "completion_tokens": number, "finish_reason": finish}
        event = {"text": "x" * number, "meta_info": meta}
        await call.write(chunk(b"data: " + json.dumps(event).encode() + b"\n\n"))
    await call.write(chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n")


async def nothing(call: Call) -> None:
    await call.whole(b"{}", status="404 Not Found")


NATIVE = [
    ("auto", "ollama-chat", ollama, {"/api/tags": TAGS}),
    ("ollama-generate", "ollama-generate", ollama, {"/api/tags": TAGS}),
    ("auto", "sglang", sglang, {"/get_model_info": INFO}),
    ("sglang", "sglang", sglang, {}),
]


@pytest.mark.parametrize(("api", "name", "reply", "told"), NATIVE)
def test_a_run_against_a_server_of_that_kind(
    api: str, name: str, reply: Reply, told: dict[str, bytes]
) -> None:
    with serving(reply) as server:
        server.trial, server.models, server.told = reply, nothing, told
        run = measured(server.url, LOAD, target=TargetSpec(url=server.url, api=api))
    assert run.header.target.api == name
    assert run.header.target.model == ("tiny:1b" if name.startswith("ollama") else None)
    assert {r.outcome for r in run.records} == {Outcome.OK}
    for record in run.records:
        assert (record.prompt_tokens, record.output_tokens) == (8, 2)
        assert record.chunk_tokens.tolist() == [1, 1]
        assert record.ttft_sent_s is not None
        assert record.ttft_sent_s >= 0.9 * FIRST_S, "the server never answers sooner"
        assert record.tpot_s is not None
        assert len(record.chunk_s) == 2
    if name.startswith("ollama"):
        assert run.records[0].server is not None
        assert run.records[0].server.prefill_s == 0.03


@pytest.mark.parametrize(("api", "name", "reply", "told"), NATIVE)
def test_doctor_recognises_it(api: str, name: str, reply: Reply, told: dict[str, bytes]) -> None:
    with serving(reply) as server:
        server.trial, server.models, server.told = reply, nothing, told
        args = ["doctor", "--json", "--url", server.url, "--api", api]
        done = CliRunner().invoke(cli.cli, args, standalone_mode=False)
    assert done.exception is None, done.output
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert found["API"]["said"].startswith(name)
    assert found["streaming"]["said"] == "16 chunks for 16 tokens"
    assert found["token counts"]["said"] == "by the server"
    assert found["answer length"]["state"] == "ok"


def test_server_that_speaks_none_of_them_is_told_what_was_tried() -> None:
    with serving() as server:
        server.models = nothing
        with pytest.raises(EndpointError) as caught:
            measured(server.url, LOAD)
    for path in ("/v1/models", "/info", "/api/tags", "/get_model_info", "ollama-chat", "sglang"):
        assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ollama_without_the_model_that_is_asked_for() -> None:
    with serving(ollama) as server:
        server.trial, server.models, server.told = ollama, nothing, {"/api/tags": TAGS}
        target = TargetSpec(url=server.url, model="other")
        with pytest.raises(EndpointError, match="served: tiny:1b"):
            measured(server.url, LOAD, target=target)

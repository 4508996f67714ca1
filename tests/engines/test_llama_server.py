"""The llama.cpp fixture itself: it answers, counts exactly, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from llama import build_model, running_llama

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Answer:
    """The stream's JSON events in order, and whether `[DONE]` came last."""

    events: list[dict[str, Any]]
    done: bool

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]


def ask(url: str, path: str, tokens: int, prompt: str = "What is the answer?") -> Answer:
    body: dict[str, Any] = {
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    lines = [line.removeprefix("data: ") for line in response.read().decode().split("\n") if line]
    connection.close()
    done = lines[-1] == "[DONE]"
    return Answer([json.loads(line) for line in lines[: -1 if done else None]], done)


def get(url: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def contents(answer: Answer) -> list[str]:
    """The texts of the chat deltas that say something."""
    deltas = [event["choices"][0]["delta"] for event in answer.events if event["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


def test_chat_stream_has_role_first_and_usage_with_timings_last(llama_url: str) -> None:
    answer = ask(llama_url, CHAT, 12)
    assert answer.done
    assert answer.events[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert answer.last["choices"] == []
    assert answer.last["usage"]["completion_tokens"] == 12
    timings = answer.last["timings"]
    assert timings["predicted_n"] == 12
    assert timings["prompt_ms"] > 0
    assert timings["predicted_ms"] > 0
    assert answer.events[-2]["choices"][0]["finish_reason"] == "length"


def test_completions_stream_has_usage_in_the_last_chunk_with_choices(llama_url: str) -> None:
    answer = ask(llama_url, COMPLETIONS, 7)
    assert answer.done
    assert answer.last["choices"][0]["finish_reason"] == "length"
    assert answer.last["usage"]["completion_tokens"] == 7
    texts = [event["choices"][0]["text"] for event in answer.events]
    assert len([text for text in texts if text]) == 7


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("tokens", [1, 2, 33, 128])
def test_answer_has_exactly_the_tokens_asked_for(llama_url: str, path: str, tokens: int) -> None:
    usage = ask(llama_url, path, tokens).last["usage"]
    assert usage["completion_tokens"] == tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + tokens


def test_every_chunk_is_one_token(llama_url: str) -> None:
    assert len(contents(ask(llama_url, CHAT, 64))) == 64


def test_cut_characters_give_fewer_chunks_than_tokens(tmp_path: Path, llama_url: str) -> None:
    del llama_url  # only to be skipped where llama.cpp is not installed
    model = build_model(tmp_path / "bytes.gguf", "tiny", cut_characters=True)
    with running_llama(model, 1) as url:
        answer = ask(url, CHAT, 96)
    assert answer.last["usage"]["completion_tokens"] == 96
    assert 0 < len(contents(answer)) < 96


def test_more_requests_than_slots_are_all_answered(llama_url: str) -> None:
    prompts = [f"number {i} please" for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda prompt: ask(llama_url, CHAT, 20, prompt), prompts))
    assert [answer.last["usage"]["completion_tokens"] for answer in answers] == [20] * 16
    assert all(answer.done for answer in answers)


def test_health_models_and_metrics_answer(llama_url: str) -> None:
    assert get(llama_url, "/health") == (200, '{"status":"ok"}')
    status, models = get(llama_url, "/v1/models")
    assert (status, json.loads(models)["data"][0]["id"]) == (200, "tiny")
    status, metrics = get(llama_url, "/metrics")
    assert status == 200
    assert "llamacpp:requests_processing" in metrics


def test_slow_server_has_four_slots_and_counts_exactly(slow_llama_url: str) -> None:
    status, props = get(slow_llama_url, "/props")
    assert (status, json.loads(props)["total_slots"]) == (200, 4)
    assert ask(slow_llama_url, CHAT, 16).last["usage"]["completion_tokens"] == 16


def test_leaving_the_block_ends_the_server(tiny_model: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with running_llama(tiny_model, 1) as url:
        started = set(psutil.Process().children(recursive=True)) - before
        assert started
        assert get(url, "/health")[0] == 200
    assert not [process for process in started if process.is_running()]
    with pytest.raises(ConnectionRefusedError):
        get(url, "/health")


def test_error_in_the_block_ends_the_server(tiny_model: Path) -> None:
    with pytest.raises(ZeroDivisionError), running_llama(tiny_model, 1) as url:
        1 / 0  # noqa: B018
    with pytest.raises(ConnectionRefusedError):
        get(url, "/health")


def test_missing_model_is_told_and_leaves_no_process(tmp_path: Path, tiny_model: Path) -> None:
    del tiny_model  # only to be skipped where llama.cpp is not installed
    before = set(psutil.Process().children(recursive=True))
    with (
        pytest.raises(RuntimeError, match="did not start"),
        running_llama(tmp_path / "none.gguf", 1),
    ):
        pass
    assert set(psutil.Process().children(recursive=True)) <= before


def test_server_does_not_outlive_a_killed_starter(tiny_model: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from llama import running_llama\n"
        f"with running_llama(Path({str(tiny_model)!r}), 1) as url:\n"
        "    print(url, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The server inherits this standard error: it reads to its end only when the server is gone.
    starter = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, _ = starter.communicate(timeout=30)
    with pytest.raises(ConnectionRefusedError):
        get(output.strip(), "/health")

"""The emulator under load and under mistreatment, over real sockets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from raw_http import SMALL, Json, connect, get, metric, post, post_bytes, wait_for

from servecap.emulate.config import EmulatorConfig
from servecap.emulate.launch import running, start
from servecap.errors import UsageError

CHAT = "/v1/chat/completions"


@pytest.fixture
def fresh() -> Iterator[str]:
    with running(SMALL) as url:
        yield url


def chat(tokens: int, *, prompt: str = "one two three", stream: bool = True) -> Json:
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
        "stream_options": {"include_usage": True},
    }


def changed(**fields: object) -> EmulatorConfig:
    return msgspec.structs.replace(SMALL, **fields)


def test_sixty_four_streams_at_once_are_all_whole(fresh: str) -> None:
    def one(number: int) -> tuple[int, int]:
        reply = post(fresh, CHAT, chat(40 + number, prompt="word " * (number + 1)))
        assert reply.complete
        assert reply.chunks[-1] == b"data: [DONE]\n\n"
        usage = json.loads(reply.chunks[-2].removeprefix(b"data: "))["usage"]
        assert len(reply.chunks) == 1 + usage["completion_tokens"] + 2
        return usage["prompt_tokens"], usage["completion_tokens"]

    with ThreadPoolExecutor(64) as pool:
        usages = list(pool.map(one, range(64)))
    assert usages == [(number + 1, 40 + number) for number in range(64)]
    assert metric(fresh, "vllm:prompt_tokens_total") == sum(p for p, _ in usages)
    assert metric(fresh, "vllm:generation_tokens_total") == sum(o for _, o in usages)
    assert metric(fresh, "vllm:time_to_first_token_seconds_count") == 64
    gaps = sum(o - 1 for _, o in usages)
    assert metric(fresh, "vllm:inter_token_latency_seconds_count") == gaps
    assert metric(fresh, "vllm:e2e_request_latency_seconds_count") == 64
    assert metric(fresh, "vllm:request_success_total", finished_reason="length") == 64
    assert metric(fresh, "vllm:kv_cache_usage_perc") == 0


def test_first_tokens_wait_longer_under_load() -> None:
    """With one place, each of four simultaneous requests waits for those before it."""
    body = {"inputs": "a b c", "parameters": {"max_new_tokens": 20, "ignore_eos": True}}
    with running(changed(engine="tgi", speed=1, max_running=1)) as url:
        alone = post(url, "/generate", body).headers
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: post(url, "/generate", body), range(4)))
    service_ms = int(alone["x-inference-time"])
    assert int(alone["x-queue-time"]) < service_ms / 4
    waits = sorted(int(reply.headers["x-queue-time"]) for reply in replies)
    # Arrivals are a little apart, so a wait may be shorter than whole services.
    for place, wait_ms in enumerate(waits):
        assert wait_ms > (place - 0.9) * service_ms


def test_metrics_can_be_parsed_and_have_the_names_of_vllm(fresh: str) -> None:
    post(fresh, CHAT, chat(5))
    reply = get(fresh, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    families = {f.name: f.type for f in text_string_to_metric_families(reply.body.decode())}
    expected = {
        "vllm:num_requests_running": "gauge",
        "vllm:num_requests_waiting": "gauge",
        "vllm:kv_cache_usage_perc": "gauge",
        "vllm:gpu_cache_usage_perc": "gauge",
        "vllm:prompt_tokens": "counter",
        "vllm:generation_tokens": "counter",
        "vllm:num_preemptions": "counter",
        "vllm:request_success": "counter",
        "vllm:time_to_first_token_seconds": "histogram",
        "vllm:inter_token_latency_seconds": "histogram",
        "vllm:time_per_output_token_seconds": "histogram",
        "vllm:request_time_per_output_token_seconds": "histogram",
        "vllm:e2e_request_latency_seconds": "histogram",
        "vllm:request_queue_time_seconds": "histogram",
        "vllm:request_prefill_time_seconds": "histogram",
        "vllm:request_decode_time_seconds": "histogram",
    }
    assert expected.items() <= families.items()
    assert metric(fresh, "vllm:e2e_request_latency_seconds_bucket", le="+Inf") == 1
    assert metric(fresh, "vllm:num_requests_running", model_name="tiny") == 0


def test_a_client_that_leaves_frees_its_place() -> None:
    with running(changed(speed=0.05)) as url:  # its answer would take minutes
        with connect(url) as connection:
            connection.sendall(post_bytes(CHAT, chat(1500)))
            while b'"content":" ' not in connection.recv(1 << 16):
                pass
            assert metric(url, "vllm:num_requests_running") == 1
            assert metric(url, "vllm:kv_cache_usage_perc") > 0
        wait_for(url, "vllm:num_requests_running", 0)
        wait_for(url, "vllm:request_success_total", 1, finished_reason="abort")
        assert metric(url, "vllm:kv_cache_usage_perc") == 0


def test_a_client_that_leaves_while_queueing_frees_its_place() -> None:
    with running(changed(speed=0.05, max_running=1)) as url, connect(url) as first:
        first.sendall(post_bytes(CHAT, chat(1500)))
        wait_for(url, "vllm:num_requests_running", 1)
        with connect(url) as second:
            second.sendall(post_bytes(CHAT, chat(1500)))
            wait_for(url, "vllm:num_requests_waiting", 1)
        wait_for(url, "vllm:num_requests_waiting", 0)


def test_a_client_that_does_not_read_is_cut_off() -> None:
    config = EmulatorConfig(model="llama-3.1-8b", gpu="h100", speed=1000)
    with running(config) as url, connect(url) as connection:
        connection.sendall(post_bytes(CHAT, chat(60_000)))  # 12 MB that nobody reads
        wait_for(url, "vllm:request_success_total", 1, finished_reason="abort")
        assert metric(url, "vllm:num_requests_running") == 0


def test_a_full_queue_is_answered_with_429() -> None:
    with (
        running(changed(speed=0.05, max_running=1, max_queue=1)) as url,
        connect(url) as first,
        connect(url) as second,
    ):
        first.sendall(post_bytes(CHAT, chat(1500)))
        wait_for(url, "vllm:num_requests_running", 1)
        second.sendall(post_bytes(CHAT, chat(1500)))
        wait_for(url, "vllm:num_requests_waiting", 1)
        third = post(url, CHAT, chat(5))
        assert third.status == third.json["error"]["code"] == 429
        fourth = post(url, "/generate", {"inputs": "a"})
        assert (fourth.status, fourth.json["error_type"]) == (429, "overloaded")


def test_a_key_is_wanted_where_there_is_one() -> None:
    with running(changed(api_key="secret")) as url:
        for reply in (post(url, CHAT, chat(2)), get(url, "/v1/models")):
            assert reply.status == 401
            assert reply.json["error"]["type"] == "AuthenticationError"
        assert post(url, CHAT, chat(2), Authorization="Bearer wrong").status == 401
        assert post(url, CHAT, chat(2), Authorization="Bearer secret").status == 200
        assert get(url, "/health").status == 200


def test_faults_come_when_asked_for() -> None:
    with running(changed(fail_share=1.0)) as url:
        assert post(url, CHAT, chat(5)).status == 500
        assert post(url, "/generate", {"inputs": "a"}).status == 500
    with running(changed(cut_share=1.0)) as url:
        reply = post(url, CHAT, chat(40))
        assert reply.status == 200
        assert not reply.complete
        assert 0 < len(reply.chunks) <= 21
        wait_for(url, "vllm:num_requests_running", 0)
    with running(changed(fail_share=0.3, seed=5)) as url:
        statuses = [post(url, CHAT, chat(2)).status for _ in range(30)]
    assert set(statuses) == {200, 500}
    with running(changed(fail_share=0.3, seed=5)) as url:
        assert [post(url, CHAT, chat(2)).status for _ in range(30)] == statuses


def test_a_frozen_server_lets_everybody_wait() -> None:
    with running(changed(freeze_s=0.5)) as url:
        began_s = time.monotonic()
        post(url, CHAT, chat(2))
        assert time.monotonic() - began_s >= 0.5
        # It happens once; the engine's own time for two tokens is below a millisecond here.
        assert metric(url, "servecap:emulator_lag_max_seconds") >= 0.4


def test_http_1_0_gets_an_unframed_stream(fresh: str) -> None:
    request = post_bytes(CHAT, chat(3)).replace(b"HTTP/1.1", b"HTTP/1.0")
    with connect(fresh) as connection:
        connection.sendall(request)
        parts = []
        while data := connection.recv(1 << 16):
            parts.append(data)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_connection_serves_one_request_after_another(fresh: str) -> None:
    request = post_bytes(CHAT, chat(3)).replace(b"Connection: close\r\n", b"")
    with connect(fresh) as connection:
        for _ in range(3):
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += connection.recv(1 << 16)
            assert answer.count(b"HTTP/1.1 200 OK") == 1


def test_configurations_that_make_no_sense_are_refused(fresh: str) -> None:
    port = int(fresh.rpartition(":")[2])
    for config, message in (
        (changed(speed=0), "speed is 0; it must be from 0.001 to 1000"),
        (changed(port=70_000), "port is 70000"),
        (changed(fail_share=1.5), "fail_share is 1.5"),
        (changed(max_queue=-1), "max_queue is -1; it must be at least 0"),
        (changed(model="gpt-5"), "model 'gpt-5' is neither built in"),
        (changed(gpu="a100"), "say a100-40gb or a100-80gb"),
        (changed(tp=1, model="llama-65b"), "smallest tp that fits is 4"),
        (changed(port=port), f"cannot listen on 127.0.0.1:{port}: Address already in use"),
        (changed(host="no-such.invalid"), "cannot listen on --host 'no-such.invalid'"),
    ):
        with pytest.raises(UsageError) as caught:
            start(config)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_stopping_cuts_open_streams_and_ends_the_thread() -> None:
    emulator = start(changed(speed=0.05))
    with connect(emulator.url) as connection:
        connection.sendall(post_bytes(CHAT, chat(1500)))
        wait_for(emulator.url, "vllm:num_requests_running", 1)
        emulator.stop()
        while connection.recv(1 << 16):
            pass
    emulator.stop()  # a second time is no error
    with pytest.raises(ConnectionRefusedError):
        connect(emulator.url)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_server_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    code = (
        "from servecap.emulate.config import EmulatorConfig\n"
        "from servecap.emulate.launch import serve\n"
        "serve(EmulatorConfig(model='llama-7b', gpu='a30'), lambda url: print(url, flush=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert get(url, "/health").status == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert errors == ""

"""Metrics of each kind of server and exporter, under common names."""

from __future__ import annotations

import math

import pytest

from servecap.sample import Source
from servecap.telemetry import exposition

VLLM = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0"} 2.0
vllm:prefix_cache_queries_total 100.0
vllm:prefix_cache_hits_total 40.0
process_resident_memory_bytes 1.5e+09
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_sum{engine="0"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 2.0
vllm:time_to_first_token_seconds_sum{engine="1"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.1"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf"} 3.0
"""
SGLANG = """
sglang:num_running_reqs{model_name="m"} 5.0
sglang:num_queue_reqs{model_name="m"} 2.0
sglang:token_usage{model_name="m"} 0.28
sglang:prompt_tokens_total{model_name="m"} 8.0
sglang:cached_tokens_total{model_name="m"} 6.0
"""
TGI = """
tgi_batch_current_size 7
tgi_queue_size 1
tgi_request_mean_time_per_token_duration_bucket{le="0.1"} 4
tgi_request_mean_time_per_token_duration_bucket{le="+Inf"} 4
tgi_request_mean_time_per_token_duration_sum 0.2
tgi_request_mean_time_per_token_duration_count 4
"""
LLAMA = """
llamacpp:requests_processing 4
llamacpp:requests_deferred 12
llamacpp:prompt_tokens_total 100
llamacpp:tokens_predicted_total 50
"""
TRITON = """
nv_trt_llm_request_metrics{model="t",request_type="waiting",version="1"} 1
nv_trt_llm_request_metrics{model="t",request_type="scheduled",version="1"} 2
nv_trt_llm_request_metrics{model="t",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="t"} 0.5
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="t"} 6239
"""
DCGM = """
DCGM_FI_DEV_GPU_UTIL{gpu="0"} 90
DCGM_FI_DEV_GPU_UTIL{gpu="1"} 70
DCGM_FI_DEV_FB_USED{gpu="0"} 1024
DCGM_FI_DEV_FB_USED{gpu="1"} 1024
DCGM_FI_DEV_POWER_USAGE{gpu="0"} 300.5
DCGM_FI_DEV_SM_CLOCK{gpu="0"} 1410
DCGM_FI_DEV_SM_CLOCK{gpu="1"} 1200
DCGM_FI_DEV_CLOCKS_EVENT_REASONS{gpu="0"} 4
DCGM_FI_DEV_CLOCKS_EVENT_REASONS{gpu="1"} 64
"""
NODE = """
node_cpu_seconds_total{cpu="0",mode="idle"} 30
node_cpu_seconds_total{cpu="0",mode="user"} 10
node_network_receive_bytes_total{device="lo"} 1e9
node_network_receive_bytes_total{device="eth0"} 5e3
node_memory_MemAvailable_bytes 4e9
"""


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        (
            VLLM,
            "server",
            {
                "running": 7,
                "kv_used_share": 0.75,
                "preemptions": 2,
                "prefix_asked_tokens": 100,
                "prefix_hit_tokens": 40,
                "rss_bytes": 1.5e9,
            },
        ),
        (
            SGLANG,
            "server",
            {
                "running": 5,
                "waiting": 2,
                "kv_used_share": 0.28,
                "prompt_tokens": 8,
                "prefix_hit_tokens": 6,
            },
        ),
        (TGI, "server", {"running": 7, "waiting": 1}),
        (
            LLAMA,
            "server",
            {"running": 4, "waiting": 12, "prompt_tokens": 100, "output_tokens": 50},
        ),
        (TRITON, "server", {"running": 2, "waiting": 1, "kv_used_share": 0.5}),
        (
            DCGM,
            "gpu",
            {
                "util_share": 0.8,
                "memory_used_bytes": 2 * 1024 * 2**20,
                "power_w": 300.5,
                "sm_clock_hz": 1.2e9,
                "throttled_share": 0.5,
            },
        ),
        (
            NODE,
            "node",
            {"idle_s": 30, "cpu_s": 40, "memory_free_bytes": 4e9, "received_bytes": 5e3},
        ),
    ],
)
def test_common_names(text: str, source: Source, expected: dict[str, float]) -> None:
    assert exposition.figures(exposition.series(text), source) == pytest.approx(expected)


def test_histograms_of_several_engines_are_one() -> None:
    (found,) = exposition.histograms(exposition.series(VLLM)).values()
    assert list(found.bounds_s) == [0.1]
    assert list(found.counts) == [4, 5]
    assert found.mean_s == pytest.approx(0.6)
    assert found.between(0.5) == (0.0, 0.1)
    assert found.between(0.99) == (0.1, None)
    assert found.since(found) is None
    assert exposition.histograms(exposition.series(TGI))["tpot"].mean_s == pytest.approx(0.05)


def test_what_is_no_number_is_absent() -> None:
    told = exposition.series("vllm:kv_cache_usage_perc NaN\nllamacpp:requests_processing 1\n")
    assert exposition.figures(told, "server") == {"running": 1.0}
    assert math.isnan(told["vllm:kv_cache_usage_perc"][0][1])

"""What servers and exporters call their figures, and what we call them.

Source:
    The metrics pages and the code of vLLM (0.4 to 0.15), SGLang 0.5, TGI 3, llama.cpp's server,
    TensorRT-LLM (trtllm-serve, and its Triton backend), NVIDIA's DCGM exporter 4 and Prometheus'
    node exporter 1.9.
"""

from __future__ import annotations

from typing import Literal

import msgspec

How = Literal["sum", "max", "mean", "min"]  # of several series: engines, GPUs, disks


class Figure(msgspec.Struct, frozen=True):
    """Where a common figure is read from: the first of `names` that is there."""

    names: tuple[str, ...]
    how: How = "sum"
    times: float = 1.0
    where: tuple[str, str] | None = None  # only series with this label
    unless: tuple[str, str] | None = None  # and not with this one


SERVER: dict[str, Figure] = {
    "running": Figure(
        (
            "vllm:num_requests_running",
            "sglang:num_running_reqs",
            "tgi_batch_current_size",
            "llamacpp:requests_processing",
            "trtllm_num_requests_running",
        )
    ),
    "waiting": Figure(
        (
            "vllm:num_requests_waiting",
            "sglang:num_queue_reqs",
            "tgi_queue_size",
            "llamacpp:requests_deferred",
            "trtllm_num_requests_waiting",
            "nv_inference_pending_request_count",
        )
    ),
    "kv_used_share": Figure(
        (
            "vllm:kv_cache_usage_perc",
            "vllm:gpu_cache_usage_perc",
            "sglang:token_usage",
            "llamacpp:kv_cache_usage_ratio",
            "trtllm_kv_cache_utilization",
        ),
        how="max",
    ),
    "preemptions": Figure(("vllm:num_preemptions_total", "sglang:num_retracted_requests_total")),
    "prefix_hit_tokens": Figure(
        (
            "vllm:prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_hits_total",
            "sglang:cached_tokens_total",
        )
    ),
    "prefix_asked_tokens": Figure(
        ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
    ),
    "prompt_tokens": Figure(
        ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "llamacpp:prompt_tokens_total")
    ),
    "output_tokens": Figure(
        (
            "vllm:generation_tokens_total",
            "sglang:generation_tokens_total",
            "llamacpp:tokens_predicted_total",
        )
    ),
    "rss_bytes": Figure(("process_resident_memory_bytes",)),
}

# Triton's backend of TensorRT-LLM tells one metric's parts by a label.
TRITON: dict[str, Figure] = {
    "running": Figure(("nv_trt_llm_request_metrics",), where=("request_type", "scheduled")),
    "waiting": Figure(("nv_trt_llm_request_metrics",), where=("request_type", "waiting")),
    "kv_used_share": Figure(
        ("nv_trt_llm_kv_cache_block_metrics",),
        how="max",
        where=("kv_cache_block_type", "fraction"),
    ),
}

HISTOGRAMS: dict[str, tuple[str, ...]] = {
    "ttft": (
        "vllm:time_to_first_token_seconds",
        "sglang:time_to_first_token_seconds",
        "trtllm_time_to_first_token_seconds",
    ),
    "tpot": (
        "vllm:request_time_per_output_token_seconds",
        "tgi_request_mean_time_per_token_duration",
        "trtllm_time_per_output_token_seconds",
    ),
    "gap": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "sglang:inter_token_latency_seconds",
        "sglang:time_per_output_token_seconds",
    ),
    "e2e": (
        "vllm:e2e_request_latency_seconds",
        "sglang:e2e_request_latency_seconds",
        "tgi_request_duration",
        "trtllm_e2e_request_latency_seconds",
    ),
    "queue": (
        "vllm:request_queue_time_seconds",
        "sglang:queue_time_seconds",
        "tgi_request_queue_duration",
        "trtllm_request_queue_time_seconds",
    ),
}

_MIB = 2.0**20
DCGM: dict[str, Figure] = {
    "util_share": Figure(("DCGM_FI_DEV_GPU_UTIL",), how="mean", times=0.01),
    "memory_used_bytes": Figure(("DCGM_FI_DEV_FB_USED",), times=_MIB),
    "memory_free_bytes": Figure(("DCGM_FI_DEV_FB_FREE",), times=_MIB),
    "power_w": Figure(("DCGM_FI_DEV_POWER_USAGE",)),
    "sm_clock_hz": Figure(("DCGM_FI_DEV_SM_CLOCK",), how="min", times=1e6),
    "temperature_c": Figure(("DCGM_FI_DEV_GPU_TEMP",), how="max"),
}
# Bit masks, as in NVML's nvmlClocksEventReasons: hardware slowdown, software and hardware thermal,
# hardware power brake. A software power cap (4) is how a full GPU normally runs.
DCGM_REASONS = ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS")
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80

NODE: dict[str, Figure] = {
    "idle_s": Figure(("node_cpu_seconds_total",), where=("mode", "idle")),
    "cpu_s": Figure(("node_cpu_seconds_total",)),
    "memory_free_bytes": Figure(("node_memory_MemAvailable_bytes",)),
    "memory_total_bytes": Figure(("node_memory_MemTotal_bytes",)),
    "disk_read_bytes": Figure(("node_disk_read_bytes_total",)),
    "disk_written_bytes": Figure(("node_disk_written_bytes_total",)),
    "received_bytes": Figure(("node_network_receive_bytes_total",), unless=("device", "lo")),
    "sent_bytes": Figure(("node_network_transmit_bytes_total",), unless=("device", "lo")),
}

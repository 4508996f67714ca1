"""Which engine is meant: a model on some GPUs, served by an engine of some era."""

from __future__ import annotations

from typing import Literal

import msgspec

from servecap.engine.cost import (
    CUDA_GRAPHS,
    EAGER_2023,
    FUSED_PASSES,
    LLAMA_CPP_HOST,
    SEPARATE_PASSES,
    VLLM_2023_HOST,
    VLLM_2024_HOST,
    Efficiency,
    HostCost,
    Passes,
    StepCoefficients,
    roofline,
)
from servecap.engine.engine import Engine
from servecap.engine.hardware import Gpu, gpu
from servecap.engine.memory import kv_tokens
from servecap.engine.model import KvDtype, model
from servecap.engine.scheduler import (
    ChunkedPrefill,
    Policy,
    PrefillFirst,
    Vllm2023,
    static_batching,
    step_tokens,
)
from servecap.errors import UsageError

EngineKind = Literal[
    "vllm", "vllm-2025", "vllm-2024", "vllm-2023", "tgi", "sglang", "llama.cpp", "static"
]


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One instance: names that `model()` and `gpu()` know, and the tensor-parallel degree.

    `engine`: "vllm" is vLLM since 0.14 (chunked prefill, CUDA graphs, steps planned ahead);
    "vllm-2025" is vLLM V1 until 0.13, or a later one with `--no-async-scheduling` (a step is
    planned when the one before it has ended); "vllm-2024" is vLLM 0.6 and 0.7 (V0: whole prompts
    first, CUDA graphs); "vllm-2023" is vLLM until 0.5 (likewise, with a slower host; recomputed
    when memory ran out); "tgi" is TGI 1.x over an eager PyTorch model of 2023 (prompts first,
    answers reserved); "sglang" lets prompts go first as soon as there are any, in up to 8192
    tokens at once, planned ahead, too; "llama.cpp" is its server, scheduled as "vllm-2025";
    "static" serves one batch after the other.
    `max_running`: None is the engine's own limit, `usual_running`; with a `policy`, other settings
    than the engine's defaults, it is the policy's.
    `weights`: one of `model.WEIGHT_NAMES`, instead of what the model's name says; `kv_dtype`: None
    is 16 bits. `prefix_cache`: whether leading blocks that prompts have in common are kept.
    """

    model: str
    gpu: str
    tp: int = 1
    engine: EngineKind = "vllm"
    max_running: int | None = None
    gpu_memory_gb: float | None = None  # where the GPU's name leaves it open
    policy: Policy | None = None
    weights: str | None = None
    kv_dtype: KvDtype | None = None
    prefix_cache: bool = False


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is made of: its step times, its scheduler and its room."""

    cost: StepCoefficients
    policy: Policy
    kv_tokens: int
    max_context_tokens: int


def instance(spec: EngineSpec) -> Instance:
    """What an engine as *spec* says is made of.

    Raises:
        UsageError: a name is unknown, a number out of range, or the model does not fit.
    """
    shape = model(spec.model, weights=spec.weights, kv_dtype=spec.kv_dtype)
    device = gpu(spec.gpu, memory_gb=spec.gpu_memory_gb)
    policy = spec.policy or default_policy(spec)
    budget = step_tokens(policy)
    room = kv_tokens(shape, device, spec.tp, step_tokens=budget, sequences=policy.max_running)
    return Instance(
        cost=roofline(
            shape,
            device,
            spec.tp,
            host_cost(spec.engine),
            Efficiency(
                passes=passes_of(spec.engine),
                joint_attention=joint_attention(spec.engine, device),
            ),
        ),
        policy=policy,
        kv_tokens=room,
        max_context_tokens=shape.max_context_tokens,
    )


def build(spec: EngineSpec) -> Engine:
    """A fresh engine as *spec* says.

    Raises:
        UsageError: as `instance`.
    """
    made = instance(spec)
    return Engine(
        made.cost,
        made.policy,
        kv_tokens=made.kv_tokens,
        max_context_tokens=made.max_context_tokens,
        prefix_cache=spec.prefix_cache,
    )


def default_policy(spec: EngineSpec) -> Policy:
    """The engine's own scheduler with its default settings on that GPU.

    Raises:
        UsageError: the GPU is unknown, or `max_running` out of range.
    """
    device = gpu(spec.gpu, memory_gb=spec.gpu_memory_gb)
    running = usual_running(spec.engine, device) if spec.max_running is None else spec.max_running
    if running < 1:
        raise UsageError(f"max_running is {running}; it must be at least 1")
    step = max(usual_step_tokens(spec.engine, device), running)
    match spec.engine:
        case "vllm":
            return vllm_policy(max_running=running, step_tokens=step)
        case "vllm-2025":
            return vllm_2025_policy(max_running=running, step_tokens=step)
        case "llama.cpp":
            return llama_cpp_policy(max_running=running, step_tokens=step)
        case "tgi":
            return PrefillFirst(max_running=running)
        case "sglang":
            return sglang_policy(max_running=running)
        case "vllm-2024" | "vllm-2023":
            return Vllm2023(max_running=running)
        case "static":
            return static_batching(max_running=running)


def usual_running(engine: EngineKind, device: Gpu) -> int:
    """Requests that such an engine computes at once on that GPU, if it is told nothing else.

    Source: vLLM's max_num_seqs, 256, in V1 1024 on large GPUs (`EngineArgs.get_batch_defaults`).
    SGLang takes 2048 and more, by its memory (`max_running_requests`). TGI's router knows no such
    number (1.x): the tokens that fit decide alone; 2000 are more than any machine here can hold.
    """
    match engine:
        case "tgi":
            return 2000
        case "sglang":
            return 2048
        case "vllm" | "vllm-2025":
            return 1024 if _large(device) else 256
        case _:
            return 256


def usual_step_tokens(engine: EngineKind, device: Gpu) -> int:
    """Tokens that such an engine computes in one step on that GPU, if it is told nothing else.

    Source: as `usual_running`: vLLM's API server takes 8192 on large GPUs and 2048 on others.
    """
    if engine == "sglang":
        return 8192
    return 8192 if engine in ("vllm", "vllm-2025") and _large(device) else 2048


def _large(device: Gpu) -> bool:
    """By vLLM's own rule: 70 GiB and more, but no A100, where larger steps cost throughput."""
    return device.memory_gib >= 70 and "A100" not in device.name


def vllm_policy(*, max_running: int, step_tokens: int = 2048) -> ChunkedPrefill:
    """vLLM's default since 0.14 (January 2026): asynchronous scheduling, as no flag says otherwise.

    Source: vLLM's pull request 27614.
    """
    return ChunkedPrefill(step_tokens=step_tokens, max_running=max_running, plans_ahead=True)


def vllm_2025_policy(*, max_running: int, step_tokens: int = 2048) -> ChunkedPrefill:
    """vLLM V1's default until 0.13: a step is planned when the one before it has ended."""
    return ChunkedPrefill(step_tokens=step_tokens, max_running=max_running)


def llama_cpp_policy(*, max_running: int, step_tokens: int = 2048) -> ChunkedPrefill:
    """llama.cpp's server: those who decode and chunks of prompts in batches of 2048 tokens.

    Source: its server's loop, `update_slots`, and its default of --batch-size.
    """
    return ChunkedPrefill(step_tokens=step_tokens, max_running=max_running)


def sglang_policy(*, max_running: int, step_tokens: int = 8192) -> PrefillFirst:
    """SGLang's default: prompts go first whenever there are any; a prefill stalls decode.

    Longer prompts than `step_tokens` are not cut in this model, they are refused. The next batch is
    made while the GPU computes the last one (its overlap scheduler, on by default since 0.4).
    Source: SGLang's scheduler (python/sglang/srt/managers/scheduler.py), default settings.
    """
    return PrefillFirst(
        waiting_served_ratio=0.0,
        max_waiting_tokens=1,
        max_batch_prefill_tokens=step_tokens,
        max_running=max_running,
        decode_between=False,
        plans_ahead=True,
    )


def passes_of(engine: EngineKind) -> Passes:
    """How an engine of that kind goes over its vectors between the matrices."""
    match engine:
        case "vllm" | "vllm-2025" | "vllm-2024" | "sglang" | "llama.cpp":
            return FUSED_PASSES
        case "vllm-2023" | "tgi" | "static":
            return SEPARATE_PASSES


def joint_attention(engine: EngineKind, device: Gpu) -> bool:
    """Whether one kernel serves those who decode and the prompts of the same step.

    Of vLLM V1 with FlashAttention 2: others either never mix the two or have a kernel for each, and
    FlashAttention 3 (9.0) and FlashInfer (10.0) divide the work by what there is.
    """
    generation = device.compute_capability
    v1 = engine in ("vllm", "vllm-2025")
    return v1 and generation is not None and int(generation) in (8, 12)


def host_cost(engine: EngineKind) -> HostCost:
    """What the CPU costs in an engine of that kind."""
    match engine:
        case "vllm" | "vllm-2025" | "sglang":
            return CUDA_GRAPHS
        case "llama.cpp":
            return LLAMA_CPP_HOST
        case "vllm-2024":
            return VLLM_2024_HOST
        case "vllm-2023":
            return VLLM_2023_HOST
        case "tgi" | "static":
            return EAGER_2023

"""How long one step of the engine takes: roofline, all-reduce and the host's time.

A step carries decoding sequences (one token each) and chunks of prompts. Its matrix
multiplications run once over all tokens together, attention apart for the two kinds.

    step = host + max(floor, linear + output layer + attention + all-reduce + elementwise)

where *floor* is the time that the host needs to launch the kernels, layer by layer.
"""

from __future__ import annotations

import math
from typing import Protocol

import msgspec

from servecap.engine.allreduce import AllReduce
from servecap.engine.hardware import READ_SHARE, Gpu
from servecap.engine.shape import ModelShape

# Share of the peak bandwidth that weights are read with from HBM; other memories are in proportion.
WEIGHT_READ_SHARE = READ_SHARE["hbm"]

# Share of the peak bandwidth that keys and values are read with in decode. Source: LMDeploy's
# static batches on an A100-80GB (v0.1.0): 16 to 32 sequences of 2048 tokens of llama2-7b and -13b
# take 15 to 20 ms longer than short ones, which is 0.84 to 0.88; a little less for paging.
KV_READ_SHARE = 0.8

# Share of the peak flops that the attention of a prompt reaches. An assumption: fused kernels of
# 2023 reach about half of the peak. It matters for prompts of many thousand tokens only.
ATTENTION_FLOPS_SHARE = 0.5

# Rows of queries that FlashAttention 2 computes at once, although a decoding sequence has one. In a
# step that only decodes, the query heads of a group share them, and the kernel is bound by reading;
# in one that has prompts, too, each head computes all the rows for its single query.
# Source: vLLM's pull request 58013 (2026): with FlashAttention 2 one call serves both, without what
# it does where `max_seqlen_q` is 1; its grid is made of 64 rows.
JOINT_ROWS = 64


class Passes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to each token's vectors between the matrices, as bytes per element and layer.

    Bytes that the peak bandwidth would move in that time: `hidden` for each element of the hidden
    state (norms, residuals; every GPU does all of it), `feed_forward` and `heads` for each of the
    gated width and of queries and keys (activation; rotation), which tensor parallelism divides.
    `layer_s`: what the kernels of a layer take however few the tokens.
    """

    layer_s: float
    hidden: float
    feed_forward: float
    heads: float


# Kernels of 2023, each on its own: norms reach a third of the bandwidth. Source: Vidur's (MIT)
# profiles of vLLM's kernels, 4096 tokens: llama2-70b on an A100-80GB 37, 11.7 and 9.3; llama2-7b on
# an A40 29, 7.6 and 5.2. On 8 GPUs of an A100 machine that is a fifth of the matrices' time. One
# token: two norms of 7.8 microseconds, two additions of 2, rotation 3, activation 4.
SEPARATE_PASSES = Passes(layer_s=27e-6, hidden=33.0, feed_forward=10.0, heads=7.0)

# Residual and norm in one kernel (4 passes of 2 bytes, twice), gate and activation in one (3), the
# rotation (2): counted, at 85% of the bandwidth, as large copies reach. One token: as above, but
# without the additions.
FUSED_PASSES = Passes(layer_s=22e-6, hidden=19.0, feed_forward=7.0, heads=4.7)


class StepWork(msgspec.Struct, frozen=True):
    """What one step has to do; tokens and sequences."""

    decode_sequences: int = 0
    decode_context: int = 0  # tokens in the KV cache of the decoding sequences, in all
    prefill_tokens: int = 0  # prompt tokens computed in this step
    prefill_pairs: float = 0.0  # (query, key) pairs of their causal attention
    prefill_context: int = 0  # tokens of those prompts that are in the KV cache already
    sampled: int = 0  # sequences that get a token: the output layer runs for these
    prefill_sequences: int = 0  # prompts, or parts of prompts, in this step

    @property
    def tokens(self) -> int:
        return self.decode_sequences + self.prefill_tokens


class StepParts(msgspec.Struct, frozen=True):
    """Where a step's seconds go; `floor_s` overlaps with the five GPU parts."""

    host_s: float
    floor_s: float
    linear_s: float
    output_layer_s: float
    attention_s: float
    allreduce_s: float
    elementwise_s: float

    @property
    def gpu_s(self) -> float:
        matrices_s = self.linear_s + self.output_layer_s
        return matrices_s + self.attention_s + self.allreduce_s + self.elementwise_s

    @property
    def total_s(self) -> float:
        return self.host_s + max(self.floor_s, self.gpu_s)


class StepCost(Protocol):
    """Anything that can tell how long a step takes."""

    def step_s(self, work: StepWork) -> float:
        """Seconds; greater than 0."""


class HostCost(msgspec.Struct, frozen=True, kw_only=True):
    """Time that the CPU spends: per step, per running sequence, per layer at the least, and per
    prompt (checked, its memory found) in the step that computes it. Where one process calls the
    workers of the GPUs, each doubling of their number adds the next two. `front_s` is no part of
    any step: what HTTP, tokeniser and processes add to a first token while others are served.
    Requests are not delayed by it on their way in: those of users who do not think would miss a
    step each time, and then the H100 rows' TTFT (docs/accuracy.md) is 43% off and not 26%."""

    step_s: float
    sequence_s: float
    layer_floor_s: float
    prompt_s: float = 0.0
    doubling_step_s: float = 0.0
    doubling_sequence_s: float = 0.0
    front_s: float = 0.0


# vLLM 0.15 with CUDA graphs needs 0.13 + 0.032 L + 0.0044 B milliseconds a step (L layers, B
# sequences; this project's notes). The launches (0.032 L) overlap with the GPU's work. Front end:
# of Qwen2.5-0.5B, whose prompt an A100 computes in 2 ms, single requests have their first token
# after 11 ms in vLLM 0.20 and after 16 ms in SGLang 0.5 (AccelMark, Apache-2.0).
CUDA_GRAPHS = HostCost(step_s=0.13e-3, sequence_s=0.0044e-3, layer_floor_s=0.032e-3, front_s=10e-3)

# llama.cpp's server is one C++ process. A millisecond is an assumption.
LLAMA_CPP_HOST = msgspec.structs.replace(CUDA_GRAPHS, front_s=1e-3)

# Eager PyTorch engines of 2023, as behind TGI then: 0.5 to 1 ms of launches per layer hide the
# GPU's work; 2.8 ms per step as Vidur measured of vLLM in 2023 on one A100. Vidur's 0.2 ms per
# sequence is Python bookkeeping that TGI does in tensors: a quarter of it is assumed.
EAGER_2023 = HostCost(step_s=2.8e-3, sequence_s=0.05e-3, layer_floor_s=0.75e-3)

# vLLM until 0.5: the scheduler, the inputs and the sampler in Python, 2.8 + 0.21 B milliseconds a
# step of B sequences on one GPU. Its workers were called through Ray: 4.9 + 0.29 B with two A100,
# 5.2 + 0.36 B with four; 6.9 + 0.40 B, 8.6 + 0.41 B and 11.2 + 0.46 B with two, four, eight A40
# (Vidur's profiles of llama2-7b). An assumption: a dozen kernels a layer, each launched in 20
# microseconds, hide the GPU's work of small batches.
VLLM_2023_HOST = HostCost(
    step_s=2.8e-3,
    sequence_s=0.21e-3,
    layer_floor_s=0.25e-3,
    doubling_step_s=2.3e-3,
    doubling_sequence_s=0.09e-3,
)


# vLLM 0.6 and 0.7 (V0): as until 0.5, but with CUDA graphs, and answers are made while the GPU
# computes. Source: AccelMark's rows (Apache-2.0) of one machine, an A100-SXM4-80GB with vLLM 0.7.3:
# 13.2 ms a token alone, 21.7 with some 37 sequences and 68 with some 230, where the GPU needs 10.6,
# 12 and 22, and a tenth of the time goes to prompts. llama-3-70b on eight A800 takes 18.1 ms a
# token alone, where the GPUs need 16: nothing grows with their number. First tokens of
# Qwen2.5-0.5B, one request at a time, take 11 to 40 ms on ten machines, median 23: 20 of these are
# taken for the front end, the rest for the step.
VLLM_2024_HOST = HostCost(step_s=2.4e-3, sequence_s=0.15e-3, layer_floor_s=0.032e-3, front_s=20e-3)


class Efficiency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of what the data sheets say is reached; a calibration may say otherwise.

    `gemm`, `link_latency` and `link_bus` are factors on what is known of the GPU and its fabric;
    the shares are of the peak bandwidth or the peak flops. With g query heads for each KV head,
    decoding reads keys and values g^`kv_reread` times: 0 where a kernel serves the whole group at
    once, up to 1 where each query head reads them anew, as the kernels of 2023 did (the cache
    catches a part of it).

    The rest is for devices of which no kernel was ever measured (a user's own data sheet):
    `matrices` and `attention` are factors on the time that these take, and `shape` one more on
    the layers' matrices, by the tokens of a step (see `StepCoefficients`).

    `joint_attention`: one kernel serves decoding sequences and prompts of a step (`JOINT_ROWS`).
    """

    gemm: float = 1.0
    weight_read_share: float = WEIGHT_READ_SHARE
    kv_read_share: float = KV_READ_SHARE
    attention_flops_share: float = ATTENTION_FLOPS_SHARE
    link_latency: float = 1.0
    link_bus: float = 1.0
    kv_reread: float = 0.0
    passes: Passes = FUSED_PASSES
    matrices: float = 1.0
    attention: float = 1.0
    shape: tuple[float, ...] = ()
    joint_attention: bool = False


DEFAULT_EFFICIENCY = Efficiency()


class StepCoefficients(msgspec.Struct, frozen=True):
    """All numbers that a step's time depends on, in seconds; the compiled engine takes these.

    `*_read_s`: to read the weights once; `*_token_s`: to multiply one token with them. The fields
    from `window_tokens` on are of layers with a sliding window and of routed experts: 0 without.
    `shape[k]`: a factor on the layers' matrices in steps of 2^k tokens, in between as a straight
    line over log2(tokens), beyond the last one that; empty: 1 everywhere. Kernels for one row and
    for few differ, on CPUs above all, and no roofline tells how.
    """

    host_s: float
    host_sequence_s: float
    floor_s: float
    linear_read_s: float
    linear_token_s: float
    output_read_s: float
    output_token_s: float
    kv_token_s: float
    pair_s: float
    allreduce_latency_s: float
    allreduce_token_s: float
    host_prompt_s: float = 0.0
    window_tokens: float = 0.0
    window_kv_token_s: float = 0.0
    window_pair_s: float = 0.0
    experts_read_s: float = 0.0
    unused_log: float = 0.0  # log of the chance that a token does not use a given expert
    elementwise_token_s: float = 0.0
    elementwise_s: float = 0.0  # of a step, however few its tokens
    joint: float = 1.0  # factor on the attention of those who decode in a step with prompts
    shape: tuple[float, ...] = ()

    def step_s(self, work: StepWork) -> float:
        return self.parts(work).total_s

    def read_s(self, tokens: int) -> float:
        """To read the layers' weights that so many tokens need.

        Routed experts that no token uses are not read; routing is taken as even: of E experts,
        of which each token uses k, n tokens touch E (1 - (1 - k / E)^n) on average.
        """
        return self.linear_read_s + self.experts_read_s * -math.expm1(tokens * self.unused_log)

    def linear_s(self, tokens: int) -> float:
        """The layers' matrices for so many tokens."""
        smooth_s = math.hypot(self.read_s(tokens), tokens * self.linear_token_s)
        return smooth_s * self.bent(tokens) if self.shape and tokens else smooth_s

    def bent(self, tokens: int) -> float:
        """What `shape` says of that many tokens, at least 1."""
        at = math.log2(tokens)
        below = min(int(at), len(self.shape) - 1)
        above = min(below + 1, len(self.shape) - 1)
        return self.shape[below] + (at - below) * (self.shape[above] - self.shape[below])

    def attention_s(self, work: StepWork) -> float:
        """Where a layer has a window, the mean context is cut to it, not each sequence's own."""
        w = self.window_tokens
        context = min(work.decode_context, w * work.decode_sequences)
        prefix = min(work.prefill_context, w * work.prefill_sequences)
        decodes = self.joint if work.prefill_tokens else 1.0
        return (
            (work.decode_context * decodes + work.prefill_context) * self.kv_token_s
            + work.prefill_pairs * self.pair_s
            + (context * decodes + prefix) * self.window_kv_token_s
            + min(work.prefill_pairs, w * work.prefill_tokens) * self.window_pair_s
        )  # fmt: skip

    def parts(self, work: StepWork) -> StepParts:
        """The step's seconds by what they are spent on."""
        return StepParts(
            host_s=self.host_s
            + self.host_sequence_s * work.sampled
            + self.host_prompt_s * work.prefill_sequences,
            floor_s=self.floor_s,
            linear_s=self.linear_s(work.tokens),
            output_layer_s=math.hypot(self.output_read_s, work.sampled * self.output_token_s)
            if work.sampled
            else 0.0,
            attention_s=self.attention_s(work),
            allreduce_s=self.allreduce_latency_s + work.tokens * self.allreduce_token_s,
            elementwise_s=self.elementwise_s + work.tokens * self.elementwise_token_s,
        )


def roofline(
    model: ModelShape,
    gpu: Gpu,
    tp: int,
    host: HostCost,
    efficiency: Efficiency = DEFAULT_EFFICIENCY,
) -> StepCoefficients:
    """What steps of *model* on *tp* GPUs cost.

    Matrix multiplications take the root of the sum of squares of the time to read the weights and
    the time to compute: measured utilisations bend as softly around the roofline's knee. On 145
    measured rows of six GPUs (1 to 8192 tokens) the mean error of that curve is 3 to 7% per GPU.
    """
    reached = gpu.gemm_share * efficiency.gemm * tp / efficiency.matrices
    flops = gpu.flops(model.weights.numbers) * reached
    always_flops = gpu.fp16_flops * reached if model.weights.experts_only else flops
    read_share = min(1.0, efficiency.weight_read_share * gpu.read_share / WEIGHT_READ_SHARE)
    bandwidth = gpu.bandwidth_bytes_per_s * read_share * tp / efficiency.matrices
    routed = model.active_parameters - model.always_parameters
    kv_s = _cached_token_s(model, gpu, tp, efficiency)
    # A multiply-add is two operations.
    pair_flops = gpu.fp16_flops * efficiency.attention_flops_share * tp / efficiency.attention
    pair_s = 2 * model.pair_multiplications / pair_flops
    sliding = model.window.layers if model.window else 0
    ring = AllReduce.between(gpu, tp, latency=efficiency.link_latency, bus=efficiency.link_bus)
    reduces = 2 * model.layers  # after attention and after the feed-forward part
    per_token = ring.seconds(model.hidden * 2) - ring.seconds(0)
    experts = model.experts
    doublings = math.log2(tp)
    return StepCoefficients(
        host_s=host.step_s + doublings * host.doubling_step_s,
        host_sequence_s=host.sequence_s + doublings * host.doubling_sequence_s,
        floor_s=model.layers * host.layer_floor_s,
        linear_read_s=model.always_bytes / bandwidth,
        linear_token_s=2 * (model.always_parameters / always_flops + routed / flops),
        output_read_s=model.head_parameters * 2 / bandwidth,
        output_token_s=2 * model.head_parameters / (gpu.fp16_flops * reached),
        kv_token_s=(model.layers - sliding) * kv_s,
        pair_s=(model.layers - sliding) * pair_s,
        allreduce_latency_s=reduces * ring.seconds(0),
        allreduce_token_s=reduces * per_token,
        host_prompt_s=host.prompt_s,
        window_tokens=model.window.tokens if model.window else 0.0,
        window_kv_token_s=sliding * kv_s,
        window_pair_s=sliding * pair_s,
        experts_read_s=model.expert_bytes / bandwidth,
        unused_log=_unused_log(experts.used, experts.count) if experts else 0.0,
        elementwise_token_s=_elementwise_bytes(model, tp, efficiency.passes)
        / gpu.bandwidth_bytes_per_s,
        elementwise_s=model.layers * efficiency.passes.layer_s,
        joint=_joint(model, kv_s, pair_flops) if efficiency.joint_attention else 1.0,
        shape=efficiency.shape,
    )


def _elementwise_bytes(model: ModelShape, tp: int, passes: Passes) -> float:
    """Of one token in all layers, on each GPU."""
    divided = passes.feed_forward * model.gated_elements + passes.heads * model.rotated_elements
    return passes.hidden * model.layers * model.hidden + divided / tp


def _cached_token_s(model: ModelShape, gpu: Gpu, tp: int, efficiency: Efficiency) -> float:
    """To read one cached token in one layer and to multiply a query with it.

    The work matters for latent attention only: some 240 operations for each byte, as many as the
    GPU can do while it reads one.
    """
    group = model.heads / model.kv_heads
    read: float = model.kv_bytes_per_layer(tp) * group**efficiency.kv_reread
    read_s = read * efficiency.attention / (gpu.bandwidth_bytes_per_s * efficiency.kv_read_share)
    if model.latent is None:
        return read_s
    flops = gpu.fp16_flops * efficiency.attention_flops_share * tp / efficiency.attention
    return math.hypot(read_s, 2 * model.cached_pair_multiplications / flops)


def _joint(model: ModelShape, cached_token_s: float, pair_flops: float) -> float:
    """How much longer a cached token takes where all of `JOINT_ROWS` are computed for one query.

    Latent attention has kernels of its own for decoding.
    """
    if model.latent is not None:
        return 1.0
    computed_s = 2 * JOINT_ROWS * model.pair_multiplications / pair_flops
    return max(1.0, computed_s / cached_token_s)


def _unused_log(used: int, count: int) -> float:
    return math.log1p(-used / count) if used < count else -math.inf

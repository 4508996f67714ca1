from __future__ import annotations

import csv
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.engine.allreduce import AllReduce
from servecap.engine.cost import (
    CUDA_GRAPHS,
    EAGER_2023,
    FUSED_PASSES,
    SEPARATE_PASSES,
    VLLM_2023_HOST,
    Efficiency,
    StepCoefficients,
    StepWork,
    roofline,
)
from servecap.engine.hardware import Gpu, gpu
from servecap.engine.memory import kv_tokens
from servecap.engine.model import model
from servecap.engine.spec import EngineKind, joint_attention
from servecap.errors import UsageError

SHARED = Path(__file__).resolve().parents[2] / "../shared"
VALIDATION = SHARED / "data/validation"
needs_shared = pytest.mark.skipif(
    not VALIDATION.exists(), reason=f"the validation data are not there: {VALIDATION}"
)

works = st.builds(
    lambda b, c, t, k: StepWork(b, b * c, t, t * t / 2, 0, b + k),
    st.integers(0, 300),
    st.integers(1, 2000),
    st.integers(0, 4000),
    st.integers(0, 8),
)


def _cost(name: str, device: str, tp: int) -> StepCoefficients:
    return roofline(model(name), gpu(device), tp, CUDA_GRAPHS)


@given(works)
def test_a_step_takes_time_and_its_parts_add_up(work: StepWork) -> None:
    parts = _cost("llama-13b", "a100-40gb", 2).parts(work)
    assert parts.total_s == parts.host_s + max(parts.floor_s, parts.gpu_s)
    assert parts.total_s > 0


@given(works, works)
def test_more_work_never_takes_less_time(a: StepWork, b: StepWork) -> None:
    both = StepWork(
        a.decode_sequences + b.decode_sequences,
        a.decode_context + b.decode_context,
        a.prefill_tokens + b.prefill_tokens,
        a.prefill_pairs + b.prefill_pairs,
        0,
        a.sampled + b.sampled,
    )
    cost = _cost("llama-13b", "a30", 4)
    assert cost.step_s(both) >= max(cost.step_s(a), cost.step_s(b))


def test_one_gpu_needs_no_all_reduce_and_pcie_pays_more_than_nvlink() -> None:
    work = StepWork(64, 64 * 400, 0, 0, 0, 64)
    assert _cost("llama-13b", "a100-80gb", 1).parts(work).allreduce_s == 0
    nvlink = _cost("llama-13b", "a100-80gb-sxm", 4).parts(work).allreduce_s
    pcie = _cost("llama-13b", "a100-80gb-pcie", 4).parts(work).allreduce_s
    assert pcie > 2 * nvlink


def test_the_launch_floor_hides_the_gpu_in_an_eager_engine() -> None:
    cost = roofline(model("llama-13b"), gpu("a100-40gb"), 8, EAGER_2023)
    parts = cost.parts(StepWork(1, 400, 0, 0, 0, 1))
    assert parts.gpu_s < parts.floor_s
    assert parts.total_s == pytest.approx(2.85e-3 + 40 * 0.75e-3)


@needs_shared
def test_the_gemm_curve_is_near_the_measured_utilisations() -> None:
    """Mean error per GPU below 9%, over all rows below 7%, worst row below 35%."""
    errors: dict[str, list[float]] = {}
    names = {"A100-80GB-SXM", "A40", "H100-SXM", "L40S", "H200", "B200"}
    for row in _rows("gemm_efficiency.csv"):
        if row["gpu"] in names and row["mfu"] and float(row["mfu"]) >= 0.01:  # 3 decimals only
            curve = _utilisation(gpu(row["gpu"]), int(row["tokens"]))
            errors.setdefault(row["gpu"], []).append(abs(math.log(curve / float(row["mfu"]))))
    assert set(errors) == names
    everything = [e for es in errors.values() for e in es]
    assert len(everything) > 100
    assert max(sum(es) / len(es) for es in errors.values()) < 0.09
    assert sum(everything) / len(everything) < 0.07
    assert max(everything) < 0.35


def _utilisation(device: Gpu, tokens: int) -> float:
    """Share of the peak flops that the linear part reaches, as the model has it."""
    shape = model("llama2-7b")
    work = StepWork(0, 0, tokens, 0, 0, 0)
    seconds = roofline(shape, device, 1, CUDA_GRAPHS).parts(work).linear_s
    return 2 * shape.linear_parameters * tokens / seconds / device.fp16_flops


@needs_shared
@pytest.mark.parametrize("name", ["llama2-7b", "llama2-13b"])
def test_static_batches_of_lmdeploy_on_an_a100(name: str) -> None:
    """Decode steps and prefills within 30% of what LMDeploy 0.1.0 measured."""
    cost = _cost(name, "a100-80gb", 1)
    for row in _rows("lmdeploy_a100_fp16_static.csv"):
        batch, prompt, out = (int(row[k]) for k in ("batch", "prompt_tokens", "output_tokens"))
        if row["model"] != name or out != 128:
            continue
        if batch == 1 and prompt == 2048:
            prefill_s = cost.step_s(StepWork(0, 0, prompt, prompt**2 / 2, 0, 1))
            assert prefill_s == pytest.approx(float(row["FTL(ave)(s)"]), rel=0.15)
        if batch <= 32:
            context = batch * (prompt + out // 2)
            decode_s = cost.step_s(StepWork(batch, context, 0, 0, 0, batch))
            assert decode_s == pytest.approx(float(row["50%(s)"]), rel=0.3)


@needs_shared
def test_all_reduce_of_decode_sizes_is_near_the_measured_one() -> None:
    """16 KB to 4 MB on NVSwitch machines within a factor of 1.8 of NCCL's times."""
    devices = {"A100-SXM NCCL2.27": "a100-80gb-sxm", "H100-SXM NCCL2.27": "h100-sxm"}
    seen = 0
    for row in _rows("allreduce_measured.csv"):
        if row["system"] not in devices:
            continue
        ring = AllReduce.between(gpu(devices[row["system"]]), int(row["n_gpus"]))
        for kilobytes in (16, 64, 1000, 4000):
            measured_s = float(row[f"us_{kilobytes}KB"]) * 1e-6
            ratio = ring.seconds(kilobytes * 1024) / measured_s
            assert 1 / 1.8 < ratio < 1.8, (row["system"], row["n_gpus"], kilobytes)
            seen += 1
    assert seen == 24


def test_kv_room_of_a_known_server() -> None:
    """vLLM 0.19 reported 41,408 KV tokens for llama-3.1-8b on an RTX 4090 at 0.9."""
    room = kv_tokens(model("llama-3.1-8b"), gpu("4090"), 1, step_tokens=2048, sequences=256)
    assert room == pytest.approx(41_408, rel=0.02)


@pytest.mark.parametrize(
    ("name", "device", "tp", "message"),
    [
        ("llama-13b", "a30", 1, "does not fit on 1 x A30: 5.6 GiB .* smallest tp that fits is 2"),
        ("llama2-70b", "t4", 8, "smallest tp that fits is 16"),
        ("llama-13b", "a30", 3, "tp 3 does not divide the 40 attention heads"),
        ("llama-13b", "a30", 0, "tp 0 does not divide"),
        ("llama-33b", "t4", 1, "smallest tp that fits is 1[0-9]*|no tp up to 32 fits"),
    ],
)
def test_a_model_that_does_not_fit(name: str, device: str, tp: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kv_tokens(model(name), gpu(device), tp, step_tokens=2048, sequences=256)


def test_the_smallest_degree_that_is_named_really_fits() -> None:
    room = kv_tokens(model("llama-13b"), gpu("a30"), 2, step_tokens=2048, sequences=256)
    assert room >= 2048


def _rows(name: str) -> list[dict[str, str]]:
    with (VALIDATION / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_experts_that_no_token_uses_are_not_read() -> None:
    """Mixtral on an H100: one token touches 2 of 8 experts, 64 tokens nearly all."""
    cost, shape, device = _cost("mixtral-8x7b", "h100-sxm", 2), model("mixtral-8x7b"), gpu("h100")
    bandwidth = device.bandwidth_bytes_per_s * 0.75 * 2
    assert cost.read_s(0) == pytest.approx(shape.always_bytes / bandwidth)
    assert cost.read_s(1) == pytest.approx(
        (shape.always_bytes + shape.expert_bytes / 4) / bandwidth
    )
    assert cost.read_s(64) == pytest.approx(
        (shape.always_bytes + shape.expert_bytes * (1 - 0.75**64)) / bandwidth
    )


def test_layers_with_a_window_read_no_further_back() -> None:
    cost = _cost("gpt-oss-20b", "h100-sxm", 1)
    near, far = (StepWork(10, 10 * context, 0, 0.0, 0, 10) for context in (100, 1100))
    each = 2 * 8 * 64 * 2 / (3350e9 * 0.8)  # of one layer and token
    grown = cost.attention_s(far) - cost.attention_s(near)
    assert grown == pytest.approx((12 * 10_000 + 12 * 280) * each)


def test_quantised_weights_are_read_faster_and_multiplied_as_the_gpu_can() -> None:
    whole, fp8, int4 = (_cost(f"llama-3.1-8b{s}", "h100-sxm", 1) for s in ("", "-fp8", "-awq"))
    assert fp8.linear_read_s == pytest.approx(whole.linear_read_s / 2)
    assert fp8.linear_token_s == pytest.approx(whole.linear_token_s * 989 / 1979)
    assert int4.linear_read_s == pytest.approx(whole.linear_read_s * (4 + 20 / 128) / 16)
    assert int4.linear_token_s == whole.linear_token_s
    older = _cost("llama-3.1-8b-fp8", "a100-80gb", 1)  # no 8-bit floats: widened to 16 bits
    assert older.linear_token_s == _cost("llama-3.1-8b", "a100-80gb", 1).linear_token_s
    assert whole.output_read_s == int4.output_read_s  # the output layer stays in 16 bits


def test_latent_attention_decodes_as_much_by_computing_as_by_reading() -> None:
    """DeepSeek-V3: 1,152 bytes and 2 x 139,264 operations for each token and layer (TP1)."""
    cost, device = _cost("deepseek-v3", "h200", 1), gpu("h200")
    read_s = 1152 / (device.bandwidth_bytes_per_s * 0.8)
    compute_s = 2 * 128 * (512 + 64 + 512) / (device.fp16_flops * 0.5)
    assert cost.kv_token_s == pytest.approx(61 * math.hypot(read_s, compute_s))
    # Prompts are computed head by head: 192 for the score, 128 for the value.
    assert cost.pair_s == pytest.approx(61 * 2 * 128 * 320 / (device.fp16_flops * 0.5))


def test_kernels_that_serve_each_query_head_alone_read_shared_heads_again() -> None:
    once, again = (
        roofline(model("llama2-70b"), gpu("a100-40gb"), 8, CUDA_GRAPHS, Efficiency(kv_reread=g))
        for g in (0.0, 1.0)
    )
    assert again.kv_token_s == pytest.approx(8 * once.kv_token_s)  # 64 query heads on 8 KV heads
    alone = model("llama-13b")  # as many KV heads as query heads: nothing to read again
    assert (
        roofline(alone, gpu("a30"), 2, CUDA_GRAPHS, Efficiency(kv_reread=1.0)).kv_token_s
        == roofline(alone, gpu("a30"), 2, CUDA_GRAPHS, Efficiency()).kv_token_s
    )


def test_a_measured_shape_bends_the_matrices_and_nothing_else() -> None:
    """At powers of two as told, between them in a line, beyond the last as that."""
    plain = _cost("llama-13b", "a100-40gb", 1)
    bent = msgspec.structs.replace(plain, shape=(1.0, 2.0, 3.0))
    for tokens, factor in ((1, 1.0), (2, 2.0), (3, 2.0 + math.log2(1.5)), (4, 3.0), (500, 3.0)):
        work = StepWork(decode_sequences=tokens, decode_context=90, sampled=tokens)
        before, after = plain.parts(work), bent.parts(work)
        assert after.linear_s == pytest.approx(factor * before.linear_s)
        assert after.total_s - before.total_s == pytest.approx(after.linear_s - before.linear_s)
    assert bent.step_s(StepWork()) == plain.step_s(StepWork())


def test_factors_of_a_device_that_nobody_measured_stretch_what_they_name() -> None:
    shape, device = model("llama-13b"), gpu("a100-40gb")
    slow = Efficiency(matrices=3.0, attention=5.0)
    work = StepWork(4, 4000, 512, 512 * 513 / 2, 0, 5, 1)
    plain = roofline(shape, device, 1, CUDA_GRAPHS).parts(work)
    found = roofline(shape, device, 1, CUDA_GRAPHS, slow).parts(work)
    assert found.linear_s == pytest.approx(3 * plain.linear_s)
    assert found.output_layer_s == pytest.approx(3 * plain.output_layer_s)
    assert found.attention_s == pytest.approx(5 * plain.attention_s)
    assert found.host_s == plain.host_s


@pytest.mark.parametrize(
    ("name", "device", "tp", "ms"),
    [
        ("llama2-70b", "a100-80gb", 1, 2 * 0.193 + 2 * 0.112 + 0.172 + 0.672),
        ("llama-7b", "a40", 1, 2 * 0.177 + 2 * 0.172 + 0.250 + 0.495),
    ],
)
def test_the_passes_between_matrices_take_what_was_measured(
    name: str, device: str, tp: int, ms: float
) -> None:
    # One layer, 4096 tokens: two norms, two additions, rotation, activation (Vidur's mlp.csv).
    shape = model(name)
    cost = roofline(shape, gpu(device), tp, EAGER_2023, Efficiency(passes=SEPARATE_PASSES))
    assert 4096 * cost.elementwise_token_s / shape.layers == pytest.approx(ms / 1e3, rel=0.25)
    fused = roofline(shape, gpu(device), tp, EAGER_2023, Efficiency(passes=FUSED_PASSES))
    assert fused.elementwise_token_s < 0.75 * cost.elementwise_token_s


def test_tensor_parallelism_divides_some_of_the_passes_only() -> None:
    one, eight = (
        roofline(model("llama2-70b"), gpu("a100-80gb"), tp, EAGER_2023).elementwise_token_s
        for tp in (1, 8)
    )
    assert one / 8 < eight < one / 1.5


@pytest.mark.parametrize(("tp", "low", "high"), [(1, 9.5, 9.5), (2, 14.2, 19.7), (4, 16.7, 21.7)])
def test_workers_that_are_called_one_by_one_cost_the_host_more_the_more_there_are(
    tp: int, low: float, high: float
) -> None:
    # Steps of 32 sequences without a GPU's work, on A100 and on A40 machines (Vidur).
    cost = roofline(model("llama-7b"), gpu("a100-80gb"), tp, VLLM_2023_HOST)
    host_s = cost.parts(StepWork(32, 32 * 100, 0, 0.0, 0, 32)).host_s
    assert 0.98 * low <= 1e3 * host_s <= 1.02 * high


def test_cards_whose_reading_was_measured_have_their_own_share() -> None:
    # One stream of llama-3-8b on an RTX 4090 D: 17.6 ms a token (AccelMark, vLLM 0.7.3).
    cost = roofline(model("llama-3-8b"), gpu("rtx-4090-d"), 1, CUDA_GRAPHS)
    assert cost.step_s(StepWork(1, 300, 0, 0.0, 0, 1)) == pytest.approx(17.6e-3, rel=0.05)


def test_in_a_step_with_prompts_flash_attention_2_computes_whole_tiles_for_each_that_decodes() -> (
    None
):
    """64 rows of 32 heads, 4 operations each of 128 numbers: 1.05 million for a token and layer."""
    shape, device = model("llama-3.1-8b"), gpu("a100-80gb")
    alone = roofline(shape, device, 1, CUDA_GRAPHS)
    cost = roofline(shape, device, 1, CUDA_GRAPHS, Efficiency(joint_attention=True))
    decodes = StepWork(100, 100 * 1000, 0, 0, 0, 100)
    mixed = StepWork(100, 100 * 1000, 16, 16 * 17 / 2, 0, 101, 1)
    assert cost.attention_s(decodes) == alone.attention_s(decodes)
    computed_s = 100 * 1000 * 32 * 64 * 32 * 4 * 128 / (312e12 * 0.5)
    assert cost.attention_s(mixed) == pytest.approx(computed_s, rel=0.001)
    assert cost.attention_s(mixed) > 2.5 * alone.attention_s(mixed)
    mha = roofline(model("llama-13b"), device, 1, CUDA_GRAPHS, Efficiency(joint_attention=True))
    assert mha.joint == 1.0  # each head has keys of its own, which take longer to read


@pytest.mark.parametrize(
    ("engine", "device", "joint"),
    [("vllm", "a100-80gb", True), ("vllm-2025", "a100-80gb", True), ("vllm", "rtx-5090", True),
     ("vllm", "h100", False), ("vllm", "b200", False), ("vllm", "v100", False),
     ("vllm", "mi300x", False), ("sglang", "a100-80gb", False), ("vllm-2023", "a100-80gb", False)],
)  # fmt: skip
def test_which_engines_serve_prompts_and_decodes_by_one_kernel(
    engine: EngineKind, device: str, joint: bool
) -> None:
    assert joint_attention(engine, gpu(device)) is joint

from __future__ import annotations

from pathlib import Path

import pytest

from servecap.engine.hardware import GIB, gpu, gpus
from servecap.engine.scheduler import ChunkedPrefill
from servecap.engine.spec import EngineKind, EngineSpec, default_policy, usual_running
from servecap.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a100-40gb", "A100-40GB-SXM"),
        ("A100-40GB-SXM", "A100-40GB-SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB-SXM"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB-PCIe"),
        ("a100 80g pcie", "A100-80GB-PCIe"),
        ("v100", "V100-SXM2-32GB"),
        ("Tesla V100-SXM2-32GB", "V100-SXM2-32GB"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        ("v100 16gb pcie", "V100-PCIe-16GB"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("v100s", "V100S-PCIe-32GB"),
        ("a30", "A30"),
        ("A30-24GB", "A30"),
        ("a10", "A10"),
        ("Tesla T4", "T4"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("h100-pcie", "H100-PCIe"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("rtx4090", "RTX-4090"),
        ("4090", "RTX-4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("Ascend910B2", "Ascend-910B2"),
        ("NVIDIA H20-3e", "H20-3e"),
        ("NVIDIA H20", "H20"),
    ],
)
def test_names_as_people_and_nvidia_smi_write_them(text: str, name: str) -> None:
    assert gpu(text).name == name


def test_every_gpu_is_found_by_its_own_name_and_has_a_source() -> None:
    for g in gpus():
        assert gpu(g.name) is g
        assert g.source
        assert 0.3 < g.gemm_share <= 1.1
        assert g.memory_bytes >= 15 * GIB
        assert g.usable_bytes < g.memory_bytes
        assert 1e11 < g.bandwidth_bytes_per_s < 1e13
        assert 5e13 < g.fp16_flops < 5e15
        assert (g.fp8_flops or g.int8_flops or 2 * g.fp16_flops) >= 1.9 * g.fp16_flops
        assert 1e10 < g.link_bytes_per_s < 1e12


def test_a_name_that_leaves_the_memory_open_is_refused_unless_it_is_given() -> None:
    with pytest.raises(UsageError, match="say a100-40gb or a100-80gb"):
        gpu("a100")
    assert gpu("A100", memory_gb=40).name == "A100-40GB-SXM"
    with pytest.raises(UsageError, match="with 24 GB is not known"):
        gpu("A100", memory_gb=24)


@pytest.mark.parametrize(
    ("text", "near"), [("l40", "L40S"), ("a100-400gb", "A100-40GB-SXM"), ("", "T4"), ("xyz", "T4")]
)
def test_an_unknown_name_is_answered_with_near_or_all_names(text: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        gpu(text)
    assert near in str(caught.value)
    assert "\n" not in str(caught.value)


SHEET = """
name: X1
memory_gib: 48
memory: gddr
bandwidth_gb_per_s: 900
fp16_tflops: 120
int8_tops: 240
"""


def test_a_file_describes_a_gpu_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "x1.yaml"
    path.write_text(SHEET)
    mine = gpu(str(path))
    assert (mine.name, mine.memory_bytes, mine.bandwidth_bytes_per_s) == ("X1", 48 * GIB, 900e9)
    assert mine.flops("int8") == 240e12
    assert mine.flops("fp8") == mine.flops("fp16") == 120e12
    assert (mine.fabric, mine.source) == ("pcie", "the user's file")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (SHEET.replace("memory_gib: 48", ""), "missing required field `memory_gib`"),
        (SHEET + "memory_gb: 48", "unknown field `memory_gb`.*keys: name, memory_gib"),
        (SHEET.replace("900", "-900"), "bandwidth_gb_per_s"),
        (SHEET.replace("gddr", "sram"), "sram"),
        ("name: [", "is no YAML"),
        ("", "Expected `object`"),
    ],
)
def test_a_gpu_file_that_makes_no_sense_is_told_in_one_line(
    tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "x1.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=why) as caught:
        gpu(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        gpu(str(tmp_path / "none.yaml"))


def test_engines_take_more_at_once_on_large_gpus() -> None:
    """vLLM's API server by its own rule: 70 GiB and more, but no A100."""
    told = [("h100-sxm", 1024, 8192), ("a800-80gb", 1024, 8192), ("a100-80gb", 256, 2048),
            ("l40s", 256, 2048)]  # fmt: skip
    for name, running, step in told:
        engines: tuple[EngineKind, ...] = ("vllm", "vllm-2025")
        for engine in engines:
            policy = default_policy(EngineSpec(model="llama-3-8b", gpu=name, engine=engine))
            assert policy == ChunkedPrefill(
                max_running=running, step_tokens=step, plans_ahead=engine == "vllm"
            )
    assert usual_running("sglang", gpu("l4")) == 2048
    assert usual_running("vllm-2024", gpu("h100")) == 256

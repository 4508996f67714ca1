from __future__ import annotations

import pytest

from servecap.engine.hardware import GIB, gpu, gpus
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
    ],
)
def test_names_as_people_and_nvidia_smi_write_them(text: str, name: str) -> None:
    assert gpu(text).name == name


def test_every_gpu_is_found_by_its_own_name_and_has_a_source() -> None:
    for g in gpus():
        assert gpu(g.name) is g
        assert g.source
        assert 0.3 < g.gemm_share <= 1
        assert g.memory_bytes >= 15 * GIB
        assert g.usable_bytes < g.memory_bytes
        assert 1e11 < g.bandwidth_bytes_per_s < 1e13
        assert 5e13 < g.fp16_flops < 5e15
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

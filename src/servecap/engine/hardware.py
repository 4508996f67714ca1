"""GPUs: what their data sheets say, and what share of it a matrix multiplication reaches."""

from __future__ import annotations

import csv
import difflib
import functools
import importlib.resources
import re
from pathlib import Path
from typing import Literal

import msgspec

from servecap.engine import gpu_file
from servecap.engine.gpu_file import Fabric
from servecap.engine.shape import Numbers
from servecap.errors import UsageError

GIB = 1024**3

# Of the dense peak, for large matrices, where gemm_share is not known from measurements: near the
# median of the data centre GPUs for which it is.
_DEFAULT_GEMM_SHARE = 0.72

# Share of the peak bandwidth that weights are read with. Source: fitted to 145 rows of Vidur's and
# AIConfigurator's GEMM profiles on six GPUs: the best value per GPU is 0.72 to 0.78 for HBM. GDDR,
# whose peak is lower, is used better: small matrices (1 to 8 tokens) reach 0.70 to 0.85 on A40,
# L40S and RTX PRO 6000, mean 0.79; on A100, H100, H200 and B200 0.67 to 0.82, mean 0.74.
READ_SHARE = {"hbm": 0.75, "gddr": 0.8}

# What software can use of the memory on the label. torch saw 25,250,627,584 of the 25,769,803,776
# bytes of an RTX 4090 (the vLLM 0.19 logs of LLMServingSim, MIT). Cards whose GDDR6 keeps its
# error-correcting codes in the same memory give up another sixteenth.
_USABLE_SHARE = 0.98
_INLINE_ECC_SHARE = 15 / 16

_OF_USER = "the user's own"


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator. Rates are peaks; flops are dense, with fp32 accumulation.

    `link_bytes_per_s` is one direction, per GPU. Bridges between pairs of PCIe cards are left
    out: a machine may or may not have them. `gemm_share`: of the peak flops, that large matrix
    multiplications reach; `read_share`: of the bandwidth, that weights are read with. `fp8_flops`,
    `int8_flops`: None where its matrix units do not know such numbers. `by_name`: its name without
    the memory may mean it, too.

    Source:
        Each row of data/gpus.csv names its own. `gemm_share` of A40, A100, H100-SXM, H200, L40S
        and B200 is fitted to Vidur's (MIT) and AIConfigurator's (Apache-2.0) measured profiles of
        layers, T4's to a measured 24 TFLOPS; the form factors of one chip share it unless a row
        names its own source. The others that have one are from collections of PyTorch's square
        matrix products in 16 bits: 0.97 times the median of six (4096, 8192, 10240; fp16, bf16)
        where all sizes are told, 0.93 times the best where only that is, the median of those who
        measured. These are the medians of what the profiles of layers have for the chips that are
        in both (0.87 to 1.06 of the best). GeForce cards clock higher than their data sheets say.
        `read_share` of Ada's cards: one stream of llama-3-8b (15.0 GB a token) by vLLM 0.7.3 takes
        17.6 ms on an RTX 4090 D and 19.2 ms on an RTX 6000 Ada (AccelMark); less 0.85 ms for the
        host and the small kernels that is 0.89 and 0.85.
    """

    name: str
    memory_bytes: int  # as on the label, in binary gigabytes
    memory: Literal["hbm", "gddr"]
    inline_ecc: bool
    by_name: bool = True
    compute_capability: float | None = None  # NVIDIA's name of the generation; None: another's
    bandwidth_bytes_per_s: float
    fp16_flops: float
    fp8_flops: float | None = None
    int8_flops: float | None = None
    gemm_share: float
    read_share: float
    fabric: Fabric
    link_bytes_per_s: float
    link: str  # in words
    confidence: str
    source: str

    @property
    def of_user(self) -> bool:
        """Whether it comes from a user's file: no kernel of it was measured by anybody we know."""
        return self.confidence == _OF_USER

    @property
    def usable_bytes(self) -> int:
        """Memory that a process can allocate."""
        ecc = _INLINE_ECC_SHARE if self.inline_ecc else 1.0
        return int(self.memory_bytes * ecc * _USABLE_SHARE)

    def flops(self, numbers: Numbers) -> float:
        """Peak for such numbers; where it has none, they are widened to 16 bits first."""
        own = {"fp16": None, "fp8": self.fp8_flops, "int8": self.int8_flops}[numbers]
        return self.fp16_flops if own is None else own

    @property
    def memory_gib(self) -> float:
        return self.memory_bytes / GIB


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """All known GPUs, in the order of the table."""
    text = importlib.resources.files("servecap.engine").joinpath("data/gpus.csv").read_text("utf-8")
    return tuple(_from_row(row) for row in csv.DictReader(text.splitlines()))


_TEXTS = ("name", "memory", "fabric", "source")


def _from_row(row: dict[str, str]) -> Gpu:
    sheet: dict[str, str | float | bool] = {key: row[key] for key in _TEXTS}
    sheet["inline_ecc"] = row["inline_ecc"] == "yes"
    for key in gpu_file.GpuFile.__struct_fields__:
        if key not in sheet and row[key]:
            sheet[key] = float(row[key])
    return _from_sheet(
        msgspec.convert(sheet, gpu_file.GpuFile),
        by_name=row["by_name"] == "yes",
        compute_capability=float(row["compute_capability"] or 0) or None,
        link=row["link"],
        confidence=row["confidence"],
    )


def _from_sheet(
    sheet: gpu_file.GpuFile,
    *,
    by_name: bool,
    link: str,
    confidence: str,
    compute_capability: float | None = None,
) -> Gpu:
    """The sheet's figures in bytes and flops."""
    return Gpu(
        name=sheet.name,
        memory_bytes=int(sheet.memory_gib * GIB),
        memory=sheet.memory,
        inline_ecc=sheet.inline_ecc,
        by_name=by_name,
        compute_capability=compute_capability,
        bandwidth_bytes_per_s=sheet.bandwidth_gb_per_s * 1e9,
        fp16_flops=sheet.fp16_tflops * 1e12,
        fp8_flops=None if sheet.fp8_tflops is None else sheet.fp8_tflops * 1e12,
        int8_flops=None if sheet.int8_tops is None else sheet.int8_tops * 1e12,
        gemm_share=sheet.gemm_share or _DEFAULT_GEMM_SHARE,
        read_share=sheet.read_share or READ_SHARE[sheet.memory],
        fabric=sheet.fabric,
        link_bytes_per_s=sheet.link_gb_per_s * 1e9,
        link=link,
        confidence=confidence,
        source=sheet.source,
    )


def gpu(name: str, *, memory_gb: float | None = None) -> Gpu:
    """The GPU with that name, written as in the table, by nvidia-smi or in short; or the one that
    the YAML file of that name describes (`GpuFile`).

    Where the name leaves the form factor open, the first row of the table is meant (SXM before
    PCIe). It must not leave the memory open: "a100" alone needs *memory_gb*.

    Raises:
        UsageError: unknown (the near names are listed), the memory is not clear, or the file
            makes no sense.

    >>> gpu("a100-40gb").name, gpu("v100").name, gpu("NVIDIA A100-PCIE-40GB").name
    ('A100-40GB-SXM', 'V100-SXM2-32GB', 'A100-40GB-PCIe')
    """
    if name.endswith((".yaml", ".yml")):
        sheet = gpu_file.read(Path(name))
        return _from_sheet(sheet, by_name=False, link=sheet.fabric, confidence=_OF_USER)
    wanted = _words(name)
    found = [g for g in gpus() if wanted and wanted <= _all_words(g)]
    if memory_gb is None:
        size = {word for word in wanted if re.fullmatch(r"\d+gb", word)}
        found = [g for g in found if g.by_name or size or wanted == _words(g.name)]
    else:
        found = [g for g in found if abs(g.memory_gib - memory_gb) < 1]
    if not found:
        raise UsageError(_unknown(name, memory_gb))
    sizes = sorted({round(g.memory_gib) for g in found})
    if len(sizes) > 1:
        choices = " or ".join(f"{name}-{size}gb" for size in sizes)
        raise UsageError(f"GPU {name!r} comes with different memories; say {choices}")
    return found[0]


def _unknown(name: str, memory_gb: float | None) -> str:
    size = "" if memory_gb is None else f" with {memory_gb:g} GB"
    names = {g.name.lower(): g.name for g in gpus()}
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    near += [n for n in names if near == [] and name[:2].lower() == n[:2]]
    if near:
        return f"GPU {name!r}{size} is not known; near it: {', '.join(names[n] for n in near)}"
    return f"GPU {name!r}{size} is not known; known are {', '.join(names.values())}"


_MAKER = {"nvidia", "tesla", "geforce", "amd", "instinct", "huawei", "gpu"}
_TELL_NOTHING = {"generation", "blackwell", "server", "workstation", "edition"}  # of which card


def _words(name: str) -> frozenset[str]:
    text = re.sub(r"\b(rtx|ascend)\s*-?(?=\w)", r"\1 ", name.lower())
    words = set()
    for word in re.findall(r"[a-z0-9]+", text):
        if word in _MAKER | _TELL_NOTHING or re.fullmatch(r"hbm\d*e?", word):
            continue
        word = re.sub(r"^sxm\d+$", "sxm", word)
        words.add(re.sub(r"^(\d+)(?:g|gib)$", r"\1gb", word))
    return frozenset(words)


def _all_words(g: Gpu) -> frozenset[str]:
    return _words(g.name) | {f"{g.memory_gib:.0f}gb"}

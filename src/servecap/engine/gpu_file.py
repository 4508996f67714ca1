"""A GPU of one's own: the YAML file in which a user writes down a data sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from servecap.errors import UsageError

Fabric = Literal["nvswitch", "nvlink-mesh", "pcie", "infinity-fabric", "hccs"]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class GpuFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator in its data sheet's own units.

    Rates are peaks without sparsity; `link_gb_per_s` is one direction, per GPU. `gemm_share`: of
    `fp16_tflops`, that large matrix multiplications reach; None: as the median of known GPUs.
    `read_share`: of the bandwidth, that weights are read with; None: as its kind of memory.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, description="as tables and reports show it")]
    memory_gib: Annotated[float, msgspec.Meta(gt=0, description="as on the label")]
    memory: Annotated[
        Literal["hbm", "gddr"], msgspec.Meta(description="its kind; lpddr counts as gddr")
    ]
    bandwidth_gb_per_s: Annotated[float, msgspec.Meta(gt=0, description="of the memory")]
    fp16_tflops: Annotated[float, msgspec.Meta(gt=0, description="dense, fp32 accumulation")]
    fp8_tflops: Positive | None = None
    int8_tops: Positive | None = None
    gemm_share: Annotated[float, msgspec.Meta(gt=0, le=1.2)] | None = None
    read_share: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    inline_ecc: bool = False
    fabric: Fabric = "pcie"
    link_gb_per_s: Annotated[float, msgspec.Meta(gt=0, description="one way, per GPU")] = 32.0
    source: str = "the user's file"


def read(path: Path) -> GpuFile:
    """What the file says.

    Raises:
        UsageError: it cannot be read, is no YAML, or a key is missing, unknown or out of range.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"GPU file {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"GPU file {str(path)!r} is no YAML: {why}") from None
    try:
        return msgspec.convert(found, GpuFile)
    except msgspec.ValidationError as error:
        keys = ", ".join(GpuFile.__struct_fields__)
        raise UsageError(
            f"GPU file {str(path)!r}: {error} (keys: {keys}; memory is hbm or gddr; fabric is one "
            f"of {', '.join(get_args(Fabric))})"
        ) from None

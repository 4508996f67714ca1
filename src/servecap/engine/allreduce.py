"""How long the GPUs of one machine take to sum up what each has computed."""

from __future__ import annotations

import msgspec

from servecap.engine.gpu_file import Fabric
from servecap.engine.hardware import Gpu


class AllReduce(msgspec.Struct, frozen=True, kw_only=True):
    """A ring all-reduce: latency + 2 (n - 1) / n x bytes / bus bandwidth.

    Source:
        The ring's cost model (Patarasuk & Yuan, 2009; NCCL's definition of bus bandwidth), with
        latencies and bus bandwidths from Vidur's (MIT) and AIConfigurator's (Apache-2.0)
        measurements; see `bus_share` and `latency_s`.
    """

    gpus: int
    latency_s: float
    bus_bytes_per_s: float

    @classmethod
    def between(cls, gpu: Gpu, tp: int, *, latency: float = 1.0, bus: float = 1.0) -> AllReduce:
        """The all-reduce of *tp* such GPUs in one machine; *latency* and *bus* are factors."""
        share = bus_share(gpu.fabric, tp) * bus
        return cls(
            gpus=tp,
            latency_s=latency_s(gpu.fabric, tp) * latency,
            bus_bytes_per_s=gpu.link_bytes_per_s * share,
        )

    def seconds(self, size_bytes: float) -> float:
        if self.gpus == 1:
            return 0.0
        moved = 2 * (self.gpus - 1) / self.gpus * size_bytes
        return self.latency_s + moved / self.bus_bytes_per_s


def latency_s(fabric: Fabric, gpus: int) -> float:
    """Time of an all-reduce of next to nothing.

    Source: 16 KB messages: A100 SXM 11, 15, 21 and H100 SXM 7, 11, 17 microseconds with 2, 4 and
    8 GPUs; PCIe (RTX PRO 6000, L40S) 7, 13, 27 to 33.
    """
    return (1 + 3.2 * gpus) * 1e-6 if fabric == "pcie" else (5 + 2 * gpus) * 1e-6


def bus_share(fabric: Fabric, gpus: int) -> float:
    """Bus bandwidth of large messages as a share of one GPU's link, one direction.

    Source: A100 and H100 through NVSwitch 0.66 to 0.84 of 300 and 450 GB/s. V100 in an 8-GPU
    machine 42, 77 and 130 of 150 GB/s with 2, 4 and 8 GPUs: its links are split among its
    neighbours. PCIe 0.6 with 2 GPUs, with more 0.4 (26 of 64 GB/s; and 26 GB/s on a PCIe 4
    machine with bridged pairs); hosts without direct copies between cards are ten times slower,
    which no data sheet tells. Other fabrics were not measured: NVSwitch's share is assumed.
    """
    match fabric:
        case "pcie":
            return 0.6 if gpus <= 2 else 0.4
        case "nvlink-mesh":
            return 0.28 if gpus <= 2 else 0.51 if gpus <= 4 else 0.87
        case _:
            return 0.75

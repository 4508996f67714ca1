"""One instance of a service that is predicted: its step costs and its memory."""

from __future__ import annotations

import contextlib

import msgspec

from servecap.engine.cost import Efficiency, HostCost, StepCoefficients, roofline
from servecap.engine.hardware import Gpu, gpu
from servecap.engine.memory import kv_tokens
from servecap.engine.model import KvDtype, model
from servecap.engine.scheduler import step_tokens
from servecap.engine.shape import ModelShape
from servecap.errors import UsageError
from servecap.predict.harness import Harness


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What calibration may change: efficiencies, the host's time, and the room for KV."""

    efficiency: Efficiency
    host: HostCost
    kv_room: float = 1.0  # factor on the tokens that fit by the memory model


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A model on *tp* GPUs."""

    model: ModelShape
    gpu: Gpu
    tp: int

    def coefficients(self, tuning: Tuning) -> StepCoefficients:
        return roofline(self.model, self.gpu, self.tp, tuning.host, tuning.efficiency)

    def kv_tokens(
        self, harness: Harness, tuning: Tuning, *, context_tokens: float | None = None
    ) -> int:
        """Room for keys and values of sequences that are *context_tokens* long on average.

        Raises:
            UsageError: the model does not fit.
        """
        room = kv_tokens(
            self.model,
            self.gpu,
            self.tp,
            step_tokens=step_tokens(harness.policy),
            sequences=harness.max_running,
            memory_share=harness.memory_share,
            # TGI knows no window; vLLM V1 and SGLang free what has left it.
            context_tokens=None if harness.engine == "tgi" else context_tokens,
        )
        return int(room * tuning.kv_room)


def place(
    model_name: str,
    gpu_name: str,
    tp: int,
    *,
    memory_gb: float | None = None,
    interconnect: str | None = None,
    weights: str | None = None,
    kv_dtype: KvDtype | None = None,
) -> Place:
    """The place with these names; *interconnect* "pcie" means the PCIe form of a GPU with two.

    *weights* and *kv_dtype* as `model` takes them.

    Raises:
        UsageError: a name is not known.
    """
    device = gpu(gpu_name, memory_gb=memory_gb)
    if interconnect is not None and "pcie" in interconnect.lower() and device.fabric != "pcie":
        with contextlib.suppress(UsageError):  # no such form: the name says what it is
            device = gpu(f"{gpu_name}-pcie", memory_gb=memory_gb)
    shape = model(model_name, weights=weights, kv_dtype=kv_dtype)
    return Place(model=shape, gpu=device, tp=tp)

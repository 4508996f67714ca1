"""Named sets of the engine model's parameters: the priors, and what a calibration made of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from servecap.engine.cost import (
    KV_READ_SHARE,
    WEIGHT_READ_SHARE,
    Efficiency,
    HostCost,
)
from servecap.engine.hardware import Gpu
from servecap.engine.spec import EngineKind, host_cost
from servecap.errors import UNREADABLE, UsageError
from servecap.predict.place import Tuning

Kind = Literal["calibrated", "transferred", "spec-only"]
FIGURES = ("max_users", "ttft_s", "tpot_s", "requests_per_s")


class Parameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A positive number of the model; `spread` is the standard deviation of its logarithm.

    `identified`: the rows have told more about it than was known before (the spread has shrunk
    to less than half of the prior's).
    """

    value: float
    spread: float
    low: float
    high: float
    identified: bool = False


class Spread(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far truths lie from predictions: quantiles of log(truth / predicted)."""

    low: float  # 10%
    high: float  # 90%
    rows: int  # left-out rows behind it; 0: assumed


class Validity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the rows of a calibration covered."""

    gpus: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tp_max: int = 0
    users_max: int = 0
    context_tokens: tuple[float, float] = (0.0, 0.0)
    rows: int = 0


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of one engine, where they hold, and how wrong predictions with them have been."""

    name: str
    engine: EngineKind
    parameters: dict[str, Parameter]
    validity: Validity = Validity()
    spreads: dict[str, dict[str, Spread]] = msgspec.field(default_factory=dict)  # kind -> figure
    notes: tuple[str, ...] = ()

    def tuning(self, gpu: Gpu) -> Tuning:
        """The parameters for places with that GPU: its fabric decides which link ones count."""
        value = {name: parameter.value for name, parameter in self.parameters.items()}
        fabric = "pcie" if gpu.fabric == "pcie" else "nvlink"
        own_latency = value.get(f"link_latency:{gpu.name}", 1.0)
        own_bus = value.get(f"link_bus:{gpu.name}", 1.0)
        return Tuning(
            efficiency=Efficiency(
                gemm=value["gemm"],
                weight_read_share=value["weight_read_share"],
                kv_read_share=value["kv_read_share"],
                attention_flops_share=value["attention_flops_share"],
                link_latency=value[f"link_latency_{fabric}"] * own_latency,
                link_bus=value[f"link_bus_{fabric}"] * own_bus,
                kv_reread=value["kv_reread"],
            ),
            host=HostCost(
                step_s=value["host_step_s"],
                sequence_s=value["host_sequence_s"],
                layer_floor_s=value["layer_floor_s"],
                prompt_s=value["prompt_s"],
            ),
            kv_room=value["kv_room"],
        )

    def kind(self, gpu: Gpu) -> Kind:
        """How much the calibration knows of such a place.

        "calibrated": rows on that GPU, of whatever model; "transferred": rows on others only.
        """
        if not self.validity.rows:
            return "spec-only"
        return "calibrated" if gpu.name in self.validity.gpus else "transferred"


def _parameter(value: float, spread: float, low: float, high: float) -> Parameter:
    return Parameter(value=value, spread=spread, low=low, high=high)


def prior(engine: EngineKind) -> Profile:
    """What is known without a single run of the service: data sheets, kernels, other engines.

    Sources: servecap.engine.cost for the values. The spreads say how far the sources behind each
    value lie apart: kernels differ by a quarter, the hosts' all-reduce and the time of eager
    Python by a factor of two.
    """
    host = host_cost(engine)
    return Profile(
        name=f"{engine}-prior",
        engine=engine,
        parameters={
            "gemm": _parameter(1.0, 0.15, 0.4, 1.3),
            "weight_read_share": _parameter(WEIGHT_READ_SHARE, 0.15, 0.3, 0.95),
            "kv_read_share": _parameter(KV_READ_SHARE, 0.4, 0.05, 0.95),
            "attention_flops_share": _parameter(0.5, 0.4, 0.05, 0.9),
            "link_latency_pcie": _parameter(1.0, 0.7, 0.2, 20.0),
            "link_latency_nvlink": _parameter(1.0, 0.7, 0.2, 20.0),
            "link_bus_pcie": _parameter(1.0, 0.6, 0.05, 2.0),
            "link_bus_nvlink": _parameter(1.0, 0.4, 0.05, 1.5),
            "host_step_s": _parameter(host.step_s, 0.6, 1e-5, 0.1),
            "host_sequence_s": _parameter(host.sequence_s, 0.8, 1e-7, 0.005),
            "layer_floor_s": _parameter(host.layer_floor_s, 0.4, 1e-6, 0.005),
            "prompt_s": _parameter(0.005 if engine == "tgi" else 0.0005, 1.0, 1e-5, 0.5),
            "kv_reread": _parameter(0.5, 0.7, 0.01, 1.0)
            if engine == "tgi"
            else _parameter(0.05, 0.7, 0.01, 1.0),
            "kv_room": _parameter(1.0, 0.15, 0.5, 1.6),
        },
    )


OWN = ("link_latency:", "link_bus:")  # + the GPU's name: factors of the machines it sits in


def with_machines(profile: Profile, gpus: Iterable[Gpu]) -> Profile:
    """*profile* with parameters for the links of the machines in which those GPUs were measured.

    Two hosts with the same cards differ up to ten times in what their PCIe carries, and no data
    sheet tells; so each GPU's machine may depart from its fabric, if its rows say so.
    """
    own = {
        f"{kind}{gpu.name}": _parameter(1.0, 0.8, 0.02, 30.0 if kind == OWN[0] else 1.5)
        for gpu in gpus
        for kind in OWN
    }
    return msgspec.structs.replace(profile, parameters={**own, **profile.parameters})


def concerns(name: str, gpu: Gpu, tp: int) -> bool:
    """Whether that parameter can change the figures of such a place."""
    if not name.startswith("link_"):
        return True
    if name.startswith(OWN):
        return tp > 1 and name.endswith(f":{gpu.name}")
    return tp > 1 and name.endswith("pcie") == (gpu.fabric == "pcie")


def save(profile: Profile, path: Path) -> None:
    """Writes the profile as JSON.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
    except OSError as error:
        raise UsageError(f"profile {str(path)!r} cannot be written: {error.strerror}") from None


def load(path: Path) -> Profile:
    """The profile in that file.

    Raises:
        UsageError: it cannot be read, or is no profile.
    """
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise UsageError(f"profile {str(path)!r} cannot be read: {error.strerror}") from None
    except UNREADABLE as error:
        raise UsageError(f"{path} is no profile of servecap calibrate: {error}") from None
    expected = prior(profile.engine).parameters
    known = {n for n in profile.parameters if not n.startswith(OWN)}
    if known != set(expected):
        wrong = ", ".join(sorted(known ^ set(expected)))
        raise UsageError(f"profile {str(path)!r} lacks or has too many parameters: {wrong}")
    return profile

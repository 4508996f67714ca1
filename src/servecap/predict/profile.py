"""Named sets of the engine model's parameters: the priors, and what a calibration made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from servecap.engine.cost import (
    KV_READ_SHARE,
    WEIGHT_READ_SHARE,
    Efficiency,
)
from servecap.engine.hardware import Gpu
from servecap.engine.spec import EngineKind, host_cost, joint_attention, passes_of
from servecap.errors import UNREADABLE, UsageError
from servecap.predict.place import Place, Tuning

Kind = Literal["measured", "calibrated", "transferred", "spec-only"]
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
    rows: int  # rows behind it; 0: assumed
    parameters: float = 0.0  # the part of it that unsure parameters are, typically


class Validity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the rows of a calibration covered."""

    gpus: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    places: tuple[tuple[str, str, int], ...] = ()  # model, GPU, tp
    tp_max: int = 0
    users_max: int = 0
    in_flight_max: float = 0.0  # requests, of those that the server computes at once
    context_tokens: tuple[float, float] = (0.0, 0.0)
    rows: int = 0


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters under one pair of settings that the rows do not tell; see `predict.untold`."""

    weight: float  # of all: 1
    cycles: int  # requests of each user
    start_s: float  # within which all users start
    logs: tuple[float, ...] = ()  # logarithms of the parameters, in their order


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of one engine, where they hold, and how wrong predictions with them have been."""

    name: str
    engine: EngineKind
    parameters: dict[str, Parameter]
    validity: Validity = Validity()
    spreads: dict[str, dict[str, Spread]] = msgspec.field(default_factory=dict)  # kind -> figure
    notes: tuple[str, ...] = ()
    max_running: int | None = None  # that the server of the runs computed at once, where known
    draws: tuple[tuple[float, ...], ...] = ()  # logarithms of the parameters, see `Fit.draws`
    members: tuple[Member, ...] = ()  # heaviest first, whose parameters are the profile's own

    def tuning(self, gpu: Gpu) -> Tuning:
        """The parameters for places with that GPU: its fabric decides which link ones count."""
        value = {name: parameter.value for name, parameter in self.parameters.items()}
        fabric = "pcie" if gpu.fabric == "pcie" else "nvlink"
        own_latency = value.get(f"link_latency:{gpu.name}", value.get(f"link_latency:{OTHER}", 1.0))
        own_bus = value.get(f"link_bus:{gpu.name}", value.get(f"link_bus:{OTHER}", 1.0))
        shape = [value.get(_at(tokens, gpu)) for tokens in SHAPE_TOKENS]
        return Tuning(
            efficiency=Efficiency(
                gemm=value["gemm"],
                weight_read_share=value["weight_read_share"],
                kv_read_share=value["kv_read_share"],
                attention_flops_share=value["attention_flops_share"],
                link_latency=value[f"link_latency_{fabric}"] * own_latency,
                link_bus=value[f"link_bus_{fabric}"] * own_bus,
                kv_reread=value["kv_reread"],
                matrices=value.get(f"matrices:{gpu.name}", 1.0),
                attention=value.get(f"attention:{gpu.name}", 1.0),
                shape=tuple(factor for factor in shape if factor is not None),
                passes=passes_of(self.engine),
                joint_attention=joint_attention(self.engine, gpu),
            ),
            host=msgspec.structs.replace(
                host_cost(self.engine),
                step_s=value["host_step_s"],
                sequence_s=value["host_sequence_s"],
                layer_floor_s=value["layer_floor_s"],
                prompt_s=value["prompt_s"],
                front_s=value.get("front_s", 0.0),
            ),
            kv_room=value["kv_room"],
        )

    def drawn(self) -> list[Profile]:
        """The profiles that other rows of the same kind might have led to."""
        return [self.with_logs(draw) for draw in self.draws]

    def with_logs(self, logs: tuple[float, ...]) -> Profile:
        """The profile with parameters of these logarithms."""
        parameters = {
            name: msgspec.structs.replace(parameter, value=math.exp(logarithm))
            for (name, parameter), logarithm in zip(self.parameters.items(), logs, strict=True)
        }
        return msgspec.structs.replace(self, parameters=parameters)

    def kind(self, gpu: Gpu) -> Kind:
        """How much the calibration knows of such a GPU.

        "calibrated": rows on that GPU, of whatever model; "transferred": rows on others only.
        (Whether the very place was "measured", `answer` knows.)
        """
        if not self.validity.rows:
            return "spec-only"
        return "calibrated" if gpu.name in self.validity.gpus else "transferred"


def _parameter(value: float, spread: float, low: float, high: float) -> Parameter:
    return Parameter(value=value, spread=spread, low=low, high=high)


def prior(engine: EngineKind) -> Profile:
    """What is known without a single run of the service: data sheets, kernels, other engines.

    Sources: servecap.engine.cost for the values. The spreads say how far the sources behind each
    value lie apart: kernels and what NCCL makes of a fabric differ by a quarter, the time of eager
    Python by a factor of two, front ends of ten machines with the same vLLM by four. What the links
    of two machines of one kind differ by is not here but in `with_own`: it tells nothing of others.
    """
    host = host_cost(engine)
    # Of the others it is in what is known of their prompts' time already.
    front = {"front_s": _parameter(host.front_s, 0.6, 1e-4, 0.5)} if host.front_s else {}
    return Profile(
        name=f"{engine}-prior",
        engine=engine,
        parameters={
            "gemm": _parameter(1.0, 0.15, 0.4, 1.3),
            "weight_read_share": _parameter(WEIGHT_READ_SHARE, 0.15, 0.3, 0.95),
            "kv_read_share": _parameter(KV_READ_SHARE, 0.4, 0.05, 0.95),
            "attention_flops_share": _parameter(0.5, 0.4, 0.05, 0.9),
            "link_latency_pcie": _parameter(1.0, 0.25, 0.2, 20.0),
            "link_latency_nvlink": _parameter(1.0, 0.25, 0.2, 20.0),
            "link_bus_pcie": _parameter(1.0, 0.25, 0.05, 2.0),
            "link_bus_nvlink": _parameter(1.0, 0.25, 0.05, 1.5),
            "host_step_s": _parameter(host.step_s, 0.6, 1e-5, 0.1),
            "host_sequence_s": _parameter(host.sequence_s, 0.8, 1e-7, 0.005),
            "layer_floor_s": _parameter(host.layer_floor_s, 0.4, 1e-6, 0.005),
            "prompt_s": _parameter(0.005, 1.0, 1e-5, 0.5)
            if engine == "tgi"
            else _parameter(0.0005, 0.7, 1e-5, 0.5),
            **front,
            "kv_reread": _parameter(0.5, 0.7, 0.01, 1.0)
            if engine == "tgi"
            else _parameter(0.05, 0.7, 0.01, 1.0),
            "kv_room": _parameter(1.0, 0.15, 0.5, 1.6),
        },
    )


OTHER = "other"  # machine than those with rows

SHAPE_TOKENS = tuple(2**k for k in range(11))  # of a step; the knots of `Efficiency.shape`


def _at(tokens: int, gpu: Gpu) -> str:
    return f"matrices_{tokens}_tokens:{gpu.name}"


def with_own(profile: Profile, places: Iterable[Place]) -> Profile:
    """*profile* with parameters that belong to one kind of GPU or machine: "what:GPU".

    Links: two hosts with the same cards differ up to ten times in what their PCIe carries, and no
    data sheet tells; so each GPU's machine may depart from its fabric, if its rows say so. Those of
    a machine without rows (`OTHER`) are not known, and its predictions are as unsure as that.

    A user's own data sheet: what is known of the built-in GPUs, that large matrices reach 0.4 to
    0.85 of the peak and that utilisation bends like a root of squares (to 3 to 7%), was measured
    on such GPUs. Of a CPU or an unknown device not even what its "peak" counts (one core or all,
    vectors or not) is sure: matrices and attention may take e^2 = 7 times longer or shorter at one
    standard deviation, and the time of a step may bend with its tokens as it likes, by a factor
    of 2 from each knot to what the roofline says.
    """
    places = list(places)
    machines = {place.gpu.name for place in places if place.tp > 1}
    own: dict[str, Parameter] = {}
    for machine in (*sorted(machines), OTHER):
        own[f"link_latency:{machine}"] = _parameter(1.0, 0.8, 0.02, 30.0)
        own[f"link_bus:{machine}"] = _parameter(1.0, 0.8, 0.02, 1.5)
    for gpu in (place.gpu for place in places):
        if gpu.of_user:
            for what in ("matrices", "attention"):
                own[f"{what}:{gpu.name}"] = _parameter(1.0, 2.0, 0.002, 500.0)
            for tokens in SHAPE_TOKENS:
                own[_at(tokens, gpu)] = _parameter(1.0, 0.7, 0.1, 10.0)
    return msgspec.structs.replace(profile, parameters={**own, **profile.parameters})


def concerns(name: str, gpu: Gpu, tp: int) -> bool:
    """Whether that parameter can change the figures of such a place."""
    what, _, owner = name.partition(":")
    if owner:
        return owner == gpu.name and (tp > 1 or not what.startswith("link_"))
    if not what.startswith("link_"):
        return True
    return tp > 1 and what.endswith("pcie") == (gpu.fabric == "pcie")


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
    known = {n for n in profile.parameters if ":" not in n}
    if known != set(expected):
        wrong = ", ".join(sorted(known ^ set(expected)))
        raise UsageError(f"profile {str(path)!r} lacks or has too many parameters: {wrong}")
    why = _damaged(profile)
    if why is not None:
        raise UsageError(f"profile {str(path)!r} is damaged: {why}; calibrate again")
    return profile


def _damaged(profile: Profile) -> str | None:
    """What in the profile no fit can have written."""
    for name, p in profile.parameters.items():
        if not 0 < p.low * (1 - 1e-9) <= p.value <= p.high * (1 + 1e-9) < math.inf:
            return f"parameter {name} is {p.value:g}, outside of {p.low:g} to {p.high:g}"
    many = len(profile.parameters)
    for what, logs in (
        *(("draws", logs) for logs in profile.draws),
        *(("members", member.logs) for member in profile.members),
    ):
        if len(logs) != many or not all(abs(x) < _LOG_MOST for x in logs):
            return f"one of its {what} does not tell its {many} parameters"
    if any(not 0 < member.weight <= 1 + 1e-9 for member in profile.members):
        return "the weights of its members are not within 0 and 1"
    return None


_LOG_MOST = 100.0

"""What a plan is asked with and what it answers; all of it goes to JSON as it stands."""

from __future__ import annotations

from typing import Literal

import msgspec

from servecap.cell import Origin


class Demand(msgspec.Struct, frozen=True):
    """Users at the same time, each sending, reading and thinking as in the scenario."""

    users: int


class Price(msgspec.Struct, frozen=True):
    """What an hour costs; `gpu` is a GPU's name ("a40") or type ("A100-40GB")."""

    gpu: str
    usd_per_h: float
    per: Literal["gpu", "node"] = "gpu"


class Supply(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes that can be had. `gpus_per_node_of`: other sizes, by GPU name or type."""

    gpus_per_node: int = 8
    gpus_per_node_of: dict[str, int] = msgspec.field(default_factory=dict)
    prices: tuple[Price, ...] = ()


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """A node cut into equal instances, and what it then takes. Latencies are those at capacity."""

    instances: int
    tp: int
    users_per_instance: int
    users_per_node: int
    lower_bound: bool  # the search ended before any level failed: more users may fit
    nodes: int
    gpus: int  # in all nodes, idle ones too
    idle_gpus_per_node: int
    usd_per_h: float | None  # of all nodes
    ttft_s: float | None
    tpot_s: float | None
    error_rate: float | None
    limited_by: str | None  # the limit that broke first, where the cell records it
    nearest_limit: str | None  # the limit with the least room left; None: not known
    nearest_share: float | None  # how much of that limit is used
    slo: str | None  # the SLO that the capacity was found under, if known
    origin: Origin
    provenance: str
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The split as people write it: "2 x TP4"."""
        return f"{self.instances} x TP{self.tp}"

    @property
    def users_per_gpu(self) -> float:
        return self.users_per_instance / self.tp


class GpuPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU type. `splits` best first; those that tie with the best have its users a node."""

    gpu: str
    interconnect: str | None
    gpus_per_node: int
    splits: tuple[Split, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def best(self) -> Split:
        return self.splits[0]

    @property
    def ties(self) -> tuple[Split, ...]:
        """The other splits that carry as many users a node."""
        return tuple(s for s in self.splits[1:] if s.users_per_node == self.best.users_per_node)


class LeftOut(msgspec.Struct, frozen=True):
    """A cell that takes no part, and the figure or fact that excludes it."""

    cell: str
    reason: str
    users_per_node: int | None = None  # what a node of it would carry otherwise


class ModelPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its GPU types, best first by `ranked_by`."""

    model: str
    ranked_by: Literal["usd_per_h", "gpus"]
    gpus: tuple[GpuPlan, ...]
    left_out: tuple[LeftOut, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for each model, each as if it alone had all the users."""

    users: int
    scenario: str
    slo: str
    models: tuple[ModelPlan, ...]
    left_out: tuple[LeftOut, ...]  # for reasons other than a limit: another scenario
    caveats: tuple[str, ...]

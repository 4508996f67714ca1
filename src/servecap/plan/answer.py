"""What a plan is asked with and what it answers; all of it goes to JSON as it stands."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from servecap.cell import Origin

RankedBy = Literal["usd_per_h", "gpus"]


class Demand(msgspec.Struct, frozen=True):
    """What must be carried at the busiest time: users, or requests per second.

    Users are there at the same time, each sending, reading and thinking as in the scenario.
    `users_of`: models that share one fleet, and the users of each; others are not planned.
    """

    users: int | None = None
    requests_per_s: float | None = None
    users_of: dict[str, int] = msgspec.field(default_factory=dict)
    think_mean_s: float = 2.0  # of the cells' users: turns users into requests/s
    mean_share: float = 1.0  # the day's mean load as a share of the busiest
    notes: tuple[str, ...] = ()  # how the figures were come by

    @property
    def text(self) -> str:
        """The demand in words: "10,000 users at the same time"."""
        if self.requests_per_s is not None:
            return f"{self.requests_per_s:g} requests/s"
        if self.users_of:
            each = ", ".join(f"{users:,} of {model}" for model, users in self.users_of.items())
            return f"{self.users:,} users at the same time ({each})"
        return f"{self.users:,} users at the same time"


class Price(msgspec.Struct, frozen=True):
    """What an hour costs; `gpu` is a GPU's name ("a40") or type ("A100-40GB")."""

    gpu: str
    usd_per_h: float
    per: Literal["gpu", "node"] = "gpu"


class Supply(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes that can be had, and what is kept in reserve.

    `*_of`: by GPU name or type. `used_share_max`: no instance is given more than this share of
    its users at capacity. `spare_nodes`: any so many nodes may fail; `zones` above 1: any one of
    so many zones may, the nodes of each kind being spread over them evenly or by `zone_weights`,
    where no zone holds more than its part, rounded up.
    """

    gpus_per_node: int = 8
    gpus_per_node_of: dict[str, int] = msgspec.field(default_factory=dict)
    prices: tuple[Price, ...] = ()
    nodes_max_of: dict[str, int] = msgspec.field(default_factory=dict)
    only_listed: bool = False  # only GPUs in gpus_per_node_of can be had at all
    used_share_max: float = 1.0
    spare_nodes: int = 0
    zones: int = 1
    zone_weights: tuple[int, ...] = ()  # parts in each zone, as (2, 1, 1); empty: equal ones
    notes: tuple[str, ...] = ()  # how the prices were come by

    @property
    def zone_lost(self) -> tuple[int, int]:
        """The part of the nodes that stands in the largest zone: (1, 3) of three equal ones."""
        if self.zones < 2:
            return (0, 1)
        weights = self.zone_weights or (1,) * self.zones
        return (max(weights), sum(weights))

    def left_of(self, nodes: int) -> int:
        """Nodes of so many that are left after the worst loss that must be survived."""
        lost, of = self.zone_lost
        return nodes * (of - lost) // of if lost else max(0, nodes - self.spare_nodes)


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What so many USD an hour come to. A month is 730 h, a year 8760 h."""

    usd_per_h: float
    usd_per_month: float
    usd_per_year: float
    usd_per_user_month: float | None
    usd_per_million_output_tokens: float | None  # None: the cell does not tell the tokens/s
    usd_per_million_total_tokens: float | None  # prompts and answers


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """A node cut into equal instances, and what it then takes. Latencies are those at capacity."""

    instances: int
    tp: int
    users_per_instance: int  # with the headroom that was asked for
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
    load_per_node: int = 0  # what it carries of the demand: users, or requests/s in thousandths
    capacity_users: int = 0  # of an instance, without headroom
    requests_per_s_per_node: float | None = None
    users_at_peak: float | None = None  # of each instance, all nodes being up
    missing_nodes: int = 0  # more than can be had
    max_running: int | None = None  # requests at once in the engine that was predicted, if known
    costs: Costs | None = None
    capacity_range: tuple[int, int] | None = None  # of a prediction, with `confidence`
    confidence: float | None = None

    @property
    def nodes_range(self) -> tuple[int, int] | None:
        """Fewest and most nodes, the instances' capacity being anywhere in its predicted range."""
        if self.capacity_range is None or not self.capacity_users:
            return None
        low, high = (max(1, users) for users in self.capacity_range)
        return (
            math.ceil(self.nodes * self.capacity_users / high),
            math.ceil(self.nodes * self.capacity_users / low),
        )

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


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Some nodes of a fleet, all of one type and cut alike."""

    gpu: str
    interconnect: str | None
    gpus_per_node: int
    nodes: int
    split: tuple[tuple[str, int, int], ...]  # model, TP, instances a node
    usd_per_h: float | None  # of all these nodes
    predicted: bool

    @property
    def split_text(self) -> str:
        """The cut in words: "2 x TP4 llama-13b"."""
        return " + ".join(f"{count} x TP{tp} {model}" for model, tp, count in self.split)


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The cheapest nodes of all types together, one model's or shared by several."""

    models: tuple[str, ...]
    parts: tuple[Part, ...]
    nodes: int
    gpus: int
    usd_per_h: float | None
    ranked_by: RankedBy
    gap_share: float  # how much less another fleet could cost; 0: none can, it is proven
    costs: Costs | None = None
    apart: float | None = None  # USD/h (or GPUs) of the best single type for each model instead


class ModelPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its GPU types, best first by `ranked_by`.

    `fleet`: several types, or unequal instances, where that beats the best single type.
    """

    model: str
    ranked_by: RankedBy
    gpus: tuple[GpuPlan, ...]
    left_out: tuple[LeftOut, ...]
    fleet: Fleet | None = None
    why: tuple[str, ...] = ()  # of the first choice, in at most three sentences
    users: int | None = None  # its own part of the demand


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer becomes under another assumption, for one model."""

    change: str
    model: str
    answer: str  # in words; "nothing fits" where no cell is left
    nodes: int | None
    gpus: int | None
    usd_per_h: float | None
    same_choice: bool  # the same GPU type and split as without the change


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """How firm the answer is."""

    what_if: tuple[WhatIf, ...]
    break_even: tuple[str, ...]
    worth_measuring: tuple[str, ...]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulation of one choice shows."""

    choice: str
    verdict: Literal["pass", "fail", "unknown"]
    simulated: str  # which part of the fleet, by which model
    told: tuple[str, ...]
    broken: tuple[str, ...]  # limits that do not hold in it
    requests: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for each model, each as if it alone had all the users unless `fleet` is there."""

    users: int | None  # None: the demand is in requests/s
    scenario: str
    slo: str
    models: tuple[ModelPlan, ...]
    left_out: tuple[LeftOut, ...]  # for reasons other than a limit: another scenario
    caveats: tuple[str, ...]
    demand: Demand = Demand()
    supply: Supply = Supply()
    fleet: Fleet | None = None  # of the models that share it
    outlook: Outlook | None = None
    checks: tuple[Check, ...] = ()  # of the choices, by simulation

"""How many nodes carry the demand, per model and GPU type, and of all types together.

Only what a cell states is used: its users at capacity, and its latencies and error rate to hold
them against the SLO. Throughput is not, unless the demand is in requests per second.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import msgspec

from servecap import slo as slos
from servecap.cell import Capacity, Cell
from servecap.engine.hardware import gpu
from servecap.engine.spec import usual_running
from servecap.errors import UsageError
from servecap.plan import choice
from servecap.plan.answer import (
    Costs,
    Demand,
    Fleet,
    GpuPlan,
    LeftOut,
    ModelPlan,
    Plan,
    Split,
    Supply,
)
from servecap.plan.choice import Kind, gpu_label, name_of
from servecap.plan.costs import costs
from servecap.plan.fleet import Usable, best_fleet
from servecap.plan.reasons import caveats, reasons, warnings, why
from servecap.slo import Limit, Slo

__all__ = ["gpu_label", "plan"]


def plan(
    cells: Sequence[Cell],
    demand: Demand,
    supply: Supply | None = None,
    *,
    slo: Slo = slos.DEFAULT,
    models: Sequence[str] = (),
    scenario: str | None = None,
) -> Plan:
    """The nodes that carry the demand within the SLO, for every model and GPU type.

    Nodes are whole and cut into equal instances. Of the splits of a node the one with the most
    users is best; among equals a measured one, then the one with more room under its nearest
    limit, then fewer and larger instances (fewer copies of the weights, fewer endpoints).
    GPU types rank by cost if all have a price, else by GPUs; those of which too few nodes can be
    had come last. Fleets of several types and unequal instances are the exact optimum.

    Args:
        models: only these; none means all (or those of `demand.users_of`).
        scenario: only cells of this one (never mixed); None: the scenario with most cells.
    Raises:
        UsageError: nothing fits the filters, a name or number makes no sense, a place has two
            cells, or the SLO has a limit that no cell can be held against.
    """
    supply = supply or Supply()
    choice.check_numbers(demand, supply)
    if not cells:
        raise UsageError("the matrix has no cells; fill it or import a table first")
    choice.check_names(cells, supply)
    chosen = choice.of_models(cells, [*models] or [*demand.users_of])
    scenario = choice.scenario_of(chosen, scenario)
    inside = choice.one_per_place([c for c in chosen if c.scenario == scenario])
    choice.check_limits(inside, slo)
    by_model: dict[str, list[Cell]] = {}
    for cell in inside:
        by_model.setdefault(cell.model.casefold(), []).append(cell)
    _check_shared(demand, by_model, scenario)
    usable = {model: _usable(group, demand, supply, slo) for model, group in by_model.items()}
    planned = tuple(
        _model(group, usable[model], demand, supply, slo) for model, group in by_model.items()
    )
    fleet = _shared_fleet(planned, usable, demand, supply) if demand.users_of else None
    others = [
        LeftOut(name_of(cell), f"its scenario is {cell.scenario}, not {scenario}")
        for cell in chosen if cell.scenario != scenario
    ]  # fmt: skip
    return Plan(
        users=demand.users,
        scenario=scenario,
        slo=str(slo),
        models=planned,
        left_out=tuple(others),
        caveats=caveats(planned, demand, supply, fleet),
        demand=demand,
        supply=supply,
        fleet=fleet,
    )


def _check_shared(demand: Demand, by_model: dict[str, list[Cell]], scenario: str) -> None:
    for model in demand.users_of:
        if model.casefold() not in by_model:
            raise UsageError(f"model {model!r} has no cell of scenario {scenario!r}")


def _usable(cells: Sequence[Cell], demand: Demand, supply: Supply, slo: Slo) -> list[Usable]:
    found = []
    for cell in cells:
        kind = choice.kind_of(cell)
        gpus = choice.gpus_per_node(kind, supply)
        load = choice.load_of(cell, demand, supply)
        if choice.why_not(cell, slo, gpus, demand, supply) is None and load is not None:
            found.append(
                Usable(
                    cell=cell, kind=kind, gpus_per_node=gpus, load=load,
                    usd_per_node_h=choice.usd_per_node_h(kind, gpus, supply),
                    nodes_max=choice.nodes_max(kind, supply),
                )
            )  # fmt: skip
    return found


def _model(
    cells: Sequence[Cell], usable: Sequence[Usable], demand: Demand, supply: Supply, slo: Slo
) -> ModelPlan:
    groups: dict[tuple[str, str | None], tuple[Usable, list[Split]]] = {}
    for one in usable:
        group = groups.setdefault((one.kind.label.casefold(), one.kind.interconnect), (one, []))
        group[1].append(_split(one, demand, supply, slo))
    gpus = [_gpu(one.kind, splits, one.gpus_per_node, slo) for one, splits in groups.values()]
    priced = bool(gpus) and all(gpu.best.usd_per_h is not None for gpu in gpus)
    gpus.sort(
        key=lambda g: (
            g.best.missing_nodes > 0, g.best.usd_per_h if priced else 0, g.best.gpus, g.gpu
        )
    )  # fmt: skip
    model = cells[0].model
    need = choice.need_of(demand, model)
    found = ModelPlan(
        model=model,
        ranked_by="usd_per_h" if priced else "gpus",
        gpus=tuple(gpus),
        left_out=tuple(_left_out(cells, demand, supply, slo)),
        why=why(gpus, priced=priced),
        users=None if demand.requests_per_s is not None else need,
    )
    return msgspec.structs.replace(found, fleet=_better_fleet(found, usable, need, demand, supply))


def _left_out(
    cells: Sequence[Cell], demand: Demand, supply: Supply, slo: Slo
) -> list[LeftOut]:  # fmt: skip
    found = []
    for cell in cells:
        per_node = choice.gpus_per_node(choice.kind_of(cell), supply)
        reason = choice.why_not(cell, slo, per_node, demand, supply)
        if reason is not None:
            found.append(LeftOut(name_of(cell), reason, _would_carry(cell, per_node)))
    return found


def _better_fleet(
    found: ModelPlan, usable: Sequence[Usable], need: int, demand: Demand, supply: Supply
) -> Fleet | None:
    """A fleet of several types or unequal instances, if it beats the best single type."""
    fleet = best_fleet({found.model: list(usable)}, {found.model: need}, demand, supply)
    if fleet is None or not found.gpus:
        return None
    best = found.gpus[0].best
    alone = best.usd_per_h if found.ranked_by == "usd_per_h" else best.gpus
    cost = fleet.usd_per_h if found.ranked_by == "usd_per_h" else fleet.gpus
    assert alone is not None
    assert cost is not None
    if best.missing_nodes:
        return fleet
    return msgspec.structs.replace(fleet, apart=alone) if cost < alone * (1 - 1e-9) else None


def _shared_fleet(
    planned: Sequence[ModelPlan], usable: dict[str, list[Usable]], demand: Demand, supply: Supply
) -> Fleet | None:
    """The fleet that all models share, with what the best single types would cost instead."""
    fleet = best_fleet(
        {m.model: usable[m.model.casefold()] for m in planned},
        {m.model: choice.need_of(demand, m.model) for m in planned},
        demand,
        supply,
    )
    if fleet is None or not all(m.gpus and not m.gpus[0].best.missing_nodes for m in planned):
        return fleet
    firsts = [m.gpus[0].best for m in planned]
    apart = [s.usd_per_h if fleet.ranked_by == "usd_per_h" else s.gpus for s in firsts]
    known = [cost for cost in apart if cost is not None]
    return msgspec.structs.replace(fleet, apart=sum(known) if len(known) == len(apart) else None)


def _would_carry(cell: Cell, gpus_per_node: int) -> int | None:
    """Users that a node of such cells would carry if nothing spoke against it."""
    if cell.capacity is None or cell.tp > gpus_per_node:
        return None
    return gpus_per_node // cell.tp * cell.capacity.users


def nodes_needed(need: int, per_node: int, supply: Supply) -> int:
    """Nodes that carry *need* after the loss that must be survived; rounded up.

    Of n nodes, the loss of a zone that holds w of W parts of them leaves floor(n (W-w) / W).

    >>> nodes_needed(10_000, 90, Supply())
    112
    >>> nodes_needed(10_000, 90, Supply(spare_nodes=1)), nodes_needed(10_000, 90, Supply(zones=3))
    (113, 168)
    >>> nodes_needed(10_000, 90, Supply(zones=3, zone_weights=(2, 1, 1)))
    224
    """
    nodes = -(-need // per_node)
    lost, of = supply.zone_lost
    if lost:
        return -(-nodes * of // (of - lost))
    return nodes + supply.spare_nodes


def _split(one: Usable, demand: Demand, supply: Supply, slo: Slo) -> Split:
    cell, gpus_per_node = one.cell, one.gpus_per_node
    assert cell.capacity is not None  # why_not has seen to it
    instances = gpus_per_node // cell.tp
    per_instance = math.floor(cell.capacity.users * supply.used_share_max + 1e-9)
    need = choice.need_of(demand, cell.model)
    nodes = nodes_needed(need, instances * one.load, supply)
    rate = choice.rate_of(cell, demand.think_mean_s)
    usd = None if one.usd_per_node_h is None else nodes * one.usd_per_node_h
    users = _users_at_peak(cell, need, demand)
    share, nearest = _nearest(cell, slo)
    return Split(
        instances=instances,
        tp=cell.tp,
        users_per_instance=per_instance,
        users_per_node=instances * per_instance,
        # An imported table has no failing levels at all; that is no sign of a cut search.
        lower_bound=cell.slo is not None and cell.capacity.users_high is None,
        nodes=nodes,
        gpus=nodes * gpus_per_node,
        idle_gpus_per_node=gpus_per_node - instances * cell.tp,
        usd_per_h=usd,
        ttft_s=cell.ttft_s,
        tpot_s=cell.tpot_s,
        error_rate=cell.error_rate,
        limited_by=cell.capacity.limited_by,
        nearest_limit=None if nearest is None else str(nearest),
        nearest_share=share,
        slo=cell.slo,
        origin=cell.origin,
        provenance=cell.provenance,
        notes=cell.notes,
        max_running=_max_running(cell),
        load_per_node=instances * one.load,
        capacity_users=cell.capacity.users,
        capacity_range=_range(cell.capacity),
        confidence=cell.capacity.confidence,
        requests_per_s_per_node=None if rate is None else rate * instances * supply.used_share_max,
        users_at_peak=None if users is None else users / (nodes * instances),
        missing_nodes=0 if one.nodes_max is None else max(0, nodes - one.nodes_max),
        costs=None if usd is None else _costs(cell, usd, need, demand, users),
    )


def _nearest(cell: Cell, slo: Slo) -> tuple[float | None, Limit | None]:
    """The limit that the cell's figures come nearest to, and the share of it that they use."""
    used = [
        (figure / limit.at_most_s, limit) for limit in slo.limits
        if (figure := choice.figure_of(cell, limit)) is not None
    ]  # fmt: skip
    return max(used, key=lambda pair: pair[0], default=(None, None))


def _costs(cell: Cell, usd_per_h: float, need: int, demand: Demand, users: int | None) -> Costs:
    output_per_s = _tokens_per_s(
        cell, cell.output_tokens_per_s, cell.avg_output_tokens, need, demand
    )
    total_per_s = _tokens_per_s(
        cell, cell.total_tokens_per_s, cell.avg_context_tokens, need, demand
    )
    return costs(
        usd_per_h,
        demand,
        users=users,
        output_tokens_per_s=output_per_s,
        total_tokens_per_s=total_per_s,
    )


def _max_running(cell: Cell) -> int | None:
    """Requests that run at once in the engine that the cell was predicted on; None: not known."""
    if cell.modelled is None:
        return None
    engine = cell.modelled.engine
    told: int | None = (engine.get("policy") or engine).get("max_running")
    if told is not None:
        return told
    with contextlib.suppress(UsageError):  # a GPU of the user's own, whose file is gone
        device = gpu(engine["gpu"], memory_gb=engine.get("gpu_memory_gb"))
        return usual_running(engine.get("engine", "vllm"), device)
    return None


def _users_at_peak(cell: Cell, need: int, demand: Demand) -> int | None:
    if demand.requests_per_s is None:
        return need
    rate = choice.rate_of(cell, demand.think_mean_s)
    assert cell.capacity is not None
    return None if not rate else math.ceil(demand.requests_per_s * cell.capacity.users / rate)


def _tokens_per_s(
    cell: Cell, tokens_per_s: float | None, length: float | None, need: int, demand: Demand
) -> float | None:
    """Tokens/s of the whole demand at the cell's rate per user (or tokens per request)."""
    if demand.requests_per_s is not None:
        return None if length is None else length * demand.requests_per_s
    assert cell.capacity is not None
    if tokens_per_s is None and cell.requests_per_s and length:
        tokens_per_s = cell.requests_per_s * length
    return None if tokens_per_s is None else tokens_per_s / cell.capacity.users * need


def _range(capacity: Capacity) -> tuple[int, int] | None:
    if capacity.users_low is None or capacity.users_high is None:
        return None
    return capacity.users_low, capacity.users_high


def _preference(split: Split) -> tuple[int, int, float, int]:
    room = math.inf if split.nearest_share is None else split.nearest_share
    return (-split.load_per_node, split.origin == "predicted", room, split.instances)


def _gpu(kind: Kind, splits: Sequence[Split], gpus_per_node: int, slo: Slo) -> GpuPlan:
    ordered = tuple(sorted(splits, key=_preference))
    return GpuPlan(
        gpu=kind.label,
        interconnect=kind.interconnect,
        gpus_per_node=gpus_per_node,
        splits=ordered,
        reasons=reasons(ordered, kind.interconnect),
        warnings=warnings(ordered[0], slo),
    )

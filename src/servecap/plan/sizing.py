"""How many nodes carry the users that were asked for, per model and GPU type.

Only what a cell states is used: its users at capacity, and its latencies and error rate to hold
them against the SLO. Throughput is not, so a table with wrong requests/s still plans.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

import msgspec

from servecap import slo as slos
from servecap.cell import Cell
from servecap.errors import UsageError
from servecap.plan.answer import Demand, GpuPlan, LeftOut, ModelPlan, Plan, Split, Supply
from servecap.plan.reasons import caveats, reasons, time_text, warnings
from servecap.slo import Limit, Slo

CHECKABLE = ("ttft.mean", "tpot.mean")  # the statistics that a cell itself holds


class _Type(msgspec.Struct, frozen=True):
    """A kind of GPU that nodes are made of."""

    label: str
    names: frozenset[str]  # how users may call it
    interconnect: str | None


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
    GPU types rank by cost if all have a price, else by GPUs.

    Args:
        models: only these; none means all.
        scenario: only cells of this one (never mixed); None: the scenario with most cells.
    Raises:
        UsageError: nothing fits the filters, a name or number makes no sense, a place has two
            cells, or the SLO has a limit that no cell can be held against.
    """
    supply = supply or Supply()
    _check_numbers(demand, supply)
    if not cells:
        raise UsageError("the matrix has no cells; fill it or import a table first")
    _check_names(cells, supply)
    chosen = _of_models(cells, models)
    scenario = _scenario(chosen, scenario)
    inside = _one_per_place([c for c in chosen if c.scenario == scenario])
    _check_limits(inside, slo)
    by_model: dict[str, list[Cell]] = {}
    for cell in inside:
        by_model.setdefault(cell.model.casefold(), []).append(cell)
    planned = tuple(_model(group, demand, supply, slo) for group in by_model.values())
    others = [
        LeftOut(_name(cell), f"its scenario is {cell.scenario}, not {scenario}")
        for cell in chosen if cell.scenario != scenario
    ]  # fmt: skip
    return Plan(
        users=demand.users,
        scenario=scenario,
        slo=str(slo),
        models=planned,
        left_out=tuple(others),
        caveats=caveats(planned),
    )


def gpu_label(cell: Cell) -> str:
    """The GPU type with its memory, for example "A100-40GB"."""
    if cell.gpu_memory_gb is None:
        return cell.gpu
    memory = f"{cell.gpu_memory_gb:g}GB"
    return cell.gpu if memory.casefold() in cell.gpu.casefold() else f"{cell.gpu}-{memory}"


def _type(cell: Cell) -> _Type:
    label = gpu_label(cell)
    return _Type(label, frozenset({cell.gpu.casefold(), label.casefold()}), cell.interconnect)


def _name(cell: Cell) -> str:
    return f"{cell.model} on {gpu_label(cell)}, TP{cell.tp}, {cell.scenario}"


def _check_numbers(demand: Demand, supply: Supply) -> None:
    if demand.users < 1:
        raise UsageError(f"users {demand.users}: at least 1 is needed")
    for gpu, count in [("", supply.gpus_per_node), *supply.gpus_per_node_of.items()]:
        if count < 1:
            raise UsageError(f"GPUs per node {gpu}{'=' if gpu else ''}{count}: must be at least 1")
    for price in supply.prices:
        if not 0 < price.usd_per_h < math.inf:
            raise UsageError(f"price {price.gpu}={price.usd_per_h:g}: must be greater than 0")


def _check_names(cells: Sequence[Cell], supply: Supply) -> None:
    known = sorted({gpu_label(cell) for cell in cells})
    names = {name for cell in cells for name in _type(cell).names}
    for gpu in (*supply.gpus_per_node_of, *(price.gpu for price in supply.prices)):
        if gpu.casefold() not in names:
            raise UsageError(f"GPU {gpu!r} is not in the matrix, which has {', '.join(known)}")
    priced = Counter(price.gpu.casefold() for price in supply.prices)
    for gpu, count in priced.items():
        if count > 1:
            raise UsageError(f"GPU {gpu!r} has {count} prices; give one, per GPU or per node")


def _of_models(cells: Sequence[Cell], models: Sequence[str]) -> list[Cell]:
    known = {cell.model.casefold(): cell.model for cell in cells}
    for model in models:
        if model.casefold() not in known:
            near = get_close_matches(model.casefold(), known, n=1)
            hint = f"did you mean {known[near[0]]}?" if near else f"it has {', '.join(known)}"
            raise UsageError(f"model {model!r} is not in the matrix; {hint}")
    wanted = {model.casefold() for model in models}
    return [cell for cell in cells if not wanted or cell.model.casefold() in wanted]


def _scenario(cells: Sequence[Cell], scenario: str | None) -> str:
    counts = Counter(cell.scenario for cell in cells)
    if scenario is None:
        return max(sorted(counts), key=lambda name: counts[name])
    if scenario not in counts:
        known = ", ".join(sorted(counts))
        raise UsageError(f"scenario {scenario!r} is not in the matrix; it has {known}")
    return scenario


def _one_per_place(cells: Sequence[Cell]) -> list[Cell]:
    """One cell for each place: a measured one stands in front of a predicted one."""
    places: dict[tuple[str, str, str | None, int], Cell] = {}
    for cell in cells:
        place = (cell.model.casefold(), gpu_label(cell).casefold(), cell.interconnect, cell.tp)
        before = places.get(place)
        if before is not None and before.origin == cell.origin:
            raise UsageError(
                f"{_name(cell)} is there twice ({before.provenance}; {cell.provenance}); keep one"
            )
        if before is None or cell.origin == "measured":
            places[place] = cell
    return list(places.values())


def _figure(cell: Cell, limit: Limit) -> float | None:
    """The cell's own figure for what the limit bounds, if it has one."""
    if limit.statistic != "mean":
        return None
    return {"ttft": cell.ttft_s, "tpot": cell.tpot_s}.get(limit.metric)


def _own_limit(cell: Cell, limit: Limit) -> Limit | None:
    """The limit on the same statistic under which the cell's capacity was found."""
    return None if cell.slo is None else slos.parse(cell.slo).limit(limit.metric, limit.statistic)


def _check_limits(cells: Sequence[Cell], slo: Slo) -> None:
    for limit in slo.limits:
        if not any(_figure(c, limit) is not None or _own_limit(c, limit) for c in cells):
            raise UsageError(
                f"SLO limit {limit} cannot be checked: these cells tell only "
                f"{' and '.join(CHECKABLE)}; limit those, or measure the cells under this SLO"
            )


def _broken(cell: Cell, slo: Slo) -> list[str]:
    """Each limit that the cell breaks, or cannot be held against, in words."""
    found: list[str] = []
    for limit in slo.limits:
        figure, own = _figure(cell, limit), _own_limit(cell, limit)
        statistic = f"{limit.metric}.{limit.statistic}"
        if figure is not None:
            if figure > limit.at_most_s * (1 + 1e-9):
                value = time_text(limit.metric, figure)
                found.append(f"{limit.metric.upper()} {value} breaks {limit}")
        elif own is None:
            found.append(f"{statistic} is not known, so {limit} cannot be checked")
        elif own.at_most_s > limit.at_most_s:
            found.append(f"its capacity was found under {own}, which is looser than {limit}")
    if cell.error_rate is not None and cell.error_rate > slo.error_share_max:
        found.append(
            f"error rate {cell.error_rate:.3g} breaks error_rate<{slo.error_share_max * 100:g}%"
        )
    return found


def _why_not(cell: Cell, slo: Slo, gpus_per_node: int) -> str | None:
    """Why the cell takes no part; None if it does."""
    if cell.capacity is None:
        return f"has no capacity: {cell.invalid_reason or 'no reason recorded'}"
    if cell.invalid_reason is not None:
        return f"is not valid: {cell.invalid_reason}"
    if cell.capacity.users < 1:
        return "no number of users was seen to keep its SLO"
    broken = _broken(cell, slo)
    if cell.tp > gpus_per_node:
        broken.append(f"needs {cell.tp} GPUs in one node, which has {gpus_per_node}")
    return "; ".join(broken) or None


def _model(cells: Sequence[Cell], demand: Demand, supply: Supply, slo: Slo) -> ModelPlan:
    groups: dict[tuple[str, str | None], tuple[_Type, list[Split]]] = {}
    left_out: list[LeftOut] = []
    for cell in cells:
        kind = _type(cell)
        per_node = _gpus_per_node(kind, supply)
        why = _why_not(cell, slo, per_node)
        if why is not None:
            left_out.append(LeftOut(_name(cell), why, _would_carry(cell, per_node)))
            continue
        group = groups.setdefault((kind.label.casefold(), kind.interconnect), (kind, []))
        group[1].append(_split(cell, kind, per_node, demand, supply, slo))
    gpus = [
        _gpu(kind, splits, _gpus_per_node(kind, supply), slo) for kind, splits in groups.values()
    ]
    priced = bool(gpus) and all(gpu.best.usd_per_h is not None for gpu in gpus)
    gpus.sort(key=lambda gpu: (gpu.best.usd_per_h if priced else 0, gpu.best.gpus, gpu.gpu))
    return ModelPlan(
        model=cells[0].model,
        ranked_by="usd_per_h" if priced else "gpus",
        gpus=tuple(gpus),
        left_out=tuple(left_out),
    )


def _would_carry(cell: Cell, gpus_per_node: int) -> int | None:
    """Users that a node of such cells would carry if nothing spoke against it."""
    if cell.capacity is None or cell.tp > gpus_per_node:
        return None
    return gpus_per_node // cell.tp * cell.capacity.users


def _gpus_per_node(kind: _Type, supply: Supply) -> int:
    """The node's size: for the full type if one is given, else for the name, else the default."""
    sizes = {name.casefold(): count for name, count in supply.gpus_per_node_of.items()}
    by_name = next((sizes[name] for name in sorted(kind.names) if name in sizes), None)
    return sizes.get(kind.label.casefold(), by_name) or supply.gpus_per_node


def _usd_per_node_h(kind: _Type, gpus_per_node: int, supply: Supply) -> float | None:
    prices = {price.gpu.casefold(): price for price in supply.prices}
    by_name = next((prices[name] for name in sorted(kind.names) if name in prices), None)
    price = prices.get(kind.label.casefold(), by_name)
    if price is None:
        return None
    return price.usd_per_h * (gpus_per_node if price.per == "gpu" else 1)


def _split(
    cell: Cell, kind: _Type, gpus_per_node: int, demand: Demand, supply: Supply, slo: Slo
) -> Split:
    assert cell.capacity is not None  # _why_not has seen to it
    instances = gpus_per_node // cell.tp
    users_per_node = instances * cell.capacity.users
    nodes = -(-demand.users // users_per_node)  # rounded up
    usd_per_node_h = _usd_per_node_h(kind, gpus_per_node, supply)
    used = [
        (figure / limit.at_most_s, limit) for limit in slo.limits
        if (figure := _figure(cell, limit)) is not None
    ]  # fmt: skip
    share, nearest = max(used, key=lambda pair: pair[0], default=(None, None))
    return Split(
        instances=instances,
        tp=cell.tp,
        users_per_instance=cell.capacity.users,
        users_per_node=users_per_node,
        # An imported table has no failing levels at all; that is no sign of a cut search.
        lower_bound=cell.slo is not None and cell.capacity.users_high is None,
        nodes=nodes,
        gpus=nodes * gpus_per_node,
        idle_gpus_per_node=gpus_per_node - instances * cell.tp,
        usd_per_h=None if usd_per_node_h is None else nodes * usd_per_node_h,
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
    )


def _preference(split: Split) -> tuple[int, int, float, int]:
    room = math.inf if split.nearest_share is None else split.nearest_share
    return (-split.users_per_node, split.origin == "predicted", room, split.instances)


def _gpu(kind: _Type, splits: Sequence[Split], gpus_per_node: int, slo: Slo) -> GpuPlan:
    ordered = tuple(sorted(splits, key=_preference))
    return GpuPlan(
        gpu=kind.label,
        interconnect=kind.interconnect,
        gpus_per_node=gpus_per_node,
        splits=ordered,
        reasons=reasons(ordered, kind.interconnect),
        warnings=warnings(ordered[0], slo),
    )

"""Fleets of several node types, of nodes cut unequally, and of models that share nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from servecap.cell import Cell
from servecap.plan.answer import Demand, Fleet, Part, Supply
from servecap.plan.choice import Kind
from servecap.plan.costs import costs
from servecap.plan.optimum import Offer, Problem, solve
from servecap.plan.packing import Instance, Packing, packings, shared


class Usable(msgspec.Struct, frozen=True, kw_only=True):
    """A cell that may take part, on the nodes it would run on. `load` is an instance's."""

    cell: Cell
    kind: Kind
    gpus_per_node: int
    load: int
    usd_per_node_h: float | None
    nodes_max: int | None


class _Node(msgspec.Struct, frozen=True):
    """A node of one kind, cut in one way: a packing for each model."""

    one: Usable  # any cell on that kind: the node's size, price and number
    ways: tuple[Packing, ...]


def best_fleet(
    usable: Mapping[str, Sequence[Usable]],
    needs: Mapping[str, int],
    demand: Demand,
    supply: Supply,
) -> Fleet | None:
    """The cheapest fleet that carries every model's need; None: there is none.

    By USD per hour where all usable GPU types have a price, else by GPUs. Models may share a
    node, each on GPUs of its own.
    """
    models = list(usable)
    kinds = _kinds(usable)
    if not kinds:
        return None
    firsts = [group[0] for group in kinds.values()]
    priced = all(one.usd_per_node_h is not None for one in firsts)
    nodes: list[_Node] = []
    offers: list[Offer] = []
    for index, group in enumerate(kinds.values()):
        for ways in _ways(models, group):
            nodes.append(_Node(group[0], ways))
            cost = group[0].usd_per_node_h if priced else float(group[0].gpus_per_node)
            assert cost is not None
            loads = tuple(way.load for way in ways)
            offers.append(Offer(index, cost, loads, group[0].gpus_per_node))
    found = solve(
        Problem(
            offers=tuple(offers),
            needs=tuple(needs[model] for model in models),
            at_most=tuple(one.nodes_max for one in firsts),
            nodes_lost=supply.spare_nodes,
            zone_lost=supply.zone_lost,
        )
    )
    if found is None:
        return None
    parts = [
        _part(node, count, models, usable)
        for node, count in zip(nodes, found.counts, strict=True) if count
    ]  # fmt: skip
    usd = found.cost if priced else None
    return Fleet(
        models=tuple(models),
        parts=tuple(sorted(parts, key=lambda p: (-p.nodes, p.gpu, p.split_text))),
        nodes=sum(part.nodes for part in parts),
        gpus=sum(part.nodes * part.gpus_per_node for part in parts),
        usd_per_h=usd,
        ranked_by="usd_per_h" if priced else "gpus",
        gap_share=found.gap_share,
        costs=None if usd is None else costs(usd, demand, users=demand.users),
    )


def _kinds(
    usable: Mapping[str, Sequence[Usable]],
) -> dict[tuple[str, str | None], list[Usable]]:
    """All usable cells by the kind of node they run on."""
    found: dict[tuple[str, str | None], list[Usable]] = {}
    for group in usable.values():
        for one in group:
            found.setdefault((one.kind.label.casefold(), one.kind.interconnect), []).append(one)
    return found


def _ways(models: Sequence[str], group: Sequence[Usable]) -> list[tuple[Packing, ...]]:
    gpus = group[0].gpus_per_node
    return shared(
        [
            packings(
                [
                    Instance(one.cell.tp, one.load) for one in group
                    if one.cell.model.casefold() == model.casefold()
                ],
                gpus,
            )
            for model in models
        ]
    )  # fmt: skip


def _part(
    node: _Node, count: int, models: Sequence[str], usable: Mapping[str, Sequence[Usable]]
) -> Part:
    one = node.one
    split = [
        (model, tp, instances)
        for model, way in zip(models, node.ways, strict=True)
        for tp, instances in way.parts
    ]
    predicted = any(
        u.cell.origin == "predicted"
        for model, tp, _ in split for u in usable[model]
        if u.cell.tp == tp and u.kind.label == one.kind.label
        and u.kind.interconnect == one.kind.interconnect
    )  # fmt: skip
    return Part(
        gpu=one.kind.label,
        interconnect=one.kind.interconnect,
        gpus_per_node=one.gpus_per_node,
        nodes=count,
        split=tuple(split),
        usd_per_h=None if one.usd_per_node_h is None else count * one.usd_per_node_h,
        predicted=predicted,
    )

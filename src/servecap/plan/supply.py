"""A supply file: the node types that can be had, with their prices, in YAML."""

from __future__ import annotations

from pathlib import Path

import msgspec

from servecap.matrix.document import read
from servecap.plan.answer import Price, Supply
from servecap.plan.costs import Purchase, usd_per_h


class NodeType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of node. Either `usd_per_h` of a whole node, or `purchase`, or no price."""

    gpu: str
    gpus: int = 8
    usd_per_h: float | None = None
    purchase: Purchase | None = None
    at_most: int | None = None


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of a supply file."""

    nodes: list[NodeType]


def read_supply(path: Path) -> Supply:
    """The node types in a YAML file, and no others; amounts are for whole nodes.

    Raises:
        UsageError: it cannot be read or meant; the message names file, line and key.
    """
    document = read(path)
    root = document.root
    document.check_keys(root, msgspec.structs.fields(File), ())
    nodes = root.get("nodes")
    for index, node in enumerate(nodes if isinstance(nodes, list) else ()):
        document.check_keys(node, msgspec.structs.fields(NodeType), ("nodes", index))
        if "purchase" in node:
            fields = msgspec.structs.fields(Purchase)
            document.check_keys(node["purchase"], fields, ("nodes", index, "purchase"))
    file = document.convert(root, File, ())
    prices: list[Price] = []
    notes: list[str] = []
    seen: set[str] = set()
    for index, node in enumerate(file.nodes):
        where = ("nodes", index)
        if node.gpu.casefold() in seen:
            raise document.error((*where, "gpu"), f"{node.gpu!r} is there twice; keep one")
        seen.add(node.gpu.casefold())
        if node.usd_per_h is not None and node.purchase is not None:
            raise document.error(where, "has usd_per_h and purchase; keep one")
        if node.usd_per_h is not None:
            prices.append(Price(node.gpu, node.usd_per_h, "node"))
        elif node.purchase is not None:
            usd = usd_per_h(node.purchase, f"{path}, {node.gpu}")
            prices.append(Price(node.gpu, usd, "node"))
            notes.append(_bought(node.gpu, node.purchase, usd))
    return Supply(
        gpus_per_node_of={node.gpu: node.gpus for node in file.nodes},
        prices=tuple(prices),
        nodes_max_of={n.gpu: n.at_most for n in file.nodes if n.at_most is not None},
        only_listed=True,
        notes=tuple(notes),
    )


def _bought(gpu: str, purchase: Purchase, usd: float) -> str:
    power = purchase.power_kw * purchase.overhead
    run = f", {power:g} kW at {purchase.usd_per_kwh:g} USD/kWh" if power else ""
    more = f", {purchase.usd_per_year:g} USD a year beside" if purchase.usd_per_year else ""
    return (
        f"a node of {gpu} is {usd:.2f} USD/h: {purchase.usd:g} USD over {purchase.years:g} "
        f"years{run}{more}; no interest, no resale value, full power all the time"
    )

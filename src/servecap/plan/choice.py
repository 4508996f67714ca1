"""Which cells of a matrix may take part in a plan, and why the others may not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

import msgspec

from servecap import slo as slos
from servecap.cell import Cell
from servecap.errors import UsageError
from servecap.plan.answer import Demand, Supply
from servecap.plan.reasons import time_text
from servecap.slo import Limit, Slo

CHECKABLE = ("ttft.mean", "tpot.mean")  # the statistics that a cell itself holds


class Kind(msgspec.Struct, frozen=True):
    """A kind of GPU that nodes are made of."""

    label: str
    names: frozenset[str]  # how users may call it
    interconnect: str | None


def gpu_label(cell: Cell) -> str:
    """The GPU type with its memory, for example "A100-40GB"."""
    if cell.gpu_memory_gb is None:
        return cell.gpu
    memory = f"{cell.gpu_memory_gb:g}GB"
    return cell.gpu if memory.casefold() in cell.gpu.casefold() else f"{cell.gpu}-{memory}"


def kind_of(cell: Cell) -> Kind:
    """The kind of GPU that the cell was had on."""
    label = gpu_label(cell)
    return Kind(label, frozenset({cell.gpu.casefold(), label.casefold()}), cell.interconnect)


def name_of(cell: Cell) -> str:
    """The cell's place in words: "llama-13b on A30-24GB, TP4, chat"."""
    return f"{cell.model} on {gpu_label(cell)}, TP{cell.tp}, {cell.scenario}"


def check_numbers(demand: Demand, supply: Supply) -> None:
    """Returns if every number makes sense.

    Raises:
        UsageError: the first that does not.
    """
    given = [d for d in (demand.users, demand.requests_per_s) if d is not None]
    if len(given) != 1:
        raise UsageError("say how much must be carried: users, or requests per second")
    for model, users in demand.users_of.items():
        if users < 1:
            raise UsageError(f"users {model}={users}: at least 1 is needed")
    if demand.users is not None and demand.users < 1:
        raise UsageError(f"users {demand.users}: at least 1 is needed")
    rate = demand.requests_per_s
    if rate is not None and not 1e-3 <= rate < math.inf:
        raise UsageError(f"requests/s {rate:g}: must be at least 0.001")
    _check_reserve(supply)
    for gpu, count in [("", supply.gpus_per_node), *supply.gpus_per_node_of.items()]:
        if count < 1:
            raise UsageError(f"GPUs per node {gpu}{'=' if gpu else ''}{count}: must be at least 1")
    for price in supply.prices:
        if not 0 < price.usd_per_h < math.inf:
            raise UsageError(f"price {price.gpu}={price.usd_per_h:g}: must be greater than 0")


def _check_reserve(supply: Supply) -> None:
    if not 0 < supply.used_share_max <= 1:
        raise UsageError(
            f"headroom {1 - supply.used_share_max:.0%}: must lie within 0% and 100%, without 100%"
        )
    if supply.spare_nodes < 0 or supply.zones < 1:
        raise UsageError(
            f"spare nodes {supply.spare_nodes}, zones {supply.zones}: at least 0 and 1"
        )
    weights = supply.zone_weights
    if weights and (len(weights) != supply.zones or min(weights) < 1 or len(weights) < 2):
        raise UsageError(
            f"zones {':'.join(map(str, weights))}: give a part of at least 1 for each of at least "
            "two zones, for example 2:1:1"
        )
    if supply.spare_nodes and supply.zones > 1:
        raise UsageError("give spare nodes or zones, not both: a zone's loss takes many nodes")
    for gpu, count in supply.nodes_max_of.items():
        if count < 0:
            raise UsageError(f"nodes {gpu}={count}: must be at least 0")


def check_names(cells: Sequence[Cell], supply: Supply) -> None:
    """Returns if every GPU that the supply names is in the matrix, with one price at most.

    Raises:
        UsageError: the first that is not.
    """
    known = sorted({gpu_label(cell) for cell in cells})
    names = {name for cell in cells for name in kind_of(cell).names}
    asked = (*supply.gpus_per_node_of, *supply.nodes_max_of, *(p.gpu for p in supply.prices))
    for gpu in asked:
        if gpu.casefold() not in names:
            raise UsageError(f"GPU {gpu!r} is not in the matrix, which has {', '.join(known)}")
    priced = Counter(price.gpu.casefold() for price in supply.prices)
    for gpu, count in priced.items():
        if count > 1:
            raise UsageError(f"GPU {gpu!r} has {count} prices; give one, per GPU or per node")


def of_models(cells: Sequence[Cell], models: Sequence[str]) -> list[Cell]:
    """The cells of those models; of all where none is named.

    Raises:
        UsageError: a model is not there; the nearest name is told.
    """
    known = {cell.model.casefold(): cell.model for cell in cells}
    for model in models:
        if model.casefold() not in known:
            near = get_close_matches(model.casefold(), known, n=1)
            hint = f"did you mean {known[near[0]]}?" if near else f"it has {', '.join(known)}"
            raise UsageError(f"model {model!r} is not in the matrix; {hint}")
    wanted = {model.casefold() for model in models}
    return [cell for cell in cells if not wanted or cell.model.casefold() in wanted]


def scenario_of(cells: Sequence[Cell], scenario: str | None) -> str:
    """The scenario asked for, else the one with most cells.

    Raises:
        UsageError: no cell is of it.
    """
    counts = Counter(cell.scenario for cell in cells)
    if scenario is None:
        return max(sorted(counts), key=lambda name: counts[name])
    if scenario not in counts:
        known = ", ".join(sorted(counts))
        raise UsageError(f"scenario {scenario!r} is not in the matrix; it has {known}")
    return scenario


def one_per_place(cells: Sequence[Cell]) -> list[Cell]:
    """One cell for each place: a measured one stands in front of a predicted one."""
    places: dict[tuple[str, str, str | None, int], Cell] = {}
    for cell in cells:
        place = (cell.model.casefold(), gpu_label(cell).casefold(), cell.interconnect, cell.tp)
        before = places.get(place)
        if before is not None and before.origin == cell.origin:
            raise UsageError(
                f"{name_of(cell)} is there twice ({before.provenance}; {cell.provenance}); keep one"
            )
        if before is None or cell.origin == "measured":
            places[place] = cell
    return list(places.values())


def figure_of(cell: Cell, limit: Limit) -> float | None:
    """The cell's own figure for what the limit bounds, if it has one."""
    if limit.statistic != "mean":
        return None
    return {"ttft": cell.ttft_s, "tpot": cell.tpot_s}.get(limit.metric)


def _own_limit(cell: Cell, limit: Limit) -> Limit | None:
    """The limit on the same statistic under which the cell's capacity was found."""
    return None if cell.slo is None else slos.parse(cell.slo).limit(limit.metric, limit.statistic)


def check_limits(cells: Sequence[Cell], slo: Slo) -> None:
    """Returns if every limit can be held against some cell.

    Raises:
        UsageError: the first that cannot.
    """
    for limit in slo.limits:
        if not any(figure_of(c, limit) is not None or _own_limit(c, limit) for c in cells):
            raise UsageError(f"SLO limit {limit} cannot be checked: {_what_tells(limit)}")


def _what_tells(limit: Limit) -> str:
    """What a table lacks to be held against the limit."""
    if f"{limit.metric}.{limit.statistic}" in CHECKABLE:
        return (
            f"no cell tells its {limit.metric.upper()}; add a column {limit.metric}_ms, or a "
            "column slo with the limits that the users were found under"
        )
    return (
        f"these cells tell only {' and '.join(CHECKABLE)}; limit those, or measure the cells "
        "under this SLO"
    )


def _broken(cell: Cell, slo: Slo) -> list[str]:
    """Each limit that the cell breaks, or cannot be held against, in words."""
    found: list[str] = []
    for limit in slo.limits:
        figure, own = figure_of(cell, limit), _own_limit(cell, limit)
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


def why_not(cell: Cell, slo: Slo, gpus_per_node: int, demand: Demand, supply: Supply) -> str | None:
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
    if nodes_max(kind_of(cell), supply) == 0:
        broken.append("no node of it can be had")
    load = load_of(cell, demand, supply)
    if load is None:
        broken.append("neither its requests/s nor the answers' length is known")
    elif load < 1:
        broken.append(f"carries nobody with a headroom of {1 - supply.used_share_max:.0%}")
    return "; ".join(broken) or None


def gpus_per_node(kind: Kind, supply: Supply) -> int:
    """The node's size: for the full type if one is given, else for the name, else the default."""
    sizes = {name.casefold(): count for name, count in supply.gpus_per_node_of.items()}
    by_name = next((sizes[name] for name in sorted(kind.names) if name in sizes), None)
    return sizes.get(kind.label.casefold(), by_name) or supply.gpus_per_node


def nodes_max(kind: Kind, supply: Supply) -> int | None:
    """How many nodes of the kind can be had; None: any number."""
    listed = {name.casefold() for name in supply.gpus_per_node_of}
    if supply.only_listed and not listed & {*kind.names, kind.label.casefold()}:
        return 0
    found = {name.casefold(): count for name, count in supply.nodes_max_of.items()}
    by_name = next((found[name] for name in sorted(kind.names) if name in found), None)
    return found.get(kind.label.casefold(), by_name)


def usd_per_node_h(kind: Kind, gpus_per_node: int, supply: Supply) -> float | None:
    """What a node of the kind costs an hour; None: no price is known."""
    prices = {price.gpu.casefold(): price for price in supply.prices}
    by_name = next((prices[name] for name in sorted(kind.names) if name in prices), None)
    price = prices.get(kind.label.casefold(), by_name)
    if price is None:
        return None
    return price.usd_per_h * (gpus_per_node if price.per == "gpu" else 1)


def rate_of(cell: Cell, think_mean_s: float) -> float | None:
    """Requests/s at capacity: the cell's own, else by Little's law from its latencies."""
    if cell.requests_per_s or cell.capacity is None:
        return cell.requests_per_s
    if cell.ttft_s is None or cell.tpot_s is None or cell.avg_output_tokens is None:
        return None
    cycle_s = cell.ttft_s + max(0.0, cell.avg_output_tokens - 1) * cell.tpot_s + think_mean_s
    return cell.capacity.users / cycle_s


def load_of(cell: Cell, demand: Demand, supply: Supply) -> int | None:
    """What an instance is given: users, or thousandths of requests/s; None: not known."""
    if cell.capacity is None:
        return None
    share = supply.used_share_max
    if demand.requests_per_s is None:
        return math.floor(cell.capacity.users * share + 1e-9)
    rate = rate_of(cell, demand.think_mean_s)
    return None if rate is None else math.floor(rate * share * 1000 + 1e-6)


def need_of(demand: Demand, model: str) -> int:
    """What must be carried of the model, in the unit of `load_of`."""
    if demand.requests_per_s is not None:
        return math.ceil(demand.requests_per_s * 1000 - 1e-6)
    of = {name.casefold(): users for name, users in demand.users_of.items()}
    users = of.get(model.casefold(), demand.users)
    assert users is not None  # check_numbers has seen to it
    return users

"""The words of a plan: why a split won, what limits it, and what the plan does not know."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

from servecap import slo as slos
from servecap.plan.answer import Demand, Fleet, GpuPlan, ModelPlan, Split, Supply
from servecap.slo import Slo

NOTABLE_ERROR_RATE = 0.01
ROOM_BELOW = 0.75  # the nearest limit used less than this: more users might have fitted


def time_text(metric: str, seconds: float) -> str:
    """A latency as people read it: TPOT and gaps in ms, the rest in s."""
    if metric in ("tpot", "gap"):
        return f"{seconds * 1e3:.4g} ms"
    return f"{seconds:.4g} s"


def reasons(splits: Sequence[Split], interconnect: str | None) -> tuple[str, ...]:
    """Why the first of *splits* (best first) is the choice, and what limits it."""
    found = [_choice(splits), _scaling(splits, interconnect), _bounds(splits), _limit(splits[0])]
    return tuple(text for text in found if text)


def _choice(splits: Sequence[Split]) -> str:
    best = splits[0]
    ties = [s for s in splits if s.users_per_node == best.users_per_node]
    if len(ties) > 1:
        return (
            f"{_listed([s.name for s in ties])} tie at {best.users_per_node} users a node; "
            f"{best.name} is named first: {_tie_break(ties)}"
        )
    if len(splits) == 1:
        return f"{best.name} is the only usable split: {best.users_per_node} users a node"
    return f"{best.name} carries {best.users_per_node} users a node; {_others(splits[1:])}"


def _others(splits: Sequence[Split]) -> str:
    """The runners-up, those with equal users named together."""
    parts: list[str] = []
    for users, group in groupby(splits, key=lambda s: s.users_per_node):
        names = [s.name for s in group]
        tie = " (a tie)" if len(names) > 1 else ""
        parts.append(f"{_listed(names)} {users}{tie}")
    return "; ".join(parts)


def _tie_break(ties: Sequence[Split]) -> str:
    best, others = ties[0], ties[1:]
    if best.origin == "measured" and any(s.origin == "predicted" for s in others):
        return "it is measured"
    mine, second = best.nearest_share, others[0].nearest_share
    if mine is not None and (second is None or mine < second):
        theirs = "unknown" if second is None else f"{second:.0%}"
        return f"it uses {mine:.0%} of its nearest limit, {others[0].name} {theirs}"
    return "it has fewer, larger instances"


def _scaling(splits: Sequence[Split], interconnect: str | None) -> str:
    """How the users per GPU change with the tensor-parallel degree."""
    by_tp = sorted(splits, key=lambda s: s.tp)
    if len(by_tp) < 2:
        return ""
    figures = ", ".join(f"{s.users_per_gpu:.4g} at TP{s.tp}" for s in by_tp)
    over = f" over {interconnect}" if interconnect else ""
    falls = [
        f"TP{a.tp} to TP{b.tp}" for a, b in pairwise(by_tp)
        if b.users_per_gpu < a.users_per_gpu
    ]  # fmt: skip
    if not falls:
        return f"Users per GPU{over}: {figures}; a higher TP does not cost users here"
    return f"Users per GPU{over}: {figures}; they fall from {_listed(falls)}"


def _bounds(splits: Sequence[Split]) -> str:
    bounded = [s.name for s in splits if s.lower_bound]
    if not bounded:
        return ""
    order = ", so the order may be another" if len(splits) > 1 else ""
    return (
        f"The users of {_listed(bounded)} are a lower bound: the search ended before any level "
        f"failed{order}"
    )


def _limit(split: Split) -> str:
    if split.limited_by:
        return f"{split.name} is limited by {split.limited_by}"
    if split.nearest_limit is None or split.nearest_share is None:
        return ""
    used = f"{split.name} uses {split.nearest_share:.0%} of {split.nearest_limit}"
    if split.nearest_share < ROOM_BELOW:
        return f"{used}, its nearest limit: more users might fit than the cell records"
    return f"{used}, its nearest limit"


def _engine(provenance: str) -> str:
    """Whose prediction it is: a cell of our own names no file."""
    own = provenance == "engine model"
    return "the engine model" if own else f"an engine model ({provenance})"


def warnings(split: Split, slo: Slo) -> tuple[str, ...]:
    """What a buyer must know of the chosen split's cell."""
    found: list[str] = []
    if split.origin == "predicted":
        found.append(f"{split.name} is predicted by {_engine(split.provenance)}")
    if split.error_rate is not None and split.error_rate > NOTABLE_ERROR_RATE:
        found.append(f"{split.error_rate:.1%} of the requests failed at that load")
    if split.missing_nodes:
        found.append(f"{split.nodes} nodes are needed, {split.missing_nodes} more than can be had")
    if split.idle_gpus_per_node:
        found.append(f"{split.idle_gpus_per_node} GPUs of each node stay idle")
    if split.slo is not None and str(slos.parse(split.slo)) != str(slo):
        found.append(f"its capacity was found under {split.slo}, not under the SLO asked here")
    return tuple(found)


def why(gpus: Sequence[GpuPlan], *, priced: bool) -> tuple[str, ...]:
    """Why the first of *gpus* (best first) is the choice, in at most three sentences."""
    if not gpus:
        return ()
    first, best = gpus[0], gpus[0].best
    money = f" at {best.usd_per_h / best.nodes:.2f} USD/h each" if best.usd_per_h else ""
    found = [
        f"{first.gpu} as {best.name} carries {best.users_per_node} users on {first.gpus_per_node} "
        f"GPUs, so {best.nodes} nodes{money} are enough"
    ]
    if len(gpus) > 1:
        found.append(_runner_up(first, gpus[1], priced=priced))
    if len(first.splits) > 1:
        other = first.splits[1]
        fewer = 1 - other.load_per_node / best.load_per_node
        less = f"{other.users_per_node} users, {fewer:.0%} fewer" if fewer else "as many"
        found.append(f"Cut as {other.name} its nodes would carry {less}")
    return tuple(found)


def _runner_up(first: GpuPlan, second: GpuPlan, *, priced: bool) -> str:
    mine, theirs = first.best, second.best
    if theirs.missing_nodes and not mine.missing_nodes:
        return (
            f"{second.gpu} would need {theirs.nodes} nodes, {theirs.missing_nodes} more than can "
            "be had"
        )
    if priced and mine.usd_per_h and theirs.usd_per_h:
        more = theirs.usd_per_h / mine.usd_per_h - 1
        cost = f"costs {theirs.usd_per_h:.2f} USD/h, {more:.0%} more" if more else "costs the same"
    else:
        more = theirs.gpus / mine.gpus - 1
        cost = f"takes {theirs.gpus} GPUs, {more:.0%} more" if more else "takes as many GPUs"
    return f"The next, {second.gpu} as {theirs.name}, {cost}"


def caveats(
    models: Sequence[ModelPlan], demand: Demand, supply: Supply, fleet: Fleet | None
) -> tuple[str, ...]:
    """What the plan does not know or takes for granted."""
    splits = [gpu.splits[0] for model in models for gpu in model.gpus]
    if not splits:
        return ()
    alone = "" if demand.users_of else "; each model is planned as if it alone had all of them"
    found = [
        "users means users at the same time who send, read and think as in the scenario" + alone,
        *demand.notes,
        *supply.notes,
        _reserve(supply),
        "instances of one node are taken not to slow each other, and the users to be spread evenly",
    ]
    if demand.requests_per_s is not None:
        found.append(
            "a rate is carried if the cells' requests/s at capacity are; where a cell has none, "
            f"they follow from its latencies, answers and {demand.think_mean_s:g} s of thinking"
        )
    if any(model.ranked_by == "gpus" for model in models if len(model.gpus) > 1):
        found.append(
            "no price is known for every GPU type, so the order is by number of GPUs, which says "
            "nothing of money; give prices to rank by cost"
        )
    fleets = [f for f in (fleet, *(model.fleet for model in models)) if f is not None]
    if any(f.gap_share for f in fleets):
        gap = max(f.gap_share for f in fleets)
        found.append(f"a mixed fleet might be up to {gap:.1%} cheaper: the search was cut short")
    silent = sum(split.error_rate is None for split in splits)
    if silent:
        found.append(
            f"no error rate is reported for {silent} of {len(splits)} chosen cells, so it was not "
            "checked there"
        )
    return tuple(found)


def _reserve(supply: Supply) -> str:
    headroom = f"{1 - supply.used_share_max:.0%} of each instance's users is kept free; "
    kept = headroom if supply.used_share_max < 1 else ""
    if supply.zones > 1:
        if supply.zone_weights:
            lost, of = supply.zone_lost
            parts = ":".join(map(str, supply.zone_weights))
            return (
                f"{kept}any one of {supply.zones} zones may fail, nodes being spread over them as "
                f"{parts}; the largest holds {lost}/{of} of each kind, rounded up"
            )
        return (
            f"{kept}any one of {supply.zones} zones may fail, nodes being spread evenly over them"
        )
    if supply.spare_nodes:
        nodes = "node" if supply.spare_nodes == 1 else "nodes"
        return f"{kept}any {supply.spare_nodes} {nodes} may fail, and no more"
    return f"{kept}no node is kept in reserve for failures, upgrades or peaks"


def _listed(words: Sequence[str]) -> str:
    """Words joined as in a sentence: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

"""How firm a plan is: other assumptions, break-even points, and what is worth measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from servecap import slo as slos
from servecap.cell import Cell
from servecap.errors import UsageError
from servecap.plan.answer import (
    GpuPlan,
    ModelPlan,
    Outlook,
    Plan,
    Split,
    Supply,
    WhatIf,
)
from servecap.plan.choice import gpu_label, name_of
from servecap.plan.halved import halved
from servecap.plan.sizing import nodes_needed, plan
from servecap.slo import Slo

MORE_USERS = 1.2
HALF = "half the context (prompts and answers half as long, by the engine model)"
TIGHTER, LOOSER = 2 / 3, 1.1  # of every limit on time: 3 s becomes 2 s or 3.3 s
_UNMEASURED_SHARE = 0.2  # how far a prediction, or a search cut short, is varied
_MOST_STEPS = 20_000  # users at which the cheapest type is looked up for break-even points


def with_outlook(
    found: Plan,
    cells: Sequence[Cell],
    *,
    slo: Slo = slos.DEFAULT,
    models: Sequence[str] = (),
) -> Plan:
    """The plan, and what becomes of it under other assumptions.

    Args:
        found, slo, models: a plan of those cells, and what it was asked with.
    """
    what_if: list[WhatIf] = []
    for change, users_times, other_slo in (
        ("20% more load", MORE_USERS, slo),
        ("every time limit a third tighter", 1.0, scaled(slo, TIGHTER)),
        ("every time limit 10% looser", 1.0, scaled(slo, LOOSER)),
    ):
        told = change if other_slo == slo else f"{change} ({_limits(other_slo)})"
        what_if += _compared(
            found, told, _again(found, cells, other_slo, models, times=users_times)
        )
    what_if += [_half(found, model, cells, slo, models) for model in found.models if model.gpus]
    return msgspec.structs.replace(
        found,
        outlook=Outlook(
            what_if=tuple(what_if),
            break_even=tuple(text for model in found.models for text in break_even(model, found)),
            worth_measuring=tuple(_worth(found, cells, slo, models)),
        ),
    )


def _half(
    found: Plan, model: ModelPlan, cells: Sequence[Cell], slo: Slo, models: Sequence[str]
) -> WhatIf:
    """What half the context would change; or why that is not known."""
    try:
        halves = halved(model, cells, found.scenario, slo)
    except UsageError as error:
        why = f"not known: {error}"
    else:
        after = _again(found, halves, slo, models)
        if after is not None:
            return _what_if(model, HALF, next(m for m in after.models if m.model == model.model))
        why = "not known"
    return WhatIf(
        change=HALF, model=model.model, answer=why, nodes=None, gpus=None, usd_per_h=None,
        same_choice=False,
    )  # fmt: skip


def scaled(slo: Slo, factor: float) -> Slo:
    """The SLO with every limit on a time so many times as long, to three digits.

    >>> str(scaled(slos.DEFAULT, 2))
    'ttft.mean<6s,tpot.mean<200ms,error_rate<5%'
    """
    limits = [
        msgspec.structs.replace(x, at_most_s=float(f"{x.at_most_s * factor:.3g}"))
        for x in slo.limits
    ]
    return Slo(tuple(limits), slo.error_share_max)


def _limits(slo: Slo) -> str:
    return ", ".join(str(limit) for limit in slo.limits)


def _again(
    found: Plan, cells: Sequence[Cell], slo: Slo, models: Sequence[str], *, times: float = 1.0
) -> Plan | None:
    """The same question with another SLO or more load; None where it cannot be answered."""
    asked = found.demand
    users, rate = asked.users, asked.requests_per_s
    demand = msgspec.structs.replace(
        asked,
        users=None if users is None else math.ceil(users * times - 1e-9),
        requests_per_s=None if rate is None else rate * times,
        users_of={m: math.ceil(n * times - 1e-9) for m, n in asked.users_of.items()},
    )
    try:
        return plan(
            cells, demand, found.supply, slo=slo, models=models, scenario=found.scenario
        )  # fmt: skip
    except UsageError:  # a tighter SLO may hold a limit that no cell can be held against
        return None


def _compared(found: Plan, change: str, other: Plan | None) -> Iterator[WhatIf]:
    after = {m.model: m for m in other.models} if other is not None else {}
    for model in found.models:
        if model.gpus:
            yield _what_if(model, change, after.get(model.model))


def _what_if(before: ModelPlan, change: str, after: ModelPlan | None) -> WhatIf:
    if after is None or not after.gpus:
        return WhatIf(
            change=change, model=before.model, nodes=None, gpus=None, usd_per_h=None,
            same_choice=False,
            answer="no cell is left: fewer users might keep it, but no cell tells how many",
        )  # fmt: skip
    gpu, best = after.gpus[0], after.gpus[0].best
    same = _choice(before.gpus[0]) == _choice(gpu)
    cost = "" if best.usd_per_h is None else f", {best.usd_per_h:.2f} USD/h"
    words = "the same choice" if same else f"another choice: {gpu.gpu} as {best.name}"
    if len(after.gpus) < len(before.gpus) and not same:
        words += " (cells that break it drop out; fewer users on them might keep it)"
    return WhatIf(
        change=change,
        model=before.model,
        answer=f"{words}, {best.nodes} nodes, {best.gpus} GPUs{cost}",
        nodes=best.nodes,
        gpus=best.gpus,
        usd_per_h=best.usd_per_h,
        same_choice=same,
    )


def _choice(gpu: GpuPlan) -> tuple[str, str | None, int, int]:
    return (gpu.gpu, gpu.interconnect, gpu.best.instances, gpu.best.tp)


def break_even(model: ModelPlan, found: Plan) -> list[str]:
    """What would have to change for another GPU type to be the choice, in words."""
    if len(model.gpus) < 2:
        return []
    first, second = model.gpus[0], model.gpus[1]
    mine, theirs = first.best, second.best
    if mine.missing_nodes or theirs.missing_nodes:
        return []
    if mine.usd_per_h is None or theirs.usd_per_h is None:
        return [
            f"{model.model}: {first.gpu} costs less than {second.gpu} as long as a node of it "
            f"costs less than {theirs.nodes / mine.nodes:.3g} times a node of {second.gpu}"
        ]
    if model.ranked_by == "gpus":  # a third type has no price
        less = "more" if theirs.usd_per_h > mine.usd_per_h else "less"
        return [
            f"{model.model}: {second.gpu} would cost {less}, {theirs.usd_per_h:.2f} USD/h instead "
            f"of {mine.usd_per_h:.2f}: with a price for every GPU type the order is by cost"
        ]
    meet = (
        f"{model.model}: {second.gpu} would cost as little at "
        f"{mine.usd_per_h / theirs.nodes:.2f} USD/h a node instead of "
        f"{theirs.usd_per_h / theirs.nodes:.2f}, or if a node of {first.gpu} cost "
        f"{theirs.usd_per_h / mine.nodes:.2f} instead of {mine.usd_per_h / mine.nodes:.2f}"
    )
    below = _wins_from(model, found)
    return [meet] if below is None else [meet, below]


def _wins_from(model: ModelPlan, found: Plan) -> str | None:
    """The least load from which the first type stays the cheapest up to the demand, in words."""
    if found.demand.requests_per_s is not None or model.users is None:
        return None
    sizes = [g.best.load_per_node for g in model.gpus]
    if sum(model.users // size for size in sizes) > _MOST_STEPS:
        return None
    steps = sorted({k * s for s in sizes for k in range(1, model.users // s + 1)}, reverse=True)
    for users in [model.users, *steps]:
        costs = [_cost(g.best, users, found.supply) for g in model.gpus]
        if costs[0] > min(costs) * (1 + 1e-9):
            other = model.gpus[costs.index(min(costs))]
            return (
                f"{model.model}: {model.gpus[0].gpu} is the cheapest type at every number of "
                f"users from {users + 1} to {model.users}; at {users} it is {other.gpu}"
            )
    return f"{model.model}: {model.gpus[0].gpu} is the cheapest type at any smaller number of users"


def _cost(split: Split, users: int, supply: Supply) -> float:
    assert split.usd_per_h is not None
    each = split.usd_per_h / split.nodes
    return nodes_needed(users, split.load_per_node, supply) * each


def _worth(
    found: Plan, cells: Sequence[Cell], slo: Slo, models: Sequence[str]
) -> Iterator[str]:  # fmt: skip
    """For each cell that is not certain: whether its other end would change the choice."""
    planned = {m.model for m in found.models}
    for index, cell in enumerate(cells):
        if cell.scenario != found.scenario or cell.model not in planned or not cell.capacity:
            continue
        for users, why in _other_ends(cell):
            capacity = msgspec.structs.replace(cell.capacity, users=users)
            other = msgspec.structs.replace(cell, capacity=capacity)
            after = _again(found, [*cells[:index], other, *cells[index + 1 :]], slo, models)
            text = None if after is None else _changed(found, after, cell)
            if text is not None:
                yield f"{name_of(cell)}: {why}; at {users} {text}"


def _other_ends(cell: Cell) -> Iterator[tuple[int, str]]:
    """Users that the cell might carry instead, and why."""
    assert cell.capacity is not None
    users, high = cell.capacity.users, cell.capacity.users_high
    low = cell.capacity.users_low
    if low is not None and high is not None:
        sure = f"{cell.capacity.confidence or 0:.0%}"
        yield max(1, low), f"it is predicted, with a {sure} interval from {low} users"
        yield high, f"it is predicted, with a {sure} interval up to {high} users"
        return
    if high is not None and high > users:
        yield high, f"its interval ends at {high} users, and {users} were planned with"
    if cell.origin == "predicted":
        for share in (1 - _UNMEASURED_SHARE, 1 + _UNMEASURED_SHARE):
            yield max(1, round(users * share)), "it is predicted, not measured"
    elif cell.slo is not None and high is None:
        yield round(users * (1 + _UNMEASURED_SHARE)), "its search ended before any level failed"


def _changed(found: Plan, after: Plan, cell: Cell) -> str | None:
    pairs = zip(found.models, after.models, strict=True)
    before, later = next((b, a) for b, a in pairs if b.model == cell.model)
    if not before.gpus or not later.gpus:
        return None
    old, new = before.gpus[0], later.gpus[0]
    if _choice(old) != _choice(new):
        return f"users the choice would be {new.gpu} as {new.best.name}: measure it before you buy"
    if gpu_label(cell) == old.gpu and cell.tp == old.best.tp and old.best.nodes != new.best.nodes:
        more = new.best.nodes - old.best.nodes
        money = ""
        if new.best.usd_per_h is not None and old.best.usd_per_h is not None:
            money = f" ({new.best.usd_per_h - old.best.usd_per_h:+.2f} USD/h)"
        nodes = "node" if abs(more) == 1 else "nodes"
        way = "more" if more > 0 else "fewer"
        return f"users the plan would need {abs(more)} {nodes} {way}{money}"
    return None

"""The words of a plan: why a split won, what limits it, and what the plan does not know."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

from servecap import slo as slos
from servecap.plan.answer import ModelPlan, Split
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


def warnings(split: Split, slo: Slo) -> tuple[str, ...]:
    """What a buyer must know of the chosen split's cell."""
    found: list[str] = []
    if split.origin == "predicted":
        found.append(f"{split.name} is predicted by an engine model ({split.provenance})")
    if split.error_rate is not None and split.error_rate > NOTABLE_ERROR_RATE:
        found.append(f"{split.error_rate:.1%} of the requests failed at that load")
    if split.idle_gpus_per_node:
        found.append(f"{split.idle_gpus_per_node} GPUs of each node stay idle")
    if split.slo is not None and str(slos.parse(split.slo)) != str(slo):
        found.append(f"its capacity was found under {split.slo}, not under the SLO asked here")
    return tuple(found)


def caveats(models: Sequence[ModelPlan]) -> tuple[str, ...]:
    """What the plan does not know or takes for granted."""
    splits = [gpu.splits[0] for model in models for gpu in model.gpus]
    if not splits:
        return ()
    found = [
        "users means users at the same time who send, read and think as in the scenario; each "
        "model is planned as if it alone had all of them",
        "no node is kept in reserve for failures, upgrades or peaks",
        "instances of one node are taken not to slow each other, and the users to be spread evenly",
    ]
    if any(model.ranked_by == "gpus" for model in models if len(model.gpus) > 1):
        found.append(
            "no price is known for every GPU type, so the order is by number of GPUs, which says "
            "nothing of money; give prices to rank by cost"
        )
    silent = sum(split.error_rate is None for split in splits)
    if silent:
        found.append(
            f"no error rate is reported for {silent} of {len(splits)} chosen cells, so it was not "
            "checked there"
        )
    return tuple(found)


def _listed(words: Sequence[str]) -> str:
    """Words joined as in a sentence: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

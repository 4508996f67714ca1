"""What predictions say together: where more tensor parallelism stops paying, and what a longer
context costs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import TypeVar

from servecap.predict.answer import Answer

# A GPU of a larger group carries at least this share of what one did at the best smaller degree:
# then twice the GPUs carry about twice the users or more.
_PAYS = 0.9

K = TypeVar("K", bound=Hashable)


def conclusions(answers: Sequence[Answer]) -> list[str]:
    """What the answers say together, a sentence each.

    For each model and GPU with several degrees, up to which one users per GPU are kept up; for
    each place with several contexts, how users fall and what binds; and how kinds of GPUs differ.
    """
    known = [a for a in answers if a.max_users is not None and a.max_users.value]
    degrees = _rows(known, lambda a: (a.model, a.gpu, a.scenario, a.context_tokens), lambda a: a.tp)
    contexts = _rows(
        [a for a in answers if a.max_users is not None and a.context_tokens is not None],
        lambda a: (a.model, a.gpu, a.scenario, a.tp),
        lambda a: a.context_tokens or 0,
    )
    several = len({a.context_tokens for a in known}) > 1
    return [
        *(_degrees(row, several) for row in degrees),
        *_fabrics(degrees, several),
        *(_contexts(row) for row in contexts),
        *_strength(contexts),
    ]


def _rows(
    answers: Sequence[Answer], group: Callable[[Answer], K], order: Callable[[Answer], int]
) -> list[list[Answer]]:
    """The answers of each group with at least two different values of *order*, in that order."""
    found: dict[K, dict[int, Answer]] = {}
    for answer in answers:
        found.setdefault(group(answer), {}).setdefault(order(answer), answer)
    return [[row[k] for k in sorted(row)] for row in found.values() if len(row) > 1]


def _users(answer: Answer) -> float:
    assert answer.max_users is not None
    return answer.max_users.value


def _pays_to(row: Sequence[Answer]) -> int:
    """The last place in the row up to which users per GPU are kept up."""
    best = 0
    for k in range(1, len(row)):
        peak = max(_users(a) / a.tp for a in row[:k])
        if _users(row[k]) / row[k].tp < _PAYS * peak:
            break
        best = k
    return best


def _degrees(row: Sequence[Answer], several: bool) -> str:
    best = _pays_to(row)
    told = ", ".join(f"{_users(a) / a.tp:.3g} at TP{a.tp}" for a in row)
    where = f"{row[0].model} on {row[0].gpu}{_at(row[0]) if several else ''}"
    if best == len(row) - 1:
        return f"{where}: users per GPU {told}: more TP goes on paying"
    after = row[best + 1]
    share = after.step_shares.get("interconnect", 0.0)
    return (
        f"{where}: users per GPU {told}: more than TP{row[best].tp} does not pay; at TP{after.tp} "
        f"it is limited by {after.binds}, and the interconnect takes {share:.0%} of a decode step"
    )


def _at(answer: Answer) -> str:
    return f" with {answer.context_tokens:,} tokens"


def _fabrics(rows: Sequence[Sequence[Answer]], several: bool) -> list[str]:
    """Of each model, up to which degree it pays on PCIe and up to which on other fabrics."""
    found: dict[tuple[str, str, int | None], tuple[list[str], list[str]]] = {}
    for row in rows:
        first, best = row[0], _pays_to(row)
        if first.fabric is None:
            continue
        more = " and more" if best == len(row) - 1 else ""
        key = first.model, first.scenario, first.context_tokens
        pcie, linked = found.setdefault(key, ([], []))
        list_of = pcie if first.fabric == "pcie" else linked
        list_of.append(f"{first.gpu} up to TP{row[best].tp}{more}")
    return [
        f"{model}{f' with {context:,} tokens' if several else ''}: more TP pays on PCIe: "
        f"{', '.join(pcie)}; through links of their own: {', '.join(linked)}"
        for (model, _, context), (pcie, linked) in found.items()
        if pcie and linked
    ]


def _contexts(row: Sequence[Answer]) -> str:
    """How users fall as the context grows, and where the bound moves."""
    first, last = row[0], row[-1]
    told = ", ".join(f"{_users(a):.0f} at {a.context_tokens:,}" for a in row)
    moves = [
        f"from {_bound(a)} to {_bound(b)} between {a.context_tokens:,} and {b.context_tokens:,}"
        for a, b in pairwise(row)
        if _bound(a) != _bound(b)
    ]
    bound = f"moves {', '.join(moves)}" if moves else f"stays {_bound(first)}"
    computing = [a.time_shares.get("compute", 0.0) for a in (first, last)]
    return (
        f"{first.model} on {first.gpu}, TP{first.tp}: users by context: {told}; what takes most of "
        f"the engine's time {bound} (computing {computing[0]:.0%} of it at "
        f"{first.context_tokens:,} tokens, {computing[1]:.0%} at {last.context_tokens:,})"
    )


def _bound(answer: Answer) -> str:
    """What takes most of the engine's time."""
    return max(answer.time_shares, key=lambda name: answer.time_shares[name], default="unknown")


def _strength(rows: Sequence[Sequence[Answer]]) -> list[str]:
    """Of places with the same contexts, which lose more users by them."""
    found: dict[tuple[str, str, int | None, int | None], list[tuple[float, str]]] = {}
    for row in rows:
        first, last = row[0], row[-1]
        if not _users(first):
            continue
        key = first.model, first.scenario, first.context_tokens, last.context_tokens
        fall = 1 - _users(last) / _users(first)
        found.setdefault(key, []).append((fall, f"{first.gpu} TP{first.tp}"))
    return [
        f"{model}, from {short:,} to {long:,} tokens users fall by "
        + ", ".join(f"{fall:.0%} on {where}" for fall, where in sorted(falls))
        for (model, _, short, long), falls in found.items()
        if len(falls) > 1
    ]

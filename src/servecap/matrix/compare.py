"""Scenarios side by side: what another context length does to the users of the same servers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from servecap.cell import Cell
from servecap.matrix.table import describe

_SAME = 0.03  # ratios nearer than this are called equal


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """The same place in two scenarios. Ratios are of the second to the first; None: unknown."""

    first: Cell
    second: Cell
    users_ratio: float
    context_ratio: float | None

    @property
    def words(self) -> str:
        """The conclusion with its evidence, in one sentence."""
        a, b = self.first, self.second
        assert a.capacity is not None
        assert b.capacity is not None
        place = describe(a).removesuffix(f", {a.scenario}")
        users = f"{a.capacity.users} users in {a.scenario}, {b.capacity.users} in {b.scenario}"
        change = f"{place}: {users} ({self.users_ratio - 1:+.0%})"
        guess = " (predicted)" if "predicted" in (a.origin, b.origin) else ""
        limits = f"; {_limit(a)}, {_limit(b)}" if _limit(a) and _limit(b) else ""
        if self.context_ratio is None:
            return f"{change}{guess}; the contexts are not known{limits}"
        return (
            f"{change} with {self.context_ratio:.2g} times the context "
            f"({a.avg_context_tokens:.4g} and {b.avg_context_tokens:.4g} tokens){guess}: "
            f"{self._effect(self.context_ratio)}{limits}"
        )

    def _effect(self, context: float) -> str:
        in_proportion = 1 / context
        if abs(self.users_ratio - 1) <= _SAME:
            return "as many users, so the context decides nothing here"
        if abs(self.users_ratio - in_proportion) <= _SAME:
            return "users change as the context does, so tokens in memory or prefill decide"
        if (self.users_ratio < 1) != (in_proportion < 1):
            return "users change against the context, so something else decides"
        if abs(self.users_ratio - 1) < abs(in_proportion - 1):
            return "users change less than the context does"
        return "users change more than the context does"


def _limit(cell: Cell) -> str:
    assert cell.capacity is not None
    limit = cell.capacity.limited_by
    return f"{cell.scenario} is limited by {limit}" if limit else ""


def pairs(cells: Sequence[Cell]) -> list[Pair]:
    """Every place that has users in several scenarios, each held against the first one's.

    The scenario with the most cells comes first; measured and predicted cells are not mixed.
    """
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell.scenario] = counts.get(cell.scenario, 0) + 1
    base = sorted(counts, key=lambda name: (-counts[name], list(counts).index(name)))
    places: dict[tuple[object, ...], dict[str, Cell]] = {}
    for cell in cells:
        if cell.capacity is not None and cell.invalid_reason is None and cell.capacity.users:
            place = (cell.model.casefold(), cell.gpu.casefold(), cell.gpu_memory_gb,
                     cell.interconnect, cell.tp, cell.origin)  # fmt: skip
            places.setdefault(place, {})[cell.scenario] = cell
    found = []
    for at in places.values():
        here = [at[name] for name in base if name in at]
        found += [_pair(here[0], other) for other in here[1:]]
    return found


def _pair(first: Cell, second: Cell) -> Pair:
    assert first.capacity is not None
    assert second.capacity is not None
    a, b = first.avg_context_tokens, second.avg_context_tokens
    return Pair(
        first=first,
        second=second,
        users_ratio=second.capacity.users / first.capacity.users,
        context_ratio=None if a is None or b is None else b / a,
    )


def conclusions(cells: Sequence[Cell]) -> list[str]:
    """The scenarios side by side in words; where several places can be held against each other,
    first which of them suffers least and most."""
    found = pairs(cells)
    groups: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in found:
        key = (pair.first.model.casefold(), pair.first.scenario, pair.second.scenario)
        groups.setdefault(key, []).append(pair)
    out = []
    for group in groups.values():
        if len(group) > 1:
            out.append(_extremes(group))
        out += [pair.words for pair in group]
    return out


def _extremes(group: Sequence[Pair]) -> str:
    by_ratio = sorted(group, key=lambda pair: pair.users_ratio)
    least, most = by_ratio[0], by_ratio[-1]
    a, b = group[0].first.scenario, group[0].second.scenario
    name = group[0].first.model
    if most.users_ratio - least.users_ratio <= _SAME:
        return f"{name}: from {a} to {b} all places change alike ({most.users_ratio - 1:+.0%})"
    return (
        f"{name}: from {a} to {b}, {_place(most.first)} keeps most of its users "
        f"({most.users_ratio - 1:+.0%}), {_place(least.first)} least ({least.users_ratio - 1:+.0%})"
    )


def _place(cell: Cell) -> str:
    return f"{cell.gpu} at TP{cell.tp}"

"""What one node can carry: how its GPUs are cut into instances, also unequal ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec


class Instance(msgspec.Struct, frozen=True):
    """An instance that could be started: `tp` GPUs that carry `load`."""

    tp: int
    load: int


class Packing(msgspec.Struct, frozen=True):
    """Instances that fit together: (tp, how many), largest first, and what they carry."""

    load: int
    parts: tuple[tuple[int, int], ...] = ()

    @property
    def instances(self) -> int:
        return sum(count for _, count in self.parts)


def packings(options: Sequence[Instance], gpus: int) -> tuple[Packing, ...]:
    """The most that 0, 1, ... *gpus* GPUs carry; of equal loads, that of the fewest instances.

    Source:
        Unbounded knapsack by dynamic programming over the number of GPUs.
    """
    best = [Packing(0)]
    for size in range(1, gpus + 1):
        fitting = [o for o in options if o.tp <= size and o.load > 0]
        found = [best[-1], *(_add(best[size - o.tp], o) for o in fitting)]
        best.append(max(found, key=lambda p: (p.load, -p.instances, p.parts)))
    return tuple(best)


def _add(packing: Packing, option: Instance) -> Packing:
    counts = dict(packing.parts)
    counts[option.tp] = counts.get(option.tp, 0) + 1
    return Packing(packing.load + option.load, tuple(sorted(counts.items(), reverse=True)))


def shared(per_model: Sequence[Sequence[Packing]]) -> list[tuple[Packing, ...]]:
    """Every way worth having to share a node among models, one packing for each.

    Args:
        per_model: `packings` of each model, all for the same number of GPUs.
    Returns:
        Ways of which no other carries at least as much of every model.
    """
    gpus = len(per_model[0]) - 1
    best: dict[tuple[int, ...], tuple[Packing, ...]] = {}
    for sizes in _compositions(gpus, len(per_model)):
        way = tuple(found[size] for found, size in zip(per_model, sizes, strict=True))
        best.setdefault(tuple(p.load for p in way), way)
    loads = [load for load in best if any(load)]
    return [
        best[load] for load in loads
        if not any(o != load and all(a >= b for a, b in zip(o, load, strict=True)) for o in loads)
    ]  # fmt: skip


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to hand out all of *total* to that many parts."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)

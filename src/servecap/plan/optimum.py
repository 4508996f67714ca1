"""The cheapest whole numbers of nodes that carry every model's load: an exact optimum."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

TIME_LIMIT_S = 20.0


class Offer(msgspec.Struct, frozen=True):
    """A node of some kind, cut in one way: its cost, and what it carries of each model."""

    kind: int
    cost: float
    loads: tuple[int, ...]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Loads to carry and nodes to be had.

    After any `nodes_lost` nodes are gone, or every offer's nodes in one zone, each model's need
    must still be met; `zone_lost` is the part that stands in the largest, as (1, 3), rounded up.
    """

    offers: tuple[Offer, ...]
    needs: tuple[int, ...]
    at_most: tuple[int | None, ...]  # nodes of each kind
    nodes_lost: int = 0
    zone_lost: tuple[int, int] = (0, 1)


class Optimum(msgspec.Struct, frozen=True):
    """Nodes of each offer. `gap_share`: how much cheaper another answer could be; 0 if proven."""

    counts: tuple[int, ...]
    cost: float
    gap_share: float


def holds(problem: Problem, counts: Sequence[int]) -> bool:
    """Whether so many nodes of each offer are to be had and carry every need, in exact integers."""
    used = [0] * len(problem.at_most)
    for offer, count in zip(problem.offers, counts, strict=True):
        used[offer.kind] += count
    if any(most is not None and n > most for n, most in zip(used, problem.at_most, strict=True)):
        return False
    return all(_left(problem, counts, m) >= need for m, need in enumerate(problem.needs))


def _left(problem: Problem, counts: Sequence[int], model: int) -> int:
    """What is carried of the model after the worst loss that must be survived."""
    loads = [offer.loads[model] for offer in problem.offers]
    gone, of = problem.zone_lost
    if gone:
        return sum(c * (of - gone) // of * u for c, u in zip(counts, loads, strict=True))
    total, lost = sum(c * u for c, u in zip(counts, loads, strict=True)), problem.nodes_lost
    for load, count in sorted(zip(loads, counts, strict=True), reverse=True):
        gone = min(lost, count)
        total, lost = total - gone * load, lost - gone
    return total


def solve(problem: Problem, *, time_limit_s: float = TIME_LIMIT_S) -> Optimum | None:
    """The cheapest nodes that hold, proven unless the time ran out; None if none do.

    Source:
        Integer program, solved by HiGHS (Huangfu & Hall, Math. Prog. Comp. 10, 2018). The loss of
        the N largest of n nodes is the least over t of N t + sum n_c max(0, u_c - t), and the
        least lies at one of the u_c; so what is left is enough if, for one t of them,
        sum n_c min(u_c, t) >= need + N t. A binary variable chooses that t.
    """
    import highspy

    solver = _solver()
    options = {
        "output_flag": False, "threads": 1, "time_limit": time_limit_s, "mip_rel_gap": 0.0,
        "mip_abs_gap": 0.0, "mip_feasibility_tolerance": 1e-9, "primal_feasibility_tolerance": 1e-9,
    }  # fmt: skip
    for name, value in options.items():
        solver.setOptionValue(name, value)
    nodes = [solver.addIntegral(lb=0, obj=offer.cost) for offer in problem.offers]
    for kind, most in enumerate(problem.at_most):
        mine = [n for n, o in zip(nodes, problem.offers, strict=True) if o.kind == kind]
        if most is not None and mine:
            solver.addConstr(solver.qsum(mine) <= most)
    gone, of = problem.zone_lost
    counted = nodes
    if gone:  # whole nodes that are left of each offer
        counted = [solver.addIntegral(lb=0) for _ in nodes]
        for left, node in zip(counted, nodes, strict=True):
            solver.addConstr(of * left - (of - gone) * node <= 0)
    for model, need in enumerate(problem.needs):
        loads = [offer.loads[model] for offer in problem.offers]
        if not any(loads):
            return None
        if gone or not problem.nodes_lost:
            pairs = zip(loads, counted, strict=True)
            solver.addConstr(solver.qsum([u * n for u, n in pairs if u]) >= need)
            continue
        chosen = []
        for level in sorted({u for u in loads if u}):
            bound = need + problem.nodes_lost * level
            here = solver.addBinary()
            chosen.append(here)
            terms = [min(u, level) * n for u, n in zip(loads, nodes, strict=True) if u]
            solver.addConstr(solver.qsum(terms) - bound * here >= 0)
        solver.addConstr(solver.qsum(chosen) >= 1)
    solver.run()
    info = solver.getInfo()
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    values = solver.getSolution().col_value[: len(nodes)]
    counts = tuple(round(value) for value in values)
    if not holds(problem, counts):
        raise AssertionError(f"the solver's answer {counts} does not hold for {problem}")
    proven = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    gap = 0.0 if proven or not math.isfinite(info.mip_gap) else info.mip_gap
    cost = sum(c * offer.cost for c, offer in zip(counts, problem.offers, strict=True))
    return Optimum(counts, cost, gap if not proven else 0.0)


def _solver() -> Any:
    import highspy

    with _silence():
        return highspy.Highs()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing of what a library itself writes to standard output comes through.

    HiGHS 1.16 says its name and version where it is made, before it can be told to be quiet: that
    would stand before the JSON of `plan --json`.
    """
    try:
        kept = os.dup(1)
    except OSError:  # there is none that could be written to
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        sys.stdout.flush()
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)

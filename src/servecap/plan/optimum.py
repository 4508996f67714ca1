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
_SAME = 1e-9  # costs that differ by less are one: sums of decimal fractions round


class Offer(msgspec.Struct, frozen=True):
    """A node of some kind, cut in one way: its cost, what it carries of each model, its GPUs."""

    kind: int
    cost: float
    loads: tuple[int, ...]
    gpus: int = 1


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

    Of several that cost the same, the one with the fewest GPUs, and of these with the fewest nodes:
    otherwise chance, or the version of the solver, would choose.
    """
    if not all(any(o.loads[m] for o in problem.offers) for m in range(len(problem.needs))):
        return None
    solver = _solver()
    nodes = _stated(solver, problem)
    least = [float(offer.cost) for offer in problem.offers]
    found = _best(solver, nodes, least, problem, time_limit_s)
    if found is None or found.gap_share > 0:
        return found
    for weights in ([float(offer.gpus) for offer in problem.offers], [1.0] * len(nodes)):
        most = _total(least, found.counts) * (1 + _SAME)
        solver.addConstr(solver.qsum([w * n for w, n in zip(least, nodes, strict=True)]) <= most)
        least = weights
        other = _best(solver, nodes, weights, problem, time_limit_s)
        if other is None or other.cost > found.cost * (1 + _SAME):
            break  # out of time: what costs least is known all the same
        found = Optimum(other.counts, other.cost, 0.0)
    return found


def _stated(solver: Any, problem: Problem) -> list[Any]:
    """The problem told to the solver; returned are the nodes of each offer.

    Source:
        Integer program, solved by HiGHS (Huangfu & Hall, Math. Prog. Comp. 10, 2018). The loss of
        the N largest of n nodes is the least over t of N t + sum n_c max(0, u_c - t), and the
        least lies at one of the u_c; so what is left is enough if, for one t of them,
        sum n_c min(u_c, t) >= need + N t. A binary variable chooses that t.
    """
    nodes = [solver.addIntegral(lb=0) for _ in problem.offers]
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
    return nodes


def _best(
    solver: Any, nodes: list[Any], weights: Sequence[float], problem: Problem, time_limit_s: float
) -> Optimum | None:
    """The nodes of least weight; None if none hold, or none were found in time."""
    import highspy

    solver.setOptionValue("time_limit", solver.getRunTime() + time_limit_s)
    solver.minimize(solver.qsum([w * n for w, n in zip(weights, nodes, strict=True)]))
    info = solver.getInfo()
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    values = solver.getSolution().col_value[: len(nodes)]
    counts = tuple(round(value) for value in values)
    if not holds(problem, counts):
        raise AssertionError(f"the solver's answer {counts} does not hold for {problem}")
    proven = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    gap = 0.0 if proven or not math.isfinite(info.mip_gap) else info.mip_gap
    return Optimum(counts, _total([o.cost for o in problem.offers], counts), gap)


def _total(weights: Sequence[float], counts: Sequence[int]) -> float:
    return sum(c * w for c, w in zip(counts, weights, strict=True))


def _solver() -> Any:
    import highspy

    with _silence():
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
    options = {
        "output_flag": False, "threads": 1, "mip_rel_gap": 0.0, "mip_abs_gap": 0.0,
        "mip_feasibility_tolerance": 1e-9, "primal_feasibility_tolerance": 1e-9,
    }  # fmt: skip
    for name, value in options.items():
        solver.setOptionValue(name, value)
    return solver


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

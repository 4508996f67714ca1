"""What the rules cost at one error: `python bench/find/same_error.py [SERVERS PER SHAPE] [FIRST]`.

Each of the others is run with more and fewer requests per level, and halves less or more finely;
of all these settings the cheapest that is as exact as servecap counts (between two settings, by a
straight line over the logarithms). Error is the root mean square of (answer / capacity - 1), once
over all servers and once without the worst twentieth of a rule's answers, since few can make it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from rules import Answer, attainment_bisect, double_and_bisect, isotonic_root, ours
from servers import SHAPES, Server, server

Rule = Callable[[Server, np.random.Generator], Answer]
TIMES = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)
OURS: dict[str, Rule] = {
    f"servecap, {p:.0%}": partial(ours, precision=p) for p in (0.03, 0.05, 0.1, 0.2, 0.4)
}
PEERS: dict[str, dict[str, Rule]] = {
    "double, bisect": {
        f"{t:g} x, to {w:.0%}": partial(double_and_bisect, times=t, within=w)
        for t in TIMES
        for w in (0, 0.02, 0.05, 0.1)
    },
    "isotonic, root": {
        f"{t:g} x, {n} levels": partial(isotonic_root, times=t, levels=n)
        for t in TIMES
        for n in (10, 20)
    },
    "attainment, bisect": {
        f"{t:g} x, to {w:.0%}": partial(attainment_bisect, times=t, within=w)
        for t in TIMES
        for w in (0.005, 0.02, 0.05, 0.1)
    },
}
KEPT = 0.95  # of the answers, where the worst are left out
Point = tuple[float, float, float]  # user-seconds, error, error without the worst


def of_rule(rule: Rule, number: int, seeds: range) -> Point:
    """Geometric mean of the user-seconds, and the errors, over all servers with a capacity."""
    errors, costs = [], []
    for shape in SHAPES:
        for seed in seeds:
            subject = server(shape, seed)
            truth = subject.capacity()
            if not truth:
                continue
            found = rule(subject, np.random.default_rng([seed, SHAPES.index(shape), number]))
            errors.append(found.best / truth - 1)
            costs.append(found.user_s)
    square = np.sort(np.square(errors))
    most = math.ceil(KEPT * len(square))
    cost = math.exp(float(np.mean(np.log(costs))))
    return cost, math.sqrt(square.mean()), math.sqrt(square[:most].mean())


def least_cost(points: list[Point], error: float, which: int) -> float:
    """The least user-seconds with that error or less; infinite where no setting reaches it."""
    ordered = sorted(points)
    best = min((p[0] for p in ordered if p[which] <= error), default=math.inf)
    for a in ordered:
        for b in ordered:
            if a[which] > error >= b[which] and a[0] < b[0]:
                share = math.log(a[which] / error) / math.log(a[which] / b[which])
                best = min(best, a[0] * (b[0] / a[0]) ** share)
    return best


def main(per_shape: int, first: int) -> None:
    """Prints the cost and error of every setting, and the ratios at servecap's errors."""
    seeds = range(first, first + per_shape)
    rules = {**OURS}
    for peer, settings in PEERS.items():
        rules.update({f"{peer}, {name}": rule for name, rule in settings.items()})
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(of_rule, r, n, seeds) for n, r in enumerate(rules.values())]
        points: dict[str, Point] = dict(zip(rules, [j.result() for j in jobs], strict=True))
    for name, (cost, error, most) in points.items():
        print(f"{name:34} user-s {cost:12,.0f}  error {error:6.2%}, of 95% {most:6.2%}")
    for which, of in ((1, "all"), (2, "95% of the answers")):
        print(f"user-seconds at the same error of {of}, to ours:")
        for name in OURS:
            cost, error = points[name][0], points[name][which]
            ratios = {
                peer: least_cost([points[f"{peer}, {s}"] for s in PEERS[peer]], error, which) / cost
                for peer in PEERS
            }
            told = "  ".join(f"{peer} {ratio:5.2f}" for peer, ratio in ratios.items())
            print(f"  {name:14} {error:6.2%}: {told}  best peer {min(ratios.values()):.2f}")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [20, 0][len(given) :]))

"""What the rules cost at one error: `python bench/find/same_error.py [SERVERS PER SHAPE] [FIRST]`.

Each of the others is run with more and fewer requests per level, and halves less or more finely;
of all these settings the cheapest that is as exact as servecap counts (between two settings, by a
straight line over the logarithms). Error is the root mean square of (answer / capacity - 1), over
all servers and without the worst twentieth of a rule's answers, since few can make it; and its 90th
percentile. The servers are drawn anew to see how much hangs on which they are.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from rules import Answer, Levels, Meter, attainment_bisect, double_and_bisect, isotonic_root, ours
from servers import SHAPES, Floats, server

from servecap.search.known import Ints

PRECISIONS = (0.03, 0.05, 0.1, 0.2, 0.4)
TIMES = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)
OURS: dict[str, Callable[[Meter], Answer]] = {
    f"servecap, {p:.0%}": partial(ours, precision=p) for p in PRECISIONS
}
PeerRule = Callable[[Levels], Answer]


def peers(**given: Any) -> dict[str, dict[str, PeerRule]]:
    """Each peer's rule with each of its settings; *given* goes to all of them."""
    return {
        "double, bisect": {
            f"{t:g} x, to {w:.0%}": partial(double_and_bisect, times=t, within=w, **given)
            for t in TIMES
            for w in (0, 0.02, 0.05, 0.1)
        },
        "isotonic, root": {
            f"{t:g} x, {n} levels": partial(isotonic_root, times=t, levels=n, **given)
            for t in TIMES
            for n in (10, 20)
        },
        "attainment, bisect": {
            f"{t:g} x, to {w:.1%}": partial(attainment_bisect, times=t, within=w, **given)
            for t in TIMES
            for w in (0.005, 0.02, 0.05, 0.1)
        },
    }


PEERS = peers()
KEPT = 0.95  # of the answers, where the worst are left out
DRAWS = 200  # of the servers, with replacement, for the interval of the ratio
Point = tuple[float, float]  # user-seconds, error
ERRORS: dict[str, Callable[[Floats], float]] = {
    "root mean square of all": lambda e: math.sqrt(np.square(e).mean()),
    "root mean square of 95%": lambda e: math.sqrt(
        np.sort(np.square(e))[: math.ceil(KEPT * len(e))].mean()
    ),
    "90th percentile": lambda e: float(np.quantile(np.abs(e), 0.9)),
}


def of_rule(rule: Callable[[Meter], Answer], number: int, seeds: range) -> tuple[Floats, Floats]:
    """Logarithms of the user-seconds, and the errors, of all servers with a capacity."""
    errors, costs = [], []
    for shape in SHAPES:
        for seed in seeds:
            subject = server(shape, seed)
            truth = subject.capacity()
            if not truth:
                continue
            rng = np.random.default_rng([seed, SHAPES.index(shape), number])
            found = rule(Meter(subject, rng))
            errors.append(found.best / truth - 1)
            costs.append(math.log(found.user_s))
    return np.array(costs), np.array(errors)


def least_cost(points: list[Point], error: float) -> float:
    """The least user-seconds with that error or less; infinite where no setting reaches it."""
    best = min((cost for cost, e in points if e <= error), default=math.inf)
    for cost, e in points:
        for other, less in points:
            if e > error >= less > 0 and cost < other:
                share = math.log(e / error) / math.log(e / less)
                best = min(best, cost * (other / cost) ** share)
    return best


Found = dict[str, tuple[Floats, Floats]]  # by rule: logarithms of the user-seconds, and errors


def point(found: Found, rule: str, of: str, at: Ints) -> Point:
    """What a rule costs and how far off it is, on the servers numbered *at*."""
    costs, errors = found[rule]
    return math.exp(costs[at].mean()), ERRORS[of](errors[at])


def ratios(
    found: Found, name: str, of: str, at: Ints, rules: Mapping[str, Iterable[str]]
) -> Floats:
    """What each peer costs at that rule's error, on the servers numbered *at*, to its own cost."""
    own_cost, error = point(found, name, of, at)
    return np.array(
        [
            least_cost([point(found, f"{peer}, {s}", of, at) for s in settings], error) / own_cost
            for peer, settings in rules.items()
        ]
    )


def redrawn(
    found: Found, name: str, of: str, rules: Mapping[str, Iterable[str]]
) -> tuple[float, float]:
    """Middle 90% of the best peer's ratio over servers drawn anew."""
    count, rng = len(found[name][0]), np.random.default_rng(0)
    drawn = [
        ratios(found, name, of, rng.integers(0, count, count), rules).min() for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [0.05, 0.95], method="nearest")
    return float(low), float(high)


def main(per_shape: int, first: int) -> None:
    """Prints the cost and errors of every setting, and the ratios at servecap's errors."""
    seeds = range(first, first + per_shape)
    rules: dict[str, Callable[[Meter], Answer]] = {**OURS}
    for peer, settings in PEERS.items():
        rules.update({f"{peer}, {name}": rule for name, rule in settings.items()})
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(of_rule, r, n, seeds) for n, r in enumerate(rules.values())]
        found = dict(zip(rules, [j.result() for j in jobs], strict=True))
    for name, (costs, errors) in found.items():
        told = "  ".join(f"{of} {measure(errors):6.2%}" for of, measure in ERRORS.items())
        print(f"{name:34} user-s {math.exp(costs.mean()):12,.0f}  {told}")
    told_ratios(found, list(OURS), PEERS)


def told_ratios(found: Found, own: list[str], rules: Mapping[str, Iterable[str]]) -> None:
    """Prints what the peers cost at the error of each of *own*."""
    at = np.arange(len(found[own[0]][0]))
    for of in ERRORS:
        print(f"user-seconds at the same error ({of}), to ours; best peer: middle 90% of redraws")
        for name in own:
            each = ratios(found, name, of, at, rules)
            low, high = redrawn(found, name, of, rules)
            told = "  ".join(f"{peer} {r:5.2f}" for peer, r in zip(rules, each, strict=True))
            print(f"  {name:14}: {told}  best peer {each.min():.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [20, 0][len(given) :]))

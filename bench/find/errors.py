"""The standard errors that windows claim against the true ones: `python bench/find/errors.py`.

`errors.py [ENGINES] [FORMULAS PER SHAPE]`. The engines are those of `played`, at 0.8 to 1.2 times
their true capacity; of them the mean TTFT and TPOT where a limit is on it, within a factor of 2 of
that limit. The formulas (`servers`) are at their capacity. Of each, 80 windows as long as a search
takes them (250 requests or two cycles, whichever is more), on engines also of 1000 or three
cycles. The true error is the scatter of their means, the truth the mean of them all. Told are
claimed / true (a window's median; quantiles over places), the 95% intervals that hold the truth,
and the part of the true variance that goes with the mean lengths of prompts and answers in the
window, as a regression over the windows has it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from played import chosen
from playing import Server, played, values
from servers import SHAPES, Floats, server
from truth import WARM_CYCLES

from servecap import stats

LOADS = (0.8, 0.95, 1.0, 1.05, 1.2)  # times the true capacity
SIMULATIONS, WINDOWS = 8, 10  # a cycle apart from each other
LENGTHS = {"as searched": (250, 2), "long": (1000, 3)}  # requests, or cycles
BATCHES = 20
Told = tuple[float, float, float]  # claimed / true, share that holds, explained by lengths


def told(windows: list[Floats], lengths: Floats) -> Told:
    """What the windows of one place tell; *lengths*: (windows, kinds), none with no kinds."""
    means = np.array([x.mean() for x in windows])
    claimed = np.array([stats.batch_error(x) for x in windows], dtype=np.float64)
    off = np.abs(means - means.mean()) / claimed
    kinds = lengths.shape[1]
    around = np.column_stack([np.ones(len(means)), lengths - lengths.mean(axis=0)])
    rest = means - around @ np.linalg.lstsq(around, means, rcond=None)[0]
    unexplained = float(rest @ rest) / (len(means) - 1 - kinds) / means.var(ddof=1)
    held = float((off < stats.t_quantile(0.975, BATCHES - 1)).mean())
    return float(np.median(claimed)) / means.std(ddof=1), held, 1 - unexplained


def of_engine(server: Server, capacity: int) -> list[tuple[str, Told]]:
    """Every limit on a mean that is near, at every load and length of window."""
    found = []
    for load in LOADS:
        users = max(1, round(load * capacity))
        for name, (requests, cycles) in LENGTHS.items():
            size = max(requests, cycles * users)
            cut = [one for i in range(SIMULATIONS) for one in _cut(server, users, size, i)]
            lengths = np.array([mean for _, mean in cut])
            for limit in server.limits:
                windows = [seen[limit.metric] for seen, _ in cut]
                share = float(np.mean([x.mean() for x in windows])) / limit.at_most_s
                if limit.quantile is None and 0.5 < share < 2:
                    found.append((f"{limit.metric}, {name}", told(windows, lengths)))
    return found


def _cut(
    server: Server, users: int, size: int, seed: int
) -> Iterator[tuple[dict[str, Floats], Floats]]:
    """Windows of one long simulation: their values, and their mean tokens of either kind."""
    of = [server.number, users, size, seed, 2]
    cycle_s = sum(server.think_s) / 2 + 0.05 * server.asked.lengths.output_tokens
    start_s = np.linspace(0.0, cycle_s, users, endpoint=False)
    count = users * (WARM_CYCLES + 2) + WINDOWS * (size + users)
    found, answers = played(server, start_s, count, np.random.default_rng(of))
    prompts, _ = server.asked.draw(np.random.default_rng(of), count)  # as `played` draws them first
    order = np.argsort(found.end_s, kind="stable")[users * WARM_CYCLES :]
    for i in range(WINDOWS):
        kept = order[i * (size + users) :][:size]
        yield values(found, answers, kept), np.array([prompts[kept].mean(), answers[kept].mean()])


def of_formula(shape: str, seed: int) -> Told | None:
    """Its mean TTFT at its capacity; None where it has none."""
    subject, rng = server(shape, seed), np.random.default_rng([seed, SHAPES.index(shape), 2])
    users = subject.capacity()
    if not users or subject.drift:
        return None
    requests, cycles = LENGTHS["as searched"]
    size, count = max(requests, cycles * users), SIMULATIONS * WINDOWS
    windows = [subject.sample(users, size, rng)["ttft"] for _ in range(count)]
    return told(windows, np.zeros((count, 0)))


def tell(name: str, places: list[Told]) -> None:
    """Prints the quantiles of one kind of place."""
    ratio, held, explained = np.array(places).T
    quantiles = " ".join(f"{x:.2f}" for x in np.quantile(ratio, [0, 0.1, 0.5, 0.9, 1]))
    print(
        f"{name:20} {len(places):3} places  claimed / true {quantiles}  holds {held.mean():.1%}, "
        f"worst {held.min():.0%}  lengths explain {np.median(explained):.0%}"
    )


def main(engines: int, per_shape: int) -> None:
    """Prints it of the engines, by limit and length of window, and of the formulas."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        taken = chosen(pool, engines, 0)
        each = pool.map(of_engine, [s for s, _ in taken], [t.best for _, t in taken])
        places = [one for found in each for one in found]
    for name in dict.fromkeys(sorted(name for name, _ in places)):
        tell(name, [one for n, one in places if n == name])
    formulas = [of_formula(shape, seed) for shape in SHAPES for seed in range(per_shape)]
    tell("formulas", [one for one in formulas if one is not None])


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [48, 12][len(given) :]))

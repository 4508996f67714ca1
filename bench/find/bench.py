"""Capacity searches side by side on servers of known capacity: `python bench/find/bench.py`."""

from __future__ import annotations

import sys
import time
from statistics import median

import numpy as np
from rules import RULES, Answer, Meter
from servers import SHAPES, server


def main(per_shape: int, names: list[str]) -> None:
    """Prints, for each rule: coverage, width, error and user-seconds, the same seeds for all."""
    rows: dict[str, list[tuple[str, int | None, Answer]]] = {name: [] for name in names}
    started = time.perf_counter()
    for seed in range(per_shape):
        for shape in SHAPES:
            subject = server(shape, seed)
            truth = subject.capacity()
            for number, name in enumerate(names):
                rng = np.random.default_rng([seed, SHAPES.index(shape), number])
                rows[name].append((shape, truth, RULES[name](Meter(subject, rng))))
    print(f"{per_shape * len(SHAPES)} servers, {time.perf_counter() - started:.0f} s")
    for name in names:
        print(_line(name, rows[name]))
    ours = rows[names[0]]
    for shape in SHAPES:
        print(_line(f"  {names[0]}, {shape}", [r for r in ours if r[0] == shape]))
    for own in names[:3]:
        for name in names[3:]:
            print(f"user-seconds of {name} / {own}: {_user_s(rows[name]) / _user_s(rows[own]):.2f}")


def _user_s(rows: list[tuple[str, int | None, Answer]]) -> float:
    known = [a.user_s for _, truth, a in rows if truth]
    return float(np.exp(np.mean(np.log(known))))


def _line(name: str, rows: list[tuple[str, int | None, Answer]]) -> str:
    known = [(t, a) for _, t, a in rows if t]
    holds = [a.low <= t and (a.high is None or t <= a.high) for t, a in known]
    ends = [t is None and a.high is None for _, t, a in rows if t is None]
    if not known:
        return f"{name:32} {sum(ends)} of {len(ends)} without a limit told as such"
    errors = [abs(a.best - t) / t for t, a in known]
    widths = [(a.high - a.low) / t for t, a in known if a.high is not None]
    text = (
        f"{name:32} holds truth {np.mean(holds):6.1%} of {len(known)}  "
        f"width {median(widths):5.1%}  error median {median(errors):5.1%} "
        f"p90 {np.quantile(errors, 0.9):5.1%} max {max(errors):6.1%}  "
        f"levels {np.mean([a.levels for _, a in known]):4.1f}  "
        f"no upper end {sum(a.high is None for _, a in known)}"
    )
    return text + (f"  without a limit {sum(ends)}/{len(ends)}" if ends else "")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    chosen = [n for n in RULES if len(sys.argv) < 3 or sys.argv[2] in n]
    main(count, chosen)

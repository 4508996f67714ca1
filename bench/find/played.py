"""Capacity searches side by side, played on simulated engines: `python bench/find/played.py`.

`played.py [SERVERS] [FIRST CANDIDATE]`. What follows was fixed before any ratio had been seen.

Servers. Candidates are numbered; the number draws a model, a GPU, a tensor-parallel degree, a
scheduler (vLLM, vLLM of 2023, TGI, SGLang) and limits (means, p95, p99), and alternates between
four workloads (`playing`). The first of each workload with 12 to 400 users of capacity are taken,
whatever the searches say of them. The truth is found by brute force (`truth`): long simulations of
the steady state, their warm-up thrown away, 16 to 256 of them per level near the edge, until a
level is 4 standard errors clear of its limits.

Who pays what. Each rule pays the user-seconds of the users that were there in the runs that it
played, from each user's first moment to the last; nothing for thinking about the next level.
servecap's is the product's `find` with its defaults (first level 8 users), at precisions of 3, 5,
10, 20 and 40%, on one population that lives on: ramps, warm-up and levels that were given up are in
the price. Its answer is `estimate.best`; an INVALID search counts as an answer of no users. The
peers start each run anew with all users at once and a fixed number of requests, pay until each
user's last answer, and take their figures over all its requests, as their documents say. Beside
that stands what a careful user would run, "warmed": each user's first request is thrown away, and
paid. Each rule searches each server once, with a seed of its own.

What is told. An error is answer / truth - 1; costs are averaged as logarithms. (1) Each peer with
the settings that its documents give, its error and cost, and what servecap costs at that error: the
cheapest of its precisions that is as exact, or on the straight line over logarithms between a
precision that is and one that is not. (2) The peers' best settings of all at servecap's error, as
in `same_error`, chosen with hindsight on the very servers they are scored on; and chosen on one
half of the servers for servecap's error there, and scored on the other half, in both cost and
error, the median over random halves. (3) How often servecap's interval (the number that it names to
its upper end) meets what the truth may be, how wide it is, and how many answers are clean and
wrong. The bar: the best peer costs at least 2 times as much at the same error.

Results are kept in the folder for temporary files, so that a run that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median
from typing import TypeVar

import msgspec
import numpy as np
from playing import WORKLOADS, Anew, Server, candidate, searched
from rules import Answer
from same_error import ERRORS, PRECISIONS, Found, least_cost, peers, point, told_ratios
from truth import Truth, truth

import servecap

OURS = [f"servecap, {p:.0%}" for p in PRECISIONS]
ANEW = {name: list(settings) for name, settings in peers().items()}
WARMED = {f"{name}, warmed": settings for name, settings in ANEW.items()}
PEERS = ANEW | WARMED
PUBLISHED = {
    "double, bisect": "1 x, to 0%",
    "isotonic, root": "1 x, 10 levels",
    "attainment, bisect": "1 x, to 5.0%",
}
HALVES = 200
BATCH = 8  # candidates that are looked at together
Row = tuple[Server, Truth, dict[str, Answer]]
T = TypeVar("T")


def kept(name: str, sources: list[str], kind: type[T], work: Callable[[], T]) -> T:
    """What *work* gave, from the temporary folder if it was done with the same sources."""
    here = {"bench": Path(__file__).parent, "servecap": Path(servecap.__file__).parent}
    digest = hashlib.sha256()
    for source in sources:
        root, _, pattern = source.partition("/")
        for path in sorted(here[root].glob(pattern)):
            digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / "servecap-played" / digest.hexdigest()[:12]
    file = folder / f"{name}.json"
    if file.exists():
        return msgspec.json.decode(file.read_bytes(), type=kind)
    found = work()
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(msgspec.json.encode(found))
    part.replace(file)
    return found


ENGINE = ["bench/playing.py", "servecap/engine/*.py", "servecap/engine/data/*"]


def truth_of(number: int) -> Truth | None:
    server = candidate(number)
    if server is None:
        return None
    found = kept(
        f"{number}-truth",
        [*ENGINE, "bench/truth.py"],
        list[Truth],
        lambda: [] if (one := truth(server)) is None else [one],
    )
    return found[0] if found else None


def answers_of(number: int) -> dict[str, Answer]:
    """Every rule's answer on that server."""
    server = candidate(number)
    assert server is not None
    theirs = [*ENGINE, "bench/rules.py", "bench/same_error.py"]
    found: dict[str, Answer] = {}
    for name, precision in zip(OURS, PRECISIONS, strict=True):
        found[name] = kept(
            f"{number}-{precision}",
            ["bench/playing.py", "servecap/**/*.py", "servecap/engine/data/*"],
            Answer,
            lambda precision=precision: searched(server, precision, number),  # type: ignore[misc]
        )
    for suffix, cold in (("", 0), (", warmed", 1)):
        found |= kept(
            f"{number}-peers{cold}",
            theirs,
            dict[str, Answer],
            lambda suffix=suffix, cold=cold: _theirs(server, suffix, cold),  # type: ignore[misc]
        )
    return found


def _theirs(server: Server, suffix: str, cold: int) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for peer, settings in peers(cold_cycles=cold).items():
        for name, rule in settings.items():
            rng = np.random.default_rng([server.number, cold, len(found)])
            found[f"{peer}{suffix}, {name}"] = rule(Anew(server, rng))
    return found


def chosen(pool: ProcessPoolExecutor, servers: int, first: int) -> list[tuple[Server, Truth]]:
    """The first candidates of each workload that have such a capacity, and it."""
    found: list[tuple[Server, Truth]] = []
    for at in count(first, BATCH):
        numbers = range(at, at + BATCH)
        for number, told in zip(numbers, pool.map(truth_of, numbers), strict=True):
            server = candidate(number)
            if server is None or told is None:
                continue
            of_kind = sum(s.asked is server.asked for s, _ in found)
            if of_kind < servers / len(WORKLOADS) and len(found) < servers:
                found.append((server, told))
        if len(found) == servers:
            return found
    raise AssertionError


def table(rows: list[Row]) -> Found:
    """By rule: logarithms of the user-seconds, and errors."""
    return {
        rule: (
            np.array([math.log(answers[rule].user_s) for _, _, answers in rows]),
            np.array([answers[rule].best / told.best - 1 for _, told, answers in rows]),
        )
        for rule in rows[0][2]
    }


def tell_ours(rows: list[Row]) -> None:
    """Prints coverage, width and what was clean and wrong."""
    for rule in OURS:
        own = [(told, answers[rule]) for _, told, answers in rows]
        valid = [(t, a) for t, a in own if a.valid]
        holds = [a.low <= t.high and (a.high is None or t.low <= a.high) for t, a in valid]
        widths = [(a.high - a.low) / t.best for t, a in valid if a.high is not None]
        clean = [held for held, (_, a) in zip(holds, valid, strict=True) if a.clean]
        print(
            f"{rule:14} holds the truth {sum(holds)} of {len(valid)}  INVALID "
            f"{len(own) - len(valid)}  width, median {median(widths):.1%}  clean {len(clean)}, "
            f"of them wrong {clean.count(False)}  no upper end {len(valid) - len(widths)}  "
            f"levels {np.mean([a.levels for _, a in own]):.1f}"
        )


def tell_rules(found: Found) -> None:
    """Prints errors and costs of servecap and of each peer as published, and ours at its error."""
    at = np.arange(len(found[OURS[0]][0]))
    published = [f"{p}{w}, {s}" for w in ("", ", warmed") for p, s in PUBLISHED.items()]
    for rule in [*OURS, *published]:
        costs, errors = found[rule]
        off = np.abs(errors)
        told = (
            f"{rule:40} user-s {math.exp(costs.mean()):10,.0f} (sum {np.exp(costs).sum():11,.0f})  "
            f"error: median {median(off):6.2%} p90 {np.quantile(off, 0.9):6.2%} "
            f"rms {math.sqrt(np.square(off).mean()):6.2%}  "
            f"answers, median of {median(errors):+.1%}"
        )
        if rule in published:
            told += "  to ours at its error:"
            for of in ERRORS:
                cost, error = point(found, rule, of, at)
                ours = least_cost([point(found, name, of, at) for name in OURS], error)
                told += f" {cost / ours:5.2f}"
        print(told)


def halved(found: Found, of: str) -> Iterator[tuple[str, float, float]]:
    """Settings chosen on a half of the servers: cost and error on the other half, to ours."""
    everyone, rng = np.arange(len(found[OURS[0]][0])), np.random.default_rng(1)
    settings = [f"{peer}, {s}" for peer, own in PEERS.items() for s in own]
    for _ in range(HALVES):
        mixed = rng.permutation(everyone)
        here, there = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
        here_points = {s: point(found, s, of, here) for s in settings}
        for name in OURS:
            _, error = point(found, name, of, here)
            exact = [s for s in settings if here_points[s][1] <= error]
            if not exact:
                yield name, math.inf, math.nan
                continue
            best = min(exact, key=lambda s: here_points[s][0])
            (own_cost, own_error), (cost, off) = (point(found, x, of, there) for x in (name, best))
            yield name, cost / own_cost, off / own_error


def tell_halves(found: Found) -> None:
    """Prints the medians over the halves."""
    for of in ERRORS:
        print(f"settings chosen on one half, scored on the other ({of}), to ours")
        told = list(halved(found, of))
        for name in OURS:
            own = [(c, e) for n, c, e in told if n == name]
            some = [e for _, e in own if not math.isnan(e)]
            error = f"{median(some):.2f}" if some else "n/a"
            print(
                f"  {name:14}: cost {median(c for c, _ in own):5.2f}  error {error}  "
                f"(no setting as exact: {len(own) - len(some)} of {len(own)})"
            )


def tell_servers(rows: list[Row]) -> None:
    """Prints each server, its truth, and servecap's answer at 5%."""
    for server, told, answers in rows:
        own = answers[OURS[1]]
        sure = "" if told.low == told.high else f" ({told.low} to {told.high})"
        high = "none" if own.high is None else f"{own.high:.0f}"
        held = own.low <= told.high and (own.high is None or told.low <= own.high)
        ended = ("clean" if own.clean else "unsure") if own.valid else "INVALID"
        print(
            f"  {server.number:3} truth {told.best}{sure}{' memory' if told.memory_binds else ''}  "
            f"ours {own.low:.0f} to {high}, best {own.best:.1f}, {ended}, {own.levels} levels, "
            f"{own.user_s:,.0f} user-s{'' if held else '  MISSED'}  {server}"
        )
    engines = Counter(server.spec.engine for server, _, _ in rows)
    bound = sum(told.memory_binds for _, told, _ in rows)
    wide = max((t.high - t.low) / t.best for _, t, _ in rows)
    print(f"{len(rows)} servers, memory binds {bound}, {dict(engines)}; truths known to {wide:.2%}")


def main(servers: int, first: int) -> None:
    """Plays what is not kept yet, and prints all of it."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        taken = chosen(pool, servers, first)
        answers = pool.map(answers_of, [server.number for server, _ in taken])
        rows = [(*one, found) for one, found in zip(taken, answers, strict=True)]
    found = table(rows)
    tell_servers(rows)
    tell_ours(rows)
    tell_rules(found)
    told_ratios(found, OURS, PEERS)
    tell_halves(found)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [48, 0][len(given) :]))

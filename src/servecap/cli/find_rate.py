"""`servecap find --rate`: the highest rate of requests for which the SLO holds."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap.cli import options, progress, shapes
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.metrics import Summary
    from servecap.probe import Bench, LevelProbe
    from servecap.run import Probe, Run
    from servecap.scenario import Scenario
    from servecap.search.rate import RateLevel, RateResult

MOST_RPS = 1000.0
_OF_RATES = ("max_rate", "arrivals", "burstiness", "max_in_flight")
_OF_USERS = ("max_users", "gpu", "ramp")

rate_options = options.stack(
    click.option(
        "--rate",
        "by_rate",
        is_flag=True,
        help="Open loop: find the highest rate of requests instead.",
    ),
    click.option(
        "--max-rate",
        type=float,
        metavar="RPS",
        help="With --rate: no level above this.  [default: 1000]",
    ),
    *shapes.arrival_options,
)


def check(given: dict[str, Any]) -> None:
    """
    Raises:
        UsageError: options of rates and of users contradict each other.
    """
    names, what = (_OF_USERS, "users") if given["by_rate"] else (_OF_RATES, "--rate")
    for name in names:
        if given[name] is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} belongs to a search for {what}: give that, or leave it away"
            )
    if given["by_rate"] and (given["sessions"] or "sessions:" in given["workload"]):
        raise UsageError(
            "find --rate and --sessions: the rate is that of single requests; leave --sessions away"
        )


def scenario_of(given: dict[str, Any]) -> Scenario:
    """The scenario of the search; the rate in it is where that starts, or anything.

    Raises:
        UsageError: a number makes no sense.
    """
    start = 1.0 if given["start"] is None else given["start"]
    if not 0 < start < float("inf"):
        raise UsageError(f"--start {start:g} must be more than 0 requests per second")
    return options.scenario(given, shapes.at_rate(given | {"rate": start, "schedule": None}))


def search_with(
    bench: Bench,
    scenario: Scenario,
    out: Path,
    *,
    start: float,
    max_rate: float,
    precision: float,
    confidence: float,
    budget_s: float | None,
    quiet: bool,
    on_known: Callable[[RateResult], None],
) -> tuple[RateResult, list[tuple[Run, Summary]]]:
    """The search on a prepared server; also the run at capacity, for the report.

    Raises:
        KeyboardInterrupt: Ctrl-C, before the first level was measured.
    """
    from servecap.search.rate import find_rate
    from servecap.store import read_run

    tried = progress.Tried("requests/s")
    with bench.levels(scenario.seed, scenario.timeouts) as measured:
        result = find_rate(
            _probe(measured, out, tried, quiet=quiet),
            scenario,
            start=start,
            max_rate=_at_most(bench, start, max_rate, quiet=quiet),
            precision=precision,
            confidence=confidence,
            budget_s=budget_s,
            on_level=lambda level: _say(level, tried, quiet=quiet),
            on_known=on_known,
        )
    if result.interrupted and not result.levels:
        raise KeyboardInterrupt
    best = result.at_capacity
    runs = [(read_run(Path(best.run_path)), best.summary)] if best and best.run_path else []
    return result, runs


def _at_most(bench: Bench, start: float, max_rate: float, *, quiet: bool) -> float:
    """The largest rate that may be tried, and a note where that is less than was asked for."""
    most = bench.rate_most
    if most is None or not start <= most < max_rate:
        return max_rate
    progress.say(
        f"note: at most {most:g} requests/s, for the server is not on this machine: see "
        "--allow-high-load",
        quiet=quiet,
    )
    return most


def _probe(measured: LevelProbe, out: Path, tried: progress.Tried, *, quiet: bool) -> Probe:
    """Measures a level, on display, into the next folder of *out*."""
    from servecap.scenario import OpenLoop

    places = itertools.count(1)

    def probe(level: Scenario) -> Run:
        assert isinstance(level.load, OpenLoop)
        folder = out / f"{next(places):02d}-rate-{level.load.rate_rps:.4g}"
        with contextlib.closing(progress.Display(level, quiet=quiet, tried=tried)) as display:
            return measured(level, folder, display)

    return probe


def _say(level: RateLevel, tried: progress.Tried, *, quiet: bool) -> None:
    """The level's line, and its place among those on display."""
    if level.valid:
        tried.add(level.rate_rps, level.verdict)
    progress.say(level_line(level), quiet=quiet)


def level_line(level: RateLevel) -> str:
    """One level in one line."""
    from servecap.report import rate_text, units

    summary = level.summary
    means = [
        f"{name.upper()} {units.seconds(found.mean)}"
        for name in ("ttft", "tpot")
        if (found := summary.client.get(name)) is not None
    ]
    verdict = level.verdict.upper() if level.valid else "INVALID"
    colour = {"PASS": "green", "FAIL": "red"}.get(verdict, "yellow")
    return "  ".join(
        [
            f"{level.rate_rps:8.4g} requests/s",
            click.style(f"{verdict:7}", fg=colour),
            *means,
            f"{summary.requests} requests",
            f"({rate_text.why(level)})",
        ]
    )

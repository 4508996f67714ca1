"""`servecap find`: the most users for whom the SLO holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap.cli import asked, find_rate, options, output, progress
from servecap.cli.grouped import Grouped
from servecap.cli.run import target_spec
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.metrics import Summary
    from servecap.probe import Bench
    from servecap.run import Run
    from servecap.scenario import Scenario
    from servecap.search import Level, SearchResult
    from servecap.search.rate import RateResult

SEARCH = "search.json"
_START = 8  # users, where nothing is known of the server
_MOST = 10_000


@click.command(
    "find",
    cls=Grouped,
    titles={
        "url": "Server",
        "start": "Search",
        "workload": "Workload",
        "slo": "Limits, users and end of each level",
        "out": "Output",
    },
)
@options.target_options
@options.telemetry_options
@click.option(
    "--start",
    type=float,
    help="Users of the first level.  [default: 8, or what the engine model expects; 1 request/s, "
    "more where --budget is short]",
)
@click.option(
    "--gpu", help="The server's, such as a100-80gb: the engine model says where to start."
)
@click.option("--tp", type=click.IntRange(1), default=1, help="GPUs that share the model.")
@click.option("--max-users", type=click.IntRange(1), help="No level above this.  [default: 10000]")
@find_rate.rate_options
@click.option(
    "--precision",
    default="5%",
    show_default=True,
    help="Width of the answer's interval that is narrow enough.",
)
@click.option(
    "--confidence", default="95%", show_default=True, help="That the interval holds the capacity."
)
@click.option(
    "--budget",
    type=options.Span(),
    help="Measure at most so long (600, 90s, 10m, 1h), then say what is known.",
)
@options.workload_options
@options.judge_options
@options.output_options
def command(**given: Any) -> int:
    """Find the most users (or requests/s, with --rate) for whom the SLO holds.

    Levels of users are tried where they tell most about the edge, and all of them together give
    an interval for the capacity, until that is within --precision. Only valid runs count. What
    is answered is the lower end of the interval: the number that can be promised.

    With --rate requests come by themselves, however long answers take. Besides the limits of the
    SLO the rate is then bounded by what the server answers when it always has work: above that its
    queue grows without bound.

    \b
    Examples:
      servecap find --url http://localhost:8000
      servecap find --url http://localhost:8000 --slo "ttft.p95<2s,tpot.mean<80ms,error_rate<1%"
      servecap find --url http://localhost:8000 --rate --budget 20m
    """
    from servecap.report.search_text import search_text

    result, out = searched(given)
    if given["as_json"]:
        output.print_json(result)
    else:
        click.echo(search_text(result))
        click.echo(f"\nkept in {out}: report.html, search.json, a folder for each level")
    if result.interrupted:
        return 130
    return 0 if result.capacity.named > 0 else 1


def searched(given: dict[str, Any]) -> tuple[SearchResult | RateResult, Path]:
    """The search that the options ask for, and the folder it is kept in."""
    from servecap.probe import open_bench
    from servecap.report import html
    from servecap.store import write_json

    find_rate.check(given)
    _check(given)
    by_rate = given["by_rate"]
    scenario = find_rate.scenario_of(given) if by_rate else _scenario(given)
    out = _fresh(output.folder(given["out"], "find"))
    bench = open_bench(
        target_spec(given),
        scenario.workload,
        scenario.timeouts,
        workers=given["workers"],
        ray=given["ray"],
        around=options.around(given),
        high_load=given["allow_high_load"],
        command=asked.command_line(),
    )
    with contextlib.closing(bench):
        result, runs = (_by_rate if by_rate else _by_users)(given, bench, scenario, out)
    with output.writing(out):
        write_json(out / SEARCH, result)
        html.write_html(out / "report.html", runs=runs, search=result, lang=given["lang"])
    return result, out


def _check(given: dict[str, Any]) -> None:
    """What can be told before the server is asked.

    Raises:
        UsageError: a number or a name makes no sense.
    """
    for option, least in (("precision", 0.0), ("confidence", 0.5)):
        if not least < share(given[option], f"--{option}") < 1:
            raise UsageError(
                f"--{option} {given[option]} must lie within {least:.0%} and 100%, without these"
            )
    most, rate = given["max_users"] or _MOST, given["max_rate"]
    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"--max-rate {rate:g} must be more than 0 requests per second")
    start = given["start"]
    if start is not None and not given["by_rate"]:
        if not start.is_integer():
            raise UsageError(f"--start {start:g}: users are whole; a rate needs --rate")
        if not 1 <= start <= most:
            raise UsageError(f"--start {start:g} must lie within 1 and --max-users {most}")
    if given["gpu"] is not None:
        from servecap.engine.hardware import gpu

        gpu(given["gpu"])


def _fresh(out: Path) -> Path:
    """The folder, if nothing is in it; a search is not taken up again, for servers change.

    Raises:
        UsageError: something is in it.
    """
    if (out / SEARCH).exists():
        raise UsageError(
            f"--out {str(out)!r} holds a search already, and none is taken up again: see what it "
            f"found with `servecap report {out}`, and name another folder (--start near its answer "
            "saves the way up)"
        )
    return output.unused(out)


def _scenario(given: dict[str, Any]) -> Scenario:
    start = _START if given["start"] is None else given["start"]
    return options.scenario(given, options.closed_loop(given, int(start)))


def _by_users(
    given: dict[str, Any], bench: Bench, scenario: Scenario, out: Path
) -> tuple[SearchResult, list[tuple[Run, Summary]]]:
    most = _MOST if given["max_users"] is None else given["max_users"]
    told = given["start"] is not None
    return search_with(
        bench,
        scenario,
        out,
        start=int(given["start"]) if told else _expected(given, most, bench, scenario),
        max_users=most,
        quiet=given["quiet"],
        keep_partial=True,
        **_wanted(given),
    )


def _by_rate(
    given: dict[str, Any], bench: Bench, scenario: Scenario, out: Path
) -> tuple[RateResult, list[tuple[Run, Summary]]]:
    from servecap.search import rate

    most = find_rate.MOST_RPS if given["max_rate"] is None else given["max_rate"]
    start = given["start"]
    if start is None:
        start = min(rate.first_rate(scenario, given["budget"]), most)
    return find_rate.search_with(
        bench,
        scenario,
        out,
        start=start,
        max_rate=most,
        quiet=given["quiet"],
        on_known=_keeping(out),
        **_wanted(given),
    )


def _wanted(given: dict[str, Any]) -> dict[str, Any]:
    """How narrow, how sure, and how long at most."""
    return {
        "precision": share(given["precision"]),
        "confidence": share(given["confidence"], "--confidence"),
        "budget_s": given["budget"],
    }


def _expected(given: dict[str, Any], most: int, bench: Bench, scenario: Scenario) -> int:
    """Users to start with: what the engine model expects, where the hardware is told."""
    if given["gpu"] is None:
        return min(_START, most)
    from servecap.engine.spec import EngineSpec
    from servecap.predict.guess import first_level, users_expected

    model = bench.prepared.target.model
    if model is None:
        raise UsageError("--gpu needs the model's name: give --model")
    try:
        spec = EngineSpec(model=model, gpu=given["gpu"], tp=given["tp"])
        expected = users_expected(spec, scenario)
    except UsageError as error:
        raise UsageError(f"{error}; or leave --gpu away: the search starts at {_START}") from None
    first = first_level(expected, otherwise=_START, most=most)
    if expected is not None:
        said = f"the engine model expects {expected.low:.0f} to {expected.high:.0f} users"
        progress.say(f"{said}: the first level has {first}", quiet=given["quiet"])
    return first


def search_with(
    bench: Bench,
    scenario: Scenario,
    out: Path,
    *,
    start: int,
    max_users: int,
    precision: float,
    quiet: bool,
    confidence: float = 0.95,
    budget_s: float | None = None,
    keep_partial: bool = False,
) -> tuple[SearchResult, list[tuple[Run, Summary]]]:
    """The search on a prepared server; also the run at capacity, for the report.

    Raises:
        KeyboardInterrupt: Ctrl-C; with *keep_partial* only before the first level was measured.
    """
    from servecap.search import find
    from servecap.store import read_run

    count = 0
    tried = progress.Tried()
    max_users = _at_most(bench, start, max_users, quiet=quiet)

    def probe(level: Scenario) -> Run:
        nonlocal count
        count += 1
        display = progress.Display(level, quiet=quiet, tried=tried)
        try:
            return measured(level, out / f"{count:02d}-users-{level.users}", display)
        finally:
            display.close()

    def on_level(level: Level) -> None:
        if level.valid:
            tried.add(level.users, level.verdict)
        progress.say(level_line(level), quiet=quiet)

    with bench.levels(scenario.seed, scenario.timeouts) as measured:
        result = find(
            probe,
            scenario,
            start=start,
            max_users=max_users,
            precision=precision,
            confidence=confidence,
            budget_s=budget_s,
            on_level=on_level,
            on_known=_keeping(out) if keep_partial else lambda _: None,
        )
    if result.interrupted and not (result.levels and keep_partial):
        raise KeyboardInterrupt
    best = result.at_capacity
    runs = [(read_run(Path(best.run_path)), best.summary)] if best and best.run_path else []
    return result, runs


def _keeping(out: Path) -> Callable[[SearchResult | RateResult], None]:
    """Stores what is known after each level, so that a search that is killed can be reported."""
    from servecap.store import write_json

    def keep(so_far: SearchResult | RateResult) -> None:
        with output.writing(out):
            write_json(out / SEARCH, so_far)

    return keep


def _at_most(bench: Bench, start: int, max_users: int, *, quiet: bool) -> int:
    """The largest level that may be tried, and a note where that is less than was asked for."""
    most = bench.users_most
    if most is None or not start <= most < max_users:
        return max_users
    progress.say(
        f"note: at most {most} users, for the server is not on this machine: see --allow-high-load",
        quiet=quiet,
    )
    return most


def level_line(level: Level) -> str:
    """One level in one line."""
    from servecap.report import search_text, units

    means = [
        f"{name.upper()} {units.seconds(found.mean)}"
        for name in ("ttft", "tpot")
        if (found := level.summary.client.get(name)) is not None
    ]
    verdict = level.verdict.upper() if level.valid else "INVALID"
    colour = {"PASS": "green", "FAIL": "red"}.get(verdict, "yellow")
    return "  ".join(
        [
            f"{level.users:6d} users",
            click.style(f"{verdict:7}", fg=colour),
            *means,
            f"{level.summary.requests} requests",
            f"({level.why})" if level.valid else f"({search_text.invalid(level)})",
        ]
    )


def share(text: str, option: str = "--precision") -> float:
    """A share written as 5% or 0.05.

    Raises:
        UsageError: it is neither.
    """
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise UsageError(f"{option} {text!r} is no share: write 5% or 0.05") from None
    return value / 100 if text.endswith("%") else value

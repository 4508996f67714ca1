"""`servecap run`: one load test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap.cli import asked, options, output, progress, shapes
from servecap.cli.grouped import Grouped
from servecap.scenario import ClosedLoop, OpenLoop

if TYPE_CHECKING:
    from servecap.metrics import Summary
    from servecap.probe import TargetSpec
    from servecap.run import Run
    from servecap.scenario import Scenario
    from servecap.workload.replay import Player


@click.command(
    "run",
    cls=Grouped,
    titles={
        "url": "Server",
        "users": "Load",
        "workload": "Workload",
        "slo": "Limits, users and end of the run",
        "out": "Output",
    },
)
@options.target_options
@options.telemetry_options
@click.option("--users", type=int, help="Users of the closed loop.  [default: 16]")
@shapes.options
@click.option("--queue", type=click.IntRange(1), help="Classic rule: so many requests in all.")
@click.option("--each", type=click.IntRange(1), help="Older test: so many requests per user.")
@click.option("--duration", type=options.Span(), help="Run exactly that long (60, 90s, 5m).")
@click.option(
    "--soak",
    type=options.Span(),
    help="A long run (90s, 30m, 8h) in memory that does not grow: the figures are of the latest "
    "requests, and how they moved is told of all the time.",
)
@options.workload_options
@options.judge_options
@options.output_options
def command(**given: Any) -> int:
    """Load a server with users (or a rate of requests) and report every figure.

    Each of N users takes a request from one shared queue, reads the answer to its end, thinks 1 to
    3 s, and goes on. The run ends when 250 requests have ended in a stationary window.

    \b
    Examples:
      servecap run --url http://localhost:8000 --users 64
      servecap run --url http://localhost:8000 --users 64 --queue 250      # classic
      servecap run --url http://localhost:8000 --users 64 --each 1 --workload fixed:42/285
      servecap run --url http://localhost:8000 --rate 5 --duration 60
      servecap run --url http://localhost:8000 --users 64 --soak 8h
      servecap run --url http://localhost:8000 --rate 2 --schedule ramp:20/120 --burstiness 2
      servecap run --url http://localhost:8000 --trace azure.csv --time-scale 10

    The API key is read from --api-key-file, else SERVECAP_API_KEY, else OPENAI_API_KEY. Ctrl-C lets
    what is in flight end, for 5 s at most; a second one drops it.
    """
    from servecap.report import text

    run, summary = measured(given)
    if given["as_json"]:
        output.print_json({"run": run.header, "path": run.path, "summary": summary})
    else:
        click.echo(text.summary_text(run, summary))
        click.echo(f"\nkept in {run.path}: report.html, summary.json, records.jsonl")
    return output.run_exit_code(run, summary)


def measured(given: dict[str, Any]) -> tuple[Run, Summary]:
    """The run that the options ask for, with its figures; it is kept in a folder."""
    from servecap import summarize
    from servecap.probe import open_bench

    scenario = options.scenario(given, _load(given))
    out = output.unused(output.folder(given["out"], "run"))
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
    quiet = given["quiet"]
    scenario = _with_rate(scenario, bench.workload.player, quiet)
    for note in bench.prepared.notes:
        progress.say(f"note: {note}", quiet=quiet)
    target = bench.prepared.target
    progress.say(f"testing {target.model or target.url} by {target.api}", quiet=quiet)
    display = progress.Display(scenario, quiet=quiet)
    try:
        run = bench.run(scenario, out, display)
    finally:
        display.close()
        bench.close()
    summary = summarize.summarize(run)
    keep(run, summary, out, lang=given["lang"])
    return run, summary


def keep(run: Run, summary: Summary, out: Path, *, lang: str = "en") -> None:
    """Write the run's summary and its page beside its records."""
    from servecap.report import html
    from servecap.store import write_json

    with output.writing(out):
        write_json(out / output.SUMMARY, summary)
        html.write_html(out / "report.html", runs=[(run, summary)], lang=lang)


def target_spec(given: dict[str, Any]) -> TargetSpec:
    """The server that the options name."""
    from servecap.probe import TargetSpec
    from servecap.wire.endpoint import Security

    if any(line.partition(":")[0].strip().lower() == "authorization" for line in given["headers"]):
        progress.say(
            "note: other users of this machine can read a key on the command line: give it by "
            "--api-key-file, or in SERVECAP_API_KEY",
            quiet=given["quiet"],
        )
    return TargetSpec(
        url=given["url"],
        api=given["api"],
        model=given["model"],
        stream=given["stream"],
        headers=given["headers"],
        security=Security(insecure=given["insecure"], ca_file=given["ca_file"]),
        proxy=given["proxy"],
        key_file=given["api_key_file"],
    )


def _load(given: dict[str, Any]) -> ClosedLoop | OpenLoop:
    load = shapes.open_loop(given)
    if load is not None:
        return load
    return options.closed_loop(given, 16 if given["users"] is None else given["users"])


def _with_rate(scenario: Scenario, player: Player | None, quiet: bool) -> Scenario:
    """The scenario with the mean rate of its trace, now that it has been read."""
    import msgspec

    if player is None or not isinstance(scenario.load, OpenLoop):
        return scenario
    limit_s = scenario.stop.duration_s or scenario.stop.max_duration_s
    if player.span_s() > limit_s:
        progress.say(
            f"note: playing the whole trace takes {player.span_s():,.0f} s, but the run ends after"
            f" {limit_s:,.0f} s: see --time-scale and --max-duration",
            quiet=quiet,
        )
    load = msgspec.structs.replace(scenario.load, rate_rps=player.rate_rps(scenario.seed, limit_s))
    return msgspec.structs.replace(scenario, load=load)

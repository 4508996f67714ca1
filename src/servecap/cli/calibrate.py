"""`servecap calibrate`: fit the engine model to measured cells and runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap.cli import output, probing
from servecap.cli.param import ENGINE
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.predict.calibrate import Measured
    from servecap.predict.profile import Profile
    from servecap.predict.rows import Rules

# As the tables of the classic method grant it: their own cells break 3 s and 100 ms by a little.
TABLE_SLO = "ttft.mean<3.2s,tpot.mean<110ms"


@click.command("calibrate")
@click.argument("files", nargs=-1, type=click.Path(exists=True))
@click.option("--url", help="Probe this server: short runs that tell its step times.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The profile's file.")
@click.option("--name", help="Of the profile.  [default: the file's name]")
@click.option(
    "--engine",
    type=ENGINE,
    help="That the rows were measured on.  [default: vllm where there are runs, else tgi]",
)
@click.option(
    "--model",
    help="Of the runs or the server, as `predict` knows it, or a config.json.  [default: the name "
    "that requests were sent to]",
)
@click.option("--gpu", help="Of the runs or the server, such as a100-40gb, or a YAML file.")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Of the same.")
@click.option("--weights", help="Such as fp8 or awq.  [default: as the model says]")
@click.option("--kv-dtype", type=click.Choice(["fp8", "int8"]), help="[default: 16 bits]")
@click.option(
    "--max-running",
    type=click.IntRange(1),
    help="Requests that the server computes at once. [default: the engine's own; --url: as seen]",
)
@probing.probe_options
@click.option("--slo", default=TABLE_SLO, show_default=True, help="Of rows that name none.")
@click.option(
    "--queue",
    type=click.IntRange(0),
    help="Requests of the classic stop rule; 0: steady state.  [default: by row, see the docs]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the profile on stdout.")
def command(**given: Any) -> int:
    """Fit the engine model to a server, measured cells or runs, and keep the result as a profile.

    FILES are tables of measured cells (CSV), matrix files or matrix folders, folders of
    `servecap run`, and folders of `servecap find`, of which each level counts. The profile tells
    which parameters these could tell, where it holds, and how wrong it was on cells that were
    left out; `servecap predict --profile` uses all three. Runs do not know their hardware: --gpu
    and --tp tell it, for all that are given. --url makes its own short runs: prompts of several
    lengths by one user, answers to 1, 2, 4, ... users, a long context. What they are and how long
    they may take is said before the first.

    \b
    Examples:
      servecap calibrate --url http://localhost:8000 --model llama-13b --gpu a30 --out a30.json
      servecap calibrate cells.csv --out ours.json
      servecap calibrate find-1 run-2 --model llama-13b --gpu a30 --tp 4 --out a30.json
      servecap predict --profile ours.json --model llama-13b --gpu a30,a100-40gb --tp 1,2,4,8
    """
    import msgspec

    from servecap import slo as slos
    from servecap.cli.progress import say
    from servecap.predict import profile, rows, runs, uncertainty, untold

    target = Path(given["out"])
    if not target.parent.is_dir():  # told now, and not after the fit
        raise UsageError(f"--out {str(target)!r}: there is no folder {str(target.parent)!r}")
    if not given["files"] and given["url"] is None:
        raise UsageError("say what to calibrate with: FILES, or --url of a server to probe")
    of_runs = [path for path in map(Path, given["files"]) if runs.folders_of(path)]
    engine = given["engine"] or ("vllm" if of_runs or given["url"] else "tgi")
    rules = msgspec.convert(
        {"engine": engine, "queue": given["queue"], "slo": slos.parse(given["slo"])}, rows.Rules
    )
    found = [*_of_tables(given, rules), *_of_runs(given, of_runs, rules.engine)]
    running = given["max_running"] if of_runs else None
    if given["url"] is not None:
        probed, running = probing.probed(given, rules.engine)
        found += probed
    say(f"fitting the {rules.engine} engine to {len(found)} cells and runs")
    say_if_slow()
    start = profile.prior(rules.engine)
    fit = untold.fit(found, start, name=given["name"] or target.stem)
    fitted = msgspec.structs.replace(uncertainty.with_spreads(fit), max_running=running)
    profile.save(fitted, target)
    if given["as_json"]:
        output.print_json(fitted)
    else:
        click.echo(_text(fitted, fit.problem.start))
        click.echo(f"profile {fitted.name!r} is in {target}")
    return 0


def _of_tables(given: dict[str, Any], rules: Rules) -> list[Measured]:
    """The rows of the tables among the files."""
    from servecap.cli.progress import say
    from servecap.matrix import files as tables
    from servecap.predict import profile, rows, runs

    paths = [Path(file) for file in given["files"] if not runs.folders_of(Path(file))]
    if not paths:
        return []
    read = [tables.read(path, loads=True) for path in paths]
    for warning in (warning for table in read for warning in table.warnings):
        say(f"note: {warning}")
    cells = [cell for table in read for cell in table.cells]
    found, left_out = rows.measured(cells, rules, tuning=profile.prior(rules.engine).tuning)
    for why in left_out:
        say(f"left out: {why}")
    return found


def _of_runs(given: dict[str, Any], paths: list[Path], engine: str) -> list[Measured]:
    """The rows of those folders; says which of their runs are left out, and why."""
    from servecap.cli.progress import say
    from servecap.predict import runs
    from servecap.store import read_run

    if not paths:
        return []
    if given["gpu"] is None:
        raise UsageError(f"{paths[0]}: a run does not know its GPU: give --gpu (and --tp)")
    model = given["model"] or read_run(runs.folders_of(paths[0])[0]).header.target.model
    if model is None:
        raise UsageError(f"{paths[0]}: the run does not know its model: give --model")
    spec = probing.spec_of(given, model, engine)
    found = runs.measured(paths, spec)
    for folder, why in found.skipped:
        say(f"left out: {folder}: {why}")
    for folder in found.estimated:
        say(f"{folder}: tokens are estimated, since the server told none")
    return list(found.rows)


def say_if_slow() -> None:
    """Tells, where it is so, that numba is missing and what that costs."""
    from servecap.cli.progress import say
    from servecap.engine.fast import COMPILED

    if not COMPILED:
        say("numba is not installed, so this takes about a hundred times as long: "
            'pip install "servecap[fast]"')  # fmt: skip


def _text(fitted: Profile, start: Profile) -> str:
    """Parameters before and after, and the intervals."""
    lines = ["parameter                      before      now   spread left   told by the rows"]
    for name, parameter in fitted.parameters.items():
        before = start.parameters[name]
        told = "yes" if parameter.identified else "no"
        left = parameter.spread / before.spread
        lines.append(
            f"{name:<28} {before.value:>8.3g} {parameter.value:>8.3g}   {left:>11.0%}   {told}"
        )
    lines += ["", "80% of truths lie within, of the predicted figure"]
    for kind, told in (
        ("measured", "rows, as the fit leaves them"),
        ("calibrated", "rows left out"),
        ("transferred", "rows left out"),
    ):
        for figure, s in fitted.spreads[kind].items():
            source = f"{s.rows} {told}" if s.rows else "assumed: too few rows"
            lines.append(
                f"  {kind:<12} {figure:<15} {_factor(s.low)} to {_factor(s.high)}  ({source})"
            )
    if fitted.members:
        lines += ["", "not told by the rows, and how likely they make it:"]
        lines += [
            f"  {m.weight:>4.0%}  {m.cycles} requests of each user, started within {m.start_s:g} s"
            for m in fitted.members
        ]
    known = fitted.validity
    lines += [
        "",
        f"holds for {', '.join(known.models)} on {', '.join(known.gpus)}, up to TP{known.tp_max} "
        f"and {known.users_max} users, contexts of {known.context_tokens[0]:.0f} to "
        f"{known.context_tokens[1]:.0f} tokens",
    ]
    return "\n".join(lines)


def _factor(logarithm: float) -> str:
    from math import exp

    return f"{exp(logarithm) - 1:+.0%}"

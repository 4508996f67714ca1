"""`servecap calibrate`: fit the engine model to measured cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from servecap.cli import output

if TYPE_CHECKING:
    from servecap.predict.profile import Profile

# As the tables of the classic method grant it: their own cells break 3 s and 100 ms by a little.
TABLE_SLO = "ttft.mean<3.2s,tpot.mean<110ms"


@click.command("calibrate")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The profile's file.")
@click.option("--name", help="Of the profile.  [default: the file's name]")
@click.option(
    "--engine",
    type=click.Choice(["vllm", "vllm-2023", "tgi", "sglang", "static"]),
    default="tgi",
    show_default=True,
    help="Engine that the cells were measured on.",
)
@click.option("--slo", default=TABLE_SLO, show_default=True, help="Of rows that name none.")
@click.option(
    "--queue",
    type=click.IntRange(0),
    help="Requests of the classic stop rule; 0: steady state.  [default: by row, see the docs]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the profile on stdout.")
def command(
    files: tuple[str, ...],
    out: str,
    name: str | None,
    engine: str,
    slo: str,
    queue: int | None,
    as_json: bool,
) -> int:
    """Fit the engine model to measured cells, and keep the result as a profile.

    FILES are tables of measured cells (CSV), matrix files or matrix folders. The profile tells
    which parameters the cells could tell, where it holds, and how wrong it was on cells that were
    left out; `servecap predict --profile` uses all three.

    \b
    Example:
      servecap calibrate cells.csv --out ours.json
      servecap predict --profile ours.json --model llama-13b --gpu a30,a100-40gb --tp 1,2,4,8
    """
    import msgspec

    from servecap import slo as slos
    from servecap.cli.progress import say
    from servecap.matrix import files as tables
    from servecap.predict import calibrate, profile, rows, uncertainty

    target = Path(out)
    rules = msgspec.convert({"engine": engine, "queue": queue, "slo": slos.parse(slo)}, rows.Rules)
    cells = [cell for file in files for cell in tables.read(Path(file)).cells]
    found = rows.measured(cells, rules)
    say(f"fitting the {engine} engine to {len(found)} cells")
    say_if_slow()
    start = profile.prior(rules.engine)
    fit = calibrate.fit(found, start, name=name or target.stem)
    fitted = uncertainty.with_spreads(fit)
    profile.save(fitted, target)
    if as_json:
        output.print_json(fitted)
    else:
        click.echo(_text(fitted, start))
        click.echo(f"profile {fitted.name!r} is in {out}")
    return 0


def say_if_slow() -> None:
    """Tells, where it is so, that numba is missing and what that costs."""
    from servecap.cli.progress import say
    from servecap.engine.fast import COMPILED

    if not COMPILED:
        say("numba is not installed, so this takes about a hundred times as long: "
            'pip install "servecap[fast]"')  # fmt: skip


def _text(fitted: Profile, start: Profile) -> str:
    """Parameters before and after, and the intervals."""
    lines = ["parameter                      before      now   told by the cells"]
    for name, parameter in fitted.parameters.items():
        before = start.parameters[name].value if name in start.parameters else 1.0
        told = "yes" if parameter.identified else "no"
        lines.append(f"{name:<28} {before:>8.3g} {parameter.value:>8.3g}   {told}")
    lines += ["", "80% of truths lie within, of the predicted figure"]
    for kind in ("calibrated", "transferred"):
        for figure, s in fitted.spreads[kind].items():
            source = f"{s.rows} rows left out" if s.rows else "assumed: too few rows"
            lines.append(
                f"  {kind:<12} {figure:<15} {_factor(s.low)} to {_factor(s.high)}  ({source})"
            )
    known = fitted.validity
    lines += [
        "",
        f"holds for {', '.join(known.models)} on {', '.join(known.gpus)}, up to TP{known.tp_max} "
        f"and {known.users_max} users",
    ]
    return "\n".join(lines)


def _factor(logarithm: float) -> str:
    from math import exp

    return f"{exp(logarithm) - 1:+.0%}"

"""`servecap workload`: what a data set or a trace amounts to, and smaller ones like it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap.cli import output
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.workload.census import Census
    from servecap.workload.source import Workload
    from servecap.workload.traces import Trace


@click.group("workload")
def command() -> None:
    """Describe a data set or a trace, or write a smaller one that is like it."""


_format = click.option(
    "--format",
    "format",
    metavar="FORMAT",
    help="Of a data set or a trace (azure, burstgpt, mooncake, bailian, plain).",
)
_tokenizer = click.option(
    "--tokenizer", metavar="FILE", help="tokenizer.json to count a data set's tokens with."
)


@command.command("describe")
@click.argument("file")
@_format
@_tokenizer
@click.option("--picture", type=click.Path(dir_okay=False), help="Write a PNG of it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
def describe(file: str, **given: Any) -> int:
    """Lengths, arrivals, burstiness, shared prefixes and sessions of FILE.

    FILE is a data set, a trace, or a built-in workload such as chat-en.

    \b
    Examples:
      servecap workload describe azure.csv
      servecap workload describe chat-en --json
    """
    from servecap.report import workload_text

    found = _open(file, given["format"], given["tokenizer"])
    told = _census(file, found)
    if given["picture"] is not None:
        _draw(Path(given["picture"]), told, found)
    if given["as_json"]:
        output.print_json(told)
    else:
        click.echo(workload_text.census_text(told), nl=False)
    return 0


@command.command("sample")
@click.argument("file")
@click.option("--requests", type=click.IntRange(1), required=True, help="How many to take.")
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="File to write.")
@_format
@_tokenizer
@click.option("--seed", type=int, default=0, show_default=True, help="Of a data set's sample.")
def sample(file: str, **given: Any) -> int:
    """Write a smaller FILE with the same statistics, and print both.

    Of a trace the one piece is taken whose lengths, rate, burstiness and shared prefixes are
    nearest to those of the whole; of a data set, records at equal steps of their length.

    \b
    Example:
      servecap workload sample azure.csv --requests 500 --out small.csv
    """
    from servecap.report import workload_text
    from servecap.workload import excerpt, source

    found = _open(file, given["format"], given["tokenizer"])
    out, wanted = Path(given["out"]), given["requests"]
    if out.exists():
        raise UsageError(f"--out {given['out']} exists already: name a new file")
    if isinstance(found, source.Workload):
        if not Path(file).is_file():
            raise UsageError(f"workload {file} is no file: only a file can be sampled")
        text = excerpt.of_samples(file, found.samples, wanted, given["seed"])
    else:
        text = excerpt.of_trace(file, found, wanted)
    with output.writing(out.parent):
        out.write_text(text, encoding="utf-8", newline="")
    small = _open(str(out), given["format"] or _format_of(found), given["tokenizer"])
    for name, workload in ((file, found), (given["out"], small)):
        click.echo(workload_text.census_text(_census(name, workload)))
    return 0


def _format_of(found: Trace | Workload) -> str | None:
    """The format that the whole was read as, so that the sample is read alike."""
    from servecap.workload.traces import Trace

    return found.format if isinstance(found, Trace) else None


def _open(file: str, format: str | None, tokenizer: str | None) -> Trace | Workload:
    """FILE as a trace where it is one, else as a data set."""
    from servecap.scenario import WorkloadSpec
    from servecap.workload import builtin, source, traces

    if format in traces.FORMATS:
        return traces.load(file, format)
    is_file = file not in builtin.BUILTINS and Path(file).is_file()
    if format is None and is_file and traces.looks_like_one(file):
        return traces.load(file)
    spec = WorkloadSpec(source=file, format=format, output="natural", tokenizer=tokenizer)
    found = source.load(spec)
    if not found.samples:
        raise UsageError(f"workload {file} makes its own prompts: describe a file or a data set")
    return found


def _census(name: str, found: Trace | Workload) -> Census:
    from servecap.workload import census, source

    if isinstance(found, source.Workload):
        return census.of_workload(found)
    return census.of_trace(name, found)


def _draw(path: Path, told: Census, found: Trace | Workload) -> None:
    from servecap.report import chart_files, chart_workload
    from servecap.workload import source

    if isinstance(found, source.Workload):
        lengths = (
            [s.prompt_tokens or 0 for s in found.samples],
            [s.answer_tokens for s in found.samples if s.answer_tokens],
        )
        chart = chart_workload.workload_chart(Path(told.name).name, *lengths, [])
    else:
        rows = found.rows
        chart = chart_workload.workload_chart(
            Path(told.name).name,
            [row.in_tokens for row in rows],
            [row.out_tokens for row in rows],
            [row.due_s for row in rows],
        )
    with output.writing(path.parent):
        path.write_bytes(chart_files.png(chart))

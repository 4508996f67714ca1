"""`servecap import`: result files of other load testers become runs, or a cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap import slo as slos
from servecap.cli import output, progress
from servecap.cli.param import Finite
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.cell import Cell
    from servecap.foreign.cells import Level
    from servecap.foreign.rows import Found
    from servecap.metrics import Summary
    from servecap.run import Run
    from servecap.slo import Slo

Named = list[tuple[str, "Found"]]


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help="Folder for the run; of several, each gets a folder in it.  [default: "
    "servecap-runs/import-TIME]",
)
@click.option("--only", type=click.IntRange(1), metavar="N", help="Only the N-th load test.")
@click.option(
    "--users",
    type=click.IntRange(1),
    help="Requests kept in flight, where the file does not tell (or tells it wrongly).",
)
@click.option("--rate", type=Finite(min=0, min_open=True), help="Requests/s, likewise.")
@click.option(
    "--slo", default=slos.DEFAULT_SLO_TEXT, show_default=True, help="Limits to judge it by."
)
@click.option(
    "--cell",
    type=click.Path(dir_okay=False),
    help="Write a table of one cell here instead (.csv, .json, .md): the tests are its levels.",
)
@click.option("--model", help="The cell's model.  [default: as the file says]")
@click.option("--gpu", help="The cell's GPU.")
@click.option("--tp", type=click.IntRange(1), help="The cell's tensor-parallel degree.")
@click.option("--gpu-memory-gb", type=Finite(min=0, min_open=True))
@click.option("--interconnect", help="How the cell's GPUs are linked.")
@click.option("--scenario", default="imported", show_default=True, help="The cell's scenario.")
@click.option(
    "--think-mean",
    type=Finite(min=0),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Mean think time of the users that the cell counts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
def command(files: tuple[str, ...], **given: Any) -> int:
    """Turn result files of other load testers into runs, or into a cell.

    FILES: the JSON of vllm bench serve (--save-result --save-detailed) and guidellm, SGLang's JSONL
    (--output-details), AIPerf's profile_export.jsonl, genai-perf's profile_export.json. A run can
    be reported, compared, audited and exported. Files with aggregates only can become a cell for
    matrix and plan, not a run. What a file does not tell stays unknown.

    \b
    Examples:
      servecap import vllm-result.json --out imported-run
      servecap import benchmarks.json --out imported --slo "ttft.p95<2s"
      servecap import c16.json c32.json c64.json --cell cells.csv --gpu h100 --tp 2
    Exits with 4 if what was imported cannot be believed.
    """
    if given["cell"] is not None:
        return _cell(files, given)
    return _runs(files, given)


def _read(files: tuple[str, ...], given: dict[str, Any]) -> Named:
    """Every load test in the files with its name, and the load as the user knows it."""
    import msgspec

    from servecap.foreign.read import read
    from servecap.foreign.runs import told_load

    if given["users"] is not None and given["rate"] is not None:
        raise UsageError("--users and --rate exclude each other: give one of them")
    if given["cell"] is not None and given["out"] is not None:
        raise UsageError("--cell writes a table and --out runs: give one of them")
    tests: Named = []
    for file in files:
        inside = read(Path(file))
        several = len(inside) > 1
        tests += [(f"{file} [{i}]" if several else file, t) for i, t in enumerate(inside, start=1)]
    if given["only"] is not None:
        if given["only"] > len(tests):
            raise UsageError(f"--only {given['only']}: there are {len(tests)} load tests")
        tests = [tests[given["only"] - 1]]
    users, rate_rps = given["users"], given["rate"]
    if users is None and rate_rps is None:
        return tests
    return [
        (n, msgspec.structs.replace(t, load=told_load(t.load, users=users, rate_rps=rate_rps)))
        for n, t in tests
    ]


def _runs(files: tuple[str, ...], given: dict[str, Any]) -> int:
    from servecap.report.text import summary_text

    made = runs(files, given)
    for run, _ in made:
        progress.say(f"written: {run.path}")
    if given["as_json"]:
        output.print_json(
            [{"run": run.header, "path": run.path, "summary": summary} for run, summary in made]
        )
    else:
        click.echo("\n".join(summary_text(run, summary) for run, summary in made), nl=False)
    return 0 if all(summary.valid for _, summary in made) else 4


def runs(files: tuple[str, ...], given: dict[str, Any]) -> list[tuple[Run, Summary]]:
    """Every load test in the files as a run with its figures; each is kept in a folder."""
    import msgspec

    from servecap.foreign.runs import run_of
    from servecap.summarize import summarize

    slo = slos.parse(given["slo"])
    made = [run_of(test, name=name, slo=slo) for name, test in _read(files, given)]
    out = output.unused(output.folder(given["out"], "import"))
    folders = [out] if len(made) == 1 else [out / f"{i:02}" for i in range(1, len(made) + 1)]
    found = []
    for test, folder in zip(made, folders, strict=True):
        run = msgspec.structs.replace(test, path=str(folder))
        found.append((run, summarize(run)))
        _keep(*found[-1], folder)
    return found


def _keep(run: Run, summary: Summary, folder: Path) -> None:
    from servecap.cli.run import keep
    from servecap.store import RunWriter

    writer = RunWriter(folder, run.header)
    for record in run.records:
        writer.add(record)
    writer.close(run.header)
    keep(run, summary, folder)


def _cell(files: tuple[str, ...], given: dict[str, Any]) -> int:
    from servecap.matrix.files import to_markdown

    made, levels = cell(files, given)
    if given["as_json"]:
        output.print_json({"cell": made, "levels": levels})
    else:
        _print_levels(levels, made.invalid_reason)
        click.echo(to_markdown([made]), nl=False)
    progress.say(f"written: {given['cell']}")
    return 0 if made.capacity is not None else 4


def cell(files: tuple[str, ...], given: dict[str, Any]) -> tuple[Cell, list[Level]]:
    """The cell whose levels are the load tests in the files; it is written as a table.

    Raises:
        UsageError: a file cannot be read, or what it does not tell was not given.
    """
    from servecap.cell import Cell
    from servecap.foreign.cells import cell_of
    from servecap.matrix.files import write

    slo = slos.parse(given["slo"])
    tests = _read(files, given)
    models = {given["model"] or test.model for _, test in tests}
    model = models.pop()
    if model is None or models:
        raise UsageError("--cell: the files do not name one model: give --model NAME")
    if given["gpu"] is None or given["tp"] is None:
        raise UsageError("--cell: give --gpu NAME and --tp N, for no such file tells them")
    tools = ", ".join(sorted({test.tool for _, test in tests}))
    place = Cell(
        model=model,
        gpu=given["gpu"],
        tp=given["tp"],
        scenario=given["scenario"],
        origin="measured",
        provenance=f"imported from {tools}: {', '.join(name for name, _ in tests)}",
        gpu_memory_gb=given["gpu_memory_gb"],
        interconnect=given["interconnect"],
        notes=("imported: whether the tool's client kept up is not known",),
    )
    levels = [_level(name, test, slo, given["think_mean"]) for name, test in tests]
    made = cell_of(levels, place, slo)
    write(Path(given["cell"]), [made])
    return made, levels


def _level(name: str, test: Found, slo: Slo, think_mean_s: float) -> Level:
    """The level that a load test was: by its requests where the file has them."""
    from servecap.foreign.cells import level_of_run, level_of_told
    from servecap.foreign.runs import run_of
    from servecap.summarize import summarize

    if not test.rows:
        progress.say(f"note: {name}: {test.why_no_rows}")
        return level_of_told(test, slo, name=name, think_mean_s=think_mean_s)
    if test.load.at_once:
        raise UsageError(
            f"{name}: all requests were sent at once: a burst is no number of users. Give a test "
            "with a limit on the requests in flight, or with a rate"
        )
    run = run_of(test, name=name, slo=slo)
    return level_of_run(run, summarize(run), think_mean_s=think_mean_s)


def _print_levels(levels: list[Level], reason: str | None) -> None:
    from servecap.report import units

    for level in sorted(levels, key=lambda x: x.users):
        said = level.verdict.value.upper() if level.valid else "INVALID"
        figures = f"TTFT {units.seconds(level.ttft_s)}, TPOT {units.seconds(level.tpot_s)}"
        click.echo(f"{level.users:6,} users  {said:8} {figures}  ({level.by})")
    if reason:
        click.echo(f"no capacity: {reason}")
    click.echo()

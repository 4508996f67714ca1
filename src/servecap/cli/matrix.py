"""`servecap matrix`: fill the key performance matrix."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap.cli import asked, find, options, output, progress
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.cell import Cell
    from servecap.matrix.fill import Event
    from servecap.matrix.job import CellJob
    from servecap.matrix.spec import Spec
    from servecap.probe import Bench
    from servecap.search import SearchResult

    OpenAt = Callable[[CellJob, str], Bench]


@click.command("matrix", cls=asked.Asked)
@click.argument("spec", type=click.Path(dir_okay=False))
@click.argument("new", required=False, type=click.Path(dir_okay=False))
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help="Folder of the matrix.  [default: the spec's name beside it]",
)
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=PATTERN",
    help="Only these cells: model, gpu, tp or scenario (again for more).",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run, and run nothing.")
@click.option(
    "--table",
    "tables",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="Also write the cells here: .xlsx, .parquet, .csv, .json or .md (again for more).",
)
@options.high_load_option
@options.telemetry_switch
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
@output.lang_option
@progress.option
def command(spec: str, new: str | None, **given: Any) -> int:
    """Fill the key performance matrix: model x GPU x TP x scenario.

    `servecap matrix init [NEW]` writes a commented spec (matrix.yaml) and a JSON schema beside it,
    with which editors complete its keys.

    SPEC is a YAML file that lists the cells and where each comes from: a URL, a command that
    starts the server, the embedded emulator, the engine model alone, or a table of measured
    cells. Each result is kept as soon as it is there; a second run goes on where the first stopped.

    \b
    Example of a spec:
      defaults: {slo: "ttft.mean<3s,tpot.mean<100ms"}
      scenarios: {chat: {workload: chat-en}}
      cells:
        - {model: llama-13b, gpu: a30, tp: [2, 4], scenario: chat, predict: {engine: tgi}}
        - {model: llama-13b, gpu: a30, tp: 8, scenario: chat, url: "http://gpu7:8000"}
        - {import: measured.csv}

    \b
    Examples:
      servecap matrix init
      servecap matrix spec.yaml --dry-run
      servecap matrix spec.yaml && servecap plan spec --users 10000
    """
    from servecap.report import tables

    if spec == "init":
        return _init(Path(new or "matrix.yaml"))
    for name in given["tables"]:
        tables.check_ending(name, tables.MATRIX_ENDINGS)
    if new is not None:
        raise UsageError(f"{new!r} is one too many: one spec at a time")
    loaded, out = opened(spec, given["out"])
    if given["dry_run"]:
        _dry_run(loaded, out, given["only"])
        return 0
    cells = fill_spec(
        loaded,
        out,
        only=given["only"],
        quiet=given["quiet"],
        high_load=given["allow_high_load"],
        telemetry=given["telemetry"],
    )
    for name in given["tables"]:
        tables.write_matrix(Path(name), cells)
    _finish(loaded, cells, out, given["as_json"], given["lang"])
    return 1 if _not_filled(loaded, out, given["only"]) else 0


def _not_filled(spec: Spec, out: Path, only: tuple[str, ...]) -> bool:
    """Whether cells failed; each is told, also with --quiet: this is no progress."""
    from servecap.matrix.fill import survey

    failed = [todo for todo in survey(spec, out, only=only) if todo.state == "failed"]
    for todo in failed:
        progress.say(f"not filled: {todo.job.name}: {todo.note}")
    return bool(failed)


def opened(spec: str, out: str | None) -> tuple[Spec, Path]:
    """The spec that is in the file, and the folder of its matrix.

    Raises:
        UsageError: the file is no spec, or names no folder.
    """
    from servecap.matrix import spec as specs

    loaded = specs.load(Path(spec))
    folder = Path(out) if out else Path(spec).with_suffix("")
    if folder == Path(spec):
        raise UsageError(f"{spec!r} has no ending, so name a folder with --out")
    return loaded, folder


def _init(path: Path) -> int:
    from servecap.matrix.schema import write_starter

    spec, schema = write_starter(path)
    click.echo(f"written: {spec}, {schema}\nnext: servecap matrix {spec} --dry-run")
    return 0


def fill_spec(
    spec: Spec,
    out: Path,
    *,
    only: tuple[str, ...] = (),
    quiet: bool,
    high_load: bool = False,
    telemetry: bool = True,
) -> list[Cell]:
    """The spec's cells, filled as far as they can be; what happens is told on stderr."""
    from servecap.matrix import fill

    def on_event(event: Event) -> None:
        _say(event, quiet)

    def open_at(job: CellJob, url: str) -> Bench:
        from servecap.probe import Around, TargetSpec, open_bench

        return open_bench(
            TargetSpec(url=url, api=job.api, model=job.served_model),
            job.scenario.workload,
            job.scenario.timeouts,
            around=Around() if telemetry else None,
            high_load=high_load,
            command=asked.command_line(),
        )

    def find_cell(job: CellJob, url: str, folder: Path) -> Cell:
        return _find(job, url, folder, quiet, open_at)

    return fill.fill(spec, out, find_cell, only=only, on_event=on_event)


def _finish(spec: Spec, cells: list[Cell], out: Path, as_json: bool, lang: str) -> None:
    """Keep the matrix, if there is anything in it, and print it."""
    from servecap.matrix import files
    from servecap.report import html

    if cells:
        with output.writing(out):
            files.write(out / "matrix.csv", cells)
            files.write(out / "matrix.md", cells)
            html.write_html(
                out / "report.html", cells=cells, title="Key performance matrix", lang=lang
            )
    if as_json:
        click.echo(files.to_json(cells))
    elif cells:
        _print(spec, cells, out)


def _print(spec: Spec, cells: list[Cell], out: Path) -> None:
    from servecap.matrix import files
    from servecap.matrix.compare import conclusions
    from servecap.report.table import bullet

    click.echo(files.to_markdown(cells), nl=False)
    words = conclusions(cells)
    if words:
        click.echo("\nScenarios side by side")
        for text in words:
            click.echo("\n".join(bullet(text)))
    click.echo(
        f"\n{len(cells)} of {len(spec.imported) + len(spec.jobs)} cells are filled; "
        f"kept in {out}: report.html, matrix.csv, matrix.md\n"
        f"next: servecap plan {out} --users 10000"
    )


def _dry_run(spec: Spec, out: Path, only: tuple[str, ...]) -> None:
    from servecap.matrix.fill import survey
    from servecap.matrix.order import estimate_s

    total_s = 0.0
    for cell in spec.imported:
        click.echo(f"imported  {cell.model} on {cell.gpu}, TP{cell.tp}, {cell.scenario}")
    for todo in survey(spec, out, only=only):
        note = f"  ({todo.note})" if todo.note else ""
        takes = ""
        if todo.state not in ("done", "skipped"):
            seconds = estimate_s(todo.job)
            total_s += seconds
            takes = f", about {_duration(seconds)}"
        click.echo(f"{todo.state:8}  {todo.job.name}{takes}{note}")
    if total_s:
        click.echo(
            f"\nabout {_duration(total_s)} in all, if latencies are at the SLO's limits, answers "
            "have 200 tokens and a cell carries 128 users"
        )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _say(event: Event, quiet: bool) -> None:
    place = f"[{event.index}/{event.total}] {event.name}"
    match event.kind:
        case "started":
            progress.say(place, quiet=quiet)
        case "landed":
            cell = event.cell
            users = None if cell is None or cell.capacity is None else cell.capacity.users
            progress.say(f"{place}: {'n/a' if users is None else users} users", quiet=quiet)
        case "skipped":
            progress.say(f"{place}: skipped: {event.error}", quiet=quiet)
        case "failed":
            progress.say(f"{place}: failed: {event.error}", quiet=quiet)


def _find(job: CellJob, url: str, folder: Path, quiet: bool, open_at: OpenAt) -> Cell:
    """The cell's capacity: of the server at *url*, or as the engine model predicts it."""
    import msgspec

    from servecap.matrix import predicted
    from servecap.matrix.job import Predict
    from servecap.matrix.measured import cell_of
    from servecap.preflight import is_emulator
    from servecap.store import write_json

    if isinstance(job.source, Predict):
        return predicted.cell_of(job, job.source)
    levels = _fresh(folder)
    with contextlib.closing(open_at(job, url)) as bench:
        result = _searched(job, bench, levels, quiet)
    write_json(levels / find.SEARCH, result)
    cell = cell_of(job, result, provenance=str(levels))
    if is_emulator(bench.prepared.target.server):  # our own, wherever it runs
        return msgspec.structs.replace(cell, origin="predicted")
    return cell


def _searched(job: CellJob, bench: Bench, levels: Path, quiet: bool) -> SearchResult:
    result, _ = find.search_with(
        bench,
        job.scenario,
        levels,
        start=first_users(job, quiet=quiet),
        max_users=job.search.max_users,
        precision=job.search.precision,
        quiet=quiet,
    )
    return result


def first_users(job: CellJob, *, quiet: bool) -> int:
    """Users that a cell's search starts with: as the spec says, else as the engine model expects.

    A server or GPU that the model does not know is no error: the search finds its way.
    """
    from servecap.engine.spec import EngineSpec
    from servecap.predict.guess import first_level, users_expected

    bounds = job.search
    if bounds.start is not None or job.origin != "measured":
        return bounds.plain_start
    spec = EngineSpec(model=job.model, gpu=job.gpu, tp=job.tp, gpu_memory_gb=job.gpu_memory_gb)
    try:
        expected = users_expected(spec, job.scenario, interconnect=job.interconnect)
    except UsageError:
        return bounds.plain_start
    first = first_level(expected, otherwise=bounds.plain_start, most=bounds.max_users)
    if expected is not None:
        said = f"the engine model expects {expected.low:.0f} to {expected.high:.0f} users"
        progress.say(f"{said}: the first level has {first}", quiet=quiet)
    return first


def _fresh(folder: Path) -> Path:
    """A folder for this attempt, beside those of earlier ones."""
    count = 1
    while (folder / f"find-{count}").exists():
        count += 1
    path = folder / f"find-{count}"
    path.mkdir(parents=True)
    return path

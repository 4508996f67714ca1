"""`servecap export`: a stored run as a table, or as metrics."""

from __future__ import annotations

from pathlib import Path

import click

from servecap.errors import UsageError

FORMATS = ("csv", "parquet", "xlsx", "openmetrics", "otlp")
# Those that are written as files only, and their names in the run's folder.
FILES = {"parquet": "records.parquet", "xlsx": "run.xlsx", "otlp": "metrics.json"}
SUFFIXES = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".prom": "openmetrics",
    ".json": "otlp",
}


@click.command("export")
@click.argument("run", type=click.Path())
@click.option(
    "--to",
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Format.  [default: by the name of --out; else csv]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    help="File to write.  [default: stdout; records.parquet, run.xlsx or metrics.json in "
    "the folder]",
)
@click.option("--otlp", metavar="URL", help="Send the figures to this OTLP/HTTP collector instead.")
def command(run: str, form: str | None, out: str | None, otlp: str | None) -> int:
    """Write a stored run as CSV, Parquet, Excel, OpenMetrics text or OTLP metrics.

    RUN is a folder made by run or import. CSV and Parquet have one row for each request;
    OpenMetrics and OTLP have the figures of the whole run; Excel has both. Parquet, Excel and OTLP
    need `pip install servecap[parquet]`, `[excel]` and `[otlp]`.

    \b
    Examples:
      servecap export run-folder > requests.csv
      servecap export run-folder --out requests.parquet
      servecap export run-folder --to xlsx
      servecap export run-folder --to openmetrics --out /var/lib/node_exporter/servecap.prom
      servecap export run-folder --otlp http://localhost:4318
    """
    from servecap.report import exported
    from servecap.report import otlp as metrics
    from servecap.store import read_run
    from servecap.summarize import summarize

    form = form or _form_of(out)
    found = read_run(Path(run))
    summary = summarize(found)
    if otlp is not None:
        click.echo(f"sent to {metrics.send_otlp(otlp, found, summary)}", err=True)
        return 0
    target = Path(out) if out else None
    try:
        if form in FILES:
            target = target or Path(run) / FILES[form]
            write = {
                "parquet": exported.write_parquet,
                "xlsx": exported.write_xlsx,
                "otlp": metrics.write_otlp,
            }[form]
            write(target, found, summary)
            click.echo(f"written: {target}", err=True)
            return 0
        make = exported.to_csv if form == "csv" else exported.to_openmetrics
        text = make(found, summary)
        if target is None:
            click.echo(text, nl=False)
        else:
            target.write_text(text, encoding="utf-8")
            click.echo(f"written: {target}", err=True)
    except OSError as error:
        raise UsageError(f"--out {str(target)!r} cannot be written: {error.strerror}") from None
    return 0


def _form_of(out: str | None) -> str:
    """What `--out` is by its name, where `--to` is not given: nobody wants CSV in a `.parquet`."""
    if out is None:
        return "csv"
    try:
        return SUFFIXES[Path(out).suffix.lower()]
    except KeyError:
        raise UsageError(
            f"--out {out!r}: its name does not tell the format: end it in "
            f"{', '.join(SUFFIXES)}, or give --to {', '.join(FORMATS)}"
        ) from None

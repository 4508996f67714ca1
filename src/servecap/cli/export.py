"""`servecap export`: a stored run as a table, or as metrics."""

from __future__ import annotations

from pathlib import Path

import click

from servecap.errors import UsageError

FORMATS = ("csv", "parquet", "xlsx", "openmetrics")
FILES = {"parquet": "records.parquet", "xlsx": "run.xlsx"}  # written as files only


@click.command("export")
@click.argument("run", type=click.Path())
@click.option(
    "--to",
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="csv",
    show_default=True,
    help="Format.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    help="File to write.  [default: stdout; records.parquet or run.xlsx in the folder]",
)
def command(run: str, form: str, out: str | None) -> int:
    """Write a stored run as CSV, Parquet, Excel or OpenMetrics text.

    RUN is a folder made by run or import. CSV and Parquet have one row for each request;
    OpenMetrics has the figures of the whole run; Excel has both. Parquet needs `pip install
    servecap[parquet]`, Excel `pip install servecap[excel]`.

    \b
    Examples:
      servecap export run-folder > requests.csv
      servecap export run-folder --to parquet --out requests.parquet
      servecap export run-folder --to xlsx --out run.xlsx
      servecap export run-folder --to openmetrics --out /var/lib/node_exporter/servecap.prom
    """
    from servecap.report import columns
    from servecap.store import read_run
    from servecap.summarize import summarize

    found = read_run(Path(run))
    summary = summarize(found)
    target = Path(out) if out else None
    try:
        if form in FILES:
            target = target or Path(run) / FILES[form]
            write = columns.write_parquet if form == "parquet" else columns.write_xlsx
            write(target, found, summary)
            click.echo(f"written: {target}", err=True)
            return 0
        make = columns.to_csv if form == "csv" else columns.to_openmetrics
        text = make(found, summary)
        if target is None:
            click.echo(text, nl=False)
        else:
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out {str(target)!r} cannot be written: {error.strerror}") from None
    return 0

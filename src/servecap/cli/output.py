"""Where results go: folders, JSON on stdout, exit codes."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from servecap.errors import DiskError, UsageError
from servecap.metrics import Summary, Verdict
from servecap.run import Run, Status

lang_option = click.option(
    "--lang",
    type=click.Choice(["en", "zh"]),
    default="en",
    show_default=True,
    help="Language of the HTML page.",
)

_charts_option = click.option(
    "--charts",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Also write each chart here, as a file of its own.",
)
_format_option = click.option(
    "--format",
    "chart_format",
    type=click.Choice(["svg", "png"]),
    default="svg",
    show_default=True,
    help="Of the files of --charts.",
)


def charts_options(command: Callable[..., int]) -> Callable[..., int]:
    """Adds --charts and --format."""
    return _charts_option(_format_option(command))


HOME = Path("servecap-runs")
SUMMARY = "summary.json"


def folder(out: str | None, kind: str) -> Path:
    """The folder asked for, else a new one under servecap-runs/ named by kind and time."""
    if out is not None:
        return Path(out)
    stem = f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path, count = HOME / stem, 1
    while path.exists():
        count += 1
        path = HOME / f"{stem}-{count}"
    return path


def print_json(value: Any) -> None:
    """*value* on stdout as JSON; numbers that are not finite become null."""
    click.echo(json.dumps(_finite(msgspec.to_builtins(value)), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """A full disk, or one that is gone, is told in one line.

    Raises:
        DiskError: instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"cannot write the report to {str(out)!r} ({error.strerror}): the records are kept"
        ) from None


def write_page(target: str | Path, **told: Any) -> None:
    """The HTML page of what is told, as `report.html.write_html` takes it.

    Raises:
        UsageError: it cannot be written.
    """
    from servecap.report import html

    try:
        html.write_html(target, **told)
    except OSError as error:
        raise UsageError(f"--html {str(target)!r} cannot be written: {error.strerror}") from None


def write_charts(folder: str | None, form: str, lang: str, **told: Any) -> list[str]:
    """Write the charts of what is told, where a folder is given; a line for each, to be printed.

    Raises:
        UsageError: there is nothing to draw, or the folder cannot be written.
    """
    if folder is None:
        return []
    from servecap.report import chart_files

    try:
        made = chart_files.write_charts(
            folder, chart_files.report_charts(**told), form=form, lang=lang
        )
    except OSError as error:
        raise UsageError(f"--charts {folder!r} cannot be written: {error.strerror}") from None
    return [f"written: {chart.path}  {chart.title}" for chart in made]


def run_exit_code(run: Run, summary: Summary) -> int:
    """130 ended early; 4 INVALID; 1 the SLO fails; else 0 (also when UNSURE)."""
    if run.header.status is Status.INTERRUPTED:
        return 130
    if not summary.valid:
        return 4
    return 1 if summary.verdict is Verdict.FAIL else 0


def unused(path: Path) -> Path:
    """*path*, if nothing is there yet.

    Raises:
        UsageError: it exists, or cannot be looked at.
    """
    try:
        used = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise UsageError(f"--out {str(path)!r} cannot be read: {error.strerror}") from None
    if used:
        raise UsageError(f"--out {str(path)!r} exists already: name another folder")
    return path

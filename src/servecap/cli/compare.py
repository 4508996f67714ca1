"""`servecap compare`: which figures changed by more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import click
import msgspec

from servecap.cli import output
from servecap.cli.param import Finite
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.compare import Comparison
    from servecap.gate import Gate, GateCheck
    from servecap.metrics import Summary
    from servecap.report import html
    from servecap.run import Run
    from servecap.search import SearchResult
    from servecap.search.rate import RateResult

Compared = list[tuple["Comparison", list["GateCheck"]]]
Stored = Union[tuple["Run", "Summary"], "Searched"]


@click.command("compare")
@click.argument("before", type=click.Path())
@click.argument("after", nargs=-1, required=True, type=click.Path())
@click.option(
    "--metrics",
    default="",
    metavar="LIST",
    help="Only these figures, as in ttft.p95,qps: fewer rows have narrower intervals.",
)
@click.option(
    "--confidence",
    type=Finite(0.5, 0.9999),
    default=0.95,
    show_default=True,
    help="That all intervals of a comparison hold.",
)
@click.option(
    "--fail-on",
    multiple=True,
    metavar="TERM",
    help="Exit with 1 if this is shown: ttft.p95>5%, qps<-5% (again, or commas, for more).",
)
@click.option("--strict", is_flag=True, help="Exit with 1 also where a --fail-on is UNSURE.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for a pull request.")
@click.option("--junit", type=click.Path(dir_okay=False), help="Also write a JUnit file here.")
@click.option("--html", type=click.Path(dir_okay=False), help="Also write a page here.")
@output.charts_options
@output.lang_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
def command(before: str, after: tuple[str, ...], **given: Any) -> int:
    """Say what changed between runs (or searches) by more than noise.

    BEFORE and each AFTER are folders made by run, or folders made by find. A difference is called
    better or worse only where its interval leaves 0 out. The error rate is compared in percentage
    points.

    \b
    Examples:
      servecap compare old-run new-run
      servecap compare old-run new-run --fail-on "ttft.p95>5%" --metrics ttft.p95 --junit out.xml
      servecap compare old-find new-find --fail-on "users<-5%"
    """
    from servecap.compare import parse_metrics
    from servecap.gate import check_gate, parse_gates

    if given["markdown"] and given["as_json"]:
        raise UsageError("--markdown and --json both print on stdout: give one of them")
    metrics, gates = parse_metrics(given["metrics"]), parse_gates(given["fail_on"])
    first, others = load(before), [load(name) for name in after]
    compared: Compared = []
    for other in others:
        found = compared_with(
            first, other, metrics=metrics, gates=gates, confidence=given["confidence"]
        )
        compared.append((found, [check_gate(gate, found) for gate in gates]))
    if given["html"] or given["charts"]:
        _draw(_told(compared, first, others), given)
    _print(compared, given)
    return _exit_code(compared, given["strict"])


def _told(
    compared: Compared,
    first: Stored,
    others: list[Stored],
) -> list[html.Compared]:
    """What a page and charts are made of."""
    from servecap.report import html

    told = []
    for (found, gates), other in zip(compared, others, strict=True):
        pair = (first, other) if isinstance(first, tuple) and isinstance(other, tuple) else None
        told.append(html.Compared(found, gates, pair))
    return told


def _draw(told: list[html.Compared], given: dict[str, Any]) -> None:
    """Write the page and the charts; stdout is the comparison's."""
    page, lang = given["html"], given["lang"]
    if page:
        output.write_page(page, compared=told, title="servecap comparison", lang=lang)
    form = given["chart_format"]
    for line in output.write_charts(given["charts"], form, lang, compared=told):
        click.echo(line, err=True)


def _print(compared: Compared, given: dict[str, Any]) -> None:
    from servecap.report import compare_text

    if given["junit"]:
        try:
            Path(given["junit"]).write_bytes(compare_text.junit(compared))
        except OSError as error:
            raise UsageError(
                f"--junit {given['junit']!r} cannot be written: {error.strerror}"
            ) from None
    if given["as_json"]:
        output.print_json([{"comparison": found, "gates": gates} for found, gates in compared])
        return
    show = compare_text.comparison_text
    if given["markdown"]:
        show = compare_text.comparison_markdown
    click.echo("\n".join(show(found, gates) for found, gates in compared), nl=False)


def _exit_code(compared: Compared, strict: bool) -> int:
    """4: something compared is INVALID; 1: a gate is not met; else 0."""
    from servecap.metrics import Verdict

    if any(found.invalid for found, _ in compared):
        return 4
    bad = (Verdict.FAIL, Verdict.UNSURE) if strict else (Verdict.FAIL,)
    return 1 if any(check.verdict in bad for _, gates in compared for check in gates) else 0


class Searched(msgspec.Struct, frozen=True):
    """A stored search, and what it is called."""

    name: str
    result: SearchResult | RateResult


def load(name: str) -> Stored:
    """The run with its figures, or the search, stored in the folder *name*.

    Raises:
        UsageError: it holds neither.
    """
    from servecap.cli.find import SEARCH
    from servecap.cli.report import read_search
    from servecap.store import HEADER, read_run
    from servecap.summarize import summarize

    path = Path(name)
    if (path / SEARCH).is_file():
        return Searched(name, read_search(path / SEARCH))
    if not (path / HEADER).is_file():
        raise UsageError(f"{name!r} holds neither a run nor a search: give a folder of run or find")
    run = read_run(path)
    return run, summarize(run)


def compared_with(
    before: Stored,
    after: Stored,
    *,
    metrics: tuple[str, ...],
    gates: Sequence[Gate],
    confidence: float,
) -> Comparison:
    """What changed in these metrics and those of the gates; in the usual ones where there is none.

    Raises:
        UsageError: one is a run and the other a search.
    """
    from servecap.compare import compare_runs

    match before, after:
        case (Searched(), Searched()):
            return _capacities(before, after)
        case (tuple(), tuple()):
            wanted = tuple(dict.fromkeys([*metrics, *(gate.metric for gate in gates)]))
            return compare_runs(before, after, metrics=wanted, confidence=confidence)
    raise UsageError("a run and a search have no figure in common: compare two of the same kind")


def _capacities(before: Searched, after: Searched) -> Comparison:
    from servecap.compare import compare_capacities
    from servecap.differing import asked_differently

    ended = [f"{x.name} was ended by Ctrl-C" for x in (before, after) if x.result.interrupted]
    return compare_capacities(
        before.result.capacity,
        after.result.capacity,
        names=(before.name, after.name),
        differing=(*asked_differently(before.result.scenario, after.result.scenario), *ended),
    )

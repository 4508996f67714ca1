"""`servecap plan`: from a matrix to a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap import slo as slos
from servecap.cli import output, progress
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.plan.answer import Supply


@click.command("plan")
@click.argument("matrix", type=click.Path())
@click.option("--users", type=int, required=True, help="Users at the same time.")
@click.option("--slo", default=slos.DEFAULT_SLO_TEXT, show_default=True)
@click.option(
    "--gpus-per-node",
    multiple=True,
    metavar="[GPU=]N",
    help="GPUs in a node, for all or for one type.  [default: 8]",
)
@click.option(
    "--price",
    "prices",
    multiple=True,
    metavar="GPU=USD",
    help="USD per hour of one GPU; with /node of a node: a40=3.2/node.",
)
@click.option("--model", "models", multiple=True, help="Only this model (again for more).")
@click.option("--scenario", help="Only cells of it.  [default: the one with most cells]")
@click.option(
    "--think-mean",
    type=float,
    default=2.0,
    show_default=True,
    metavar="S",
    help="Mean think time behind a CSV's figures, for its checks.",
)
@click.option("--html", type=click.Path(dir_okay=False), help="Also write a page here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
def command(matrix: str, **given: Any) -> int:
    """From a matrix to a deployment: which GPU, how split, how many nodes.

    MATRIX is a folder filled by `servecap matrix`, or a CSV or JSON table of measured cells. Cells
    that break the SLO are left out and named; nodes are rounded up.

    \b
    Examples:
      servecap plan cells.csv --users 10000
      servecap plan cells.csv --users 10000 --gpus-per-node 8 --gpus-per-node a40=4
      servecap plan cells.csv --users 500 --price a100=2.1 --price a30=0.5
    """
    from servecap.matrix import files
    from servecap.plan.answer import Demand
    from servecap.plan.sizing import plan
    from servecap.report import html
    from servecap.report.plan_text import plan_text

    slo = slos.parse(given["slo"])
    table = files.read(Path(matrix), think_mean_s=given["think_mean"])
    for note in table.warnings:
        progress.say(f"note: {note}")
    answer = plan(
        table.cells,
        Demand(given["users"]),
        _supply(given["gpus_per_node"], given["prices"]),
        slo=slo,
        models=given["models"],
        scenario=given["scenario"],
    )
    if given["html"]:
        html.write_html(given["html"], cells=table.cells, plan=answer, title="Deployment plan")
    if given["as_json"]:
        output.print_json(answer)
    else:
        click.echo(plan_text(answer), nl=False)
        if given["html"]:
            click.echo(f"\nwritten: {given['html']}")
    return 0


def _supply(gpus_per_node: tuple[str, ...], prices: tuple[str, ...]) -> Supply:
    from servecap.plan.answer import Price, Supply

    default, special = 8, {}
    for text in gpus_per_node:
        gpu, equals, number = text.rpartition("=")
        try:
            count = int(number)
        except ValueError:
            raise UsageError(f"--gpus-per-node {text!r}: write a number, or GPU=N") from None
        if equals:
            special[gpu] = count
        else:
            default = count
    return Supply(
        gpus_per_node=default,
        gpus_per_node_of=special,
        prices=tuple(
            Price(gpu, usd, "node" if per_node else "gpu")
            for gpu, usd, per_node in map(_price, prices)
        ),
    )


def _price(text: str) -> tuple[str, float, bool]:
    gpu, equals, amount = text.partition("=")
    per_node = amount.endswith("/node")
    try:
        if not equals:
            raise ValueError
        return gpu, float(amount.removesuffix("/node")), per_node
    except ValueError:
        raise UsageError(
            f"--price {text!r}: write GPU=USD per GPU-hour, or GPU=USD/node per node-hour"
        ) from None

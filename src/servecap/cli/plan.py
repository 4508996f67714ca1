"""`servecap plan`: from a matrix to a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap import slo as slos
from servecap.cli import output, progress
from servecap.cli.grouped import Grouped
from servecap.cli.param import ENGINE, ParamType
from servecap.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servecap.cell import Cell
    from servecap.plan.answer import Demand, Plan, Price, Supply


class Share(ParamType[float]):
    """A share written as 20% or 0.2."""

    name = "SHARE"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value).strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no share: write 20% or 0.2", param, ctx)


@click.command(
    "plan",
    cls=Grouped,
    titles={
        "users": "Demand",
        "slo": "Limits and reserve",
        "supply_file": "Nodes and prices",
        "models": "Cells",
        "engine": "Output",
    },
)
@click.argument("matrix", type=click.Path())
@click.option(
    "--users",
    multiple=True,
    metavar="[MODEL=]N",
    help="Users at the same time; with MODEL= for several models that share one fleet.",
)
@click.option("--registered", type=int, metavar="N", help="Registered users (needs --activity).")
@click.option("--activity", type=Share(), help="Share of them that is active at the same time.")
@click.option(
    "--profile",
    type=click.Path(dir_okay=False),
    help="A day: CSV with a column users or requests_per_s, a row for each step.",
)
@click.option("--growth", type=Share(), default="0", help="Plan for so much more.")
@click.option(
    "--slo", default=slos.DEFAULT_SLO_TEXT, show_default=True, help="Cells that break it are out."
)
@click.option("--headroom", type=Share(), default="0", help="Users kept free on each instance.")
@click.option("--spare-nodes", type=int, default=0, metavar="N", help="Any N nodes may fail.")
@click.option(
    "--zones",
    default="1",
    metavar="Z|A:B:...",
    help="Any one of Z zones may fail; 2:1:1 where they hold unequal parts of the nodes.",
)
@click.option(
    "--supply",
    "supply_file",
    type=click.Path(dir_okay=False),
    help="YAML file of the node types that can be had, with prices.",
)
@click.option(
    "--gpus-per-node",
    multiple=True,
    metavar="[GPU=]N",
    help="GPUs in a node, for all or for one type.  [default: 8]",
)
@click.option("--nodes", multiple=True, metavar="GPU=N", help="Nodes of it that can be had.")
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
@click.option(
    "--verify",
    "engine",
    type=ENGINE,
    help="Simulate the choice as such an engine, at the peak and through the day.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="With --verify: simulate on the cores of the Ray cluster there (auto: this machine's).",
)
@click.option("--whole", is_flag=True, help="With --verify: simulate every instance, not enough.")
@click.option(
    "--emit",
    "form",
    type=click.Choice(["compose", "k8s", "vllm-args"]),
    help="Print what starts the first choice instead of the plan.",
)
@click.option("--html", type=click.Path(dir_okay=False), help="Also write a page here.")
@click.option(
    "--table",
    type=click.Path(dir_okay=False),
    help="Also write the plan as a workbook (.xlsx), or its choices as .parquet.",
)
@output.charts_options
@output.lang_option
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
      servecap plan cells.csv --users llama-13b=8000 --users llama-65b=500 --spare-nodes 1
      servecap plan cells.csv --registered 1000000 --activity 1% --supply nodes.yaml
    """
    from servecap.report import tables
    from servecap.report.plan_text import plan_text

    if given["table"]:
        tables.check_ending(given["table"], tables.PLAN_ENDINGS)
    answer, cells = planned(matrix, given)
    if given["table"]:
        tables.write_plan(Path(given["table"]), answer)
    if given["html"]:
        output.write_page(
            given["html"], cells=cells, plan=answer, title="Deployment plan", lang=given["lang"]
        )
    drawn = output.write_charts(
        given["charts"], given["chart_format"], given["lang"], cells=cells, plan=answer
    )
    if given["form"]:
        from servecap.plan.emit import emit

        click.echo(emit(answer, given["form"]), nl=False)
    elif given["as_json"]:
        output.print_json(answer)
    else:
        click.echo(plan_text(answer), nl=False)
        written = [given[key] for key in ("html", "table") if given[key]]
        if written:
            click.echo(f"\nwritten: {', '.join(written)}")
        if drawn:
            click.echo("\n".join(["", *drawn]))
    return 1 if any(check.verdict == "fail" for check in answer.checks) else 0


def planned(matrix: str, given: dict[str, Any]) -> tuple[Plan, tuple[Cell, ...]]:
    """The plan that the options ask for, and the cells it was made from."""
    from servecap.matrix import files
    from servecap.plan.outlook import with_outlook
    from servecap.plan.sizing import plan

    for name in ("whole", "ray"):
        if given[name] and not given["engine"]:
            raise UsageError(f"--{name} says how --verify simulates: give --verify, too")
    slo = slos.parse(given["slo"])
    demand = _demand(given)
    supply = _supply(given)
    table = files.read(Path(matrix), think_mean_s=given["think_mean"])
    for note in table.warnings:
        progress.say(f"note: {note}")
    models = given["models"]
    answer = plan(
        table.cells, demand, supply, slo=slo, models=models, scenario=given["scenario"]
    )  # fmt: skip
    if not given["form"]:
        answer = with_outlook(answer, table.cells, slo=slo, models=models)
    if given["engine"]:
        answer = _verified(answer, table.cells, given)
    return answer, table.cells


def _verified(answer: Plan, cells: Sequence[Cell], given: dict[str, Any]) -> Plan:
    from servecap.plan.demand import read_profile
    from servecap.plan.verify import verify

    profile = read_profile(Path(given["profile"])) if given["profile"] else None
    return verify(
        answer,
        cells,
        engine=given["engine"],
        profile=profile,
        ray=given["ray"],
        whole=given["whole"],
        watch=progress.say,
    )


def _demand(given: dict[str, Any]) -> Demand:
    from servecap.plan import demand

    ways = [name for name in ("users", "registered", "profile") if given[name]]
    if len(ways) != 1:
        told = " and ".join(f"--{way}" for way in ways) or "none of them"
        raise UsageError(f"give one of --users, --registered and --profile; there is {told}")
    if (given["activity"] is None) == (ways[0] == "registered"):
        raise UsageError("--registered and --activity belong together")
    growth = given["growth"]
    match ways[0]:
        case "registered":
            return demand.of_registered(given["registered"], given["activity"], growth=growth)
        case "profile":
            profile = demand.read_profile(Path(given["profile"]))
            return demand.of_profile(profile, growth=growth, think_mean_s=given["think_mean"])
    users = _by_name("--users", given["users"])
    if set(users) == {""}:
        return demand.of_users(users[""], growth=growth)
    if "" in users:
        raise UsageError("--users: give one number, or one for each model, not both")
    if given["models"]:
        raise UsageError("--users MODEL=N names the models already: leave --model out")
    return demand.of_models(users, growth=growth)


def _supply(given: dict[str, Any]) -> Supply:
    from servecap.plan.answer import Supply

    reserve = {
        "used_share_max": 1 - given["headroom"],
        "spare_nodes": given["spare_nodes"],
        **_zones(given["zones"]),
    }
    if given["supply_file"]:
        import msgspec

        from servecap.plan.supply import read_supply

        for name in ("gpus_per_node", "nodes", "prices"):
            if given[name]:
                option = "--price" if name == "prices" else f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} stands in the --supply file: give one of them")
        return msgspec.structs.replace(read_supply(Path(given["supply_file"])), **reserve)
    sizes = _by_name("--gpus-per-node", given["gpus_per_node"])
    default = sizes.pop("", 8)
    most = _by_name("--nodes", given["nodes"])
    if "" in most:
        raise UsageError("--nodes: name the GPU, for example a100=12")
    return Supply(
        gpus_per_node=default,
        gpus_per_node_of=sizes,
        nodes_max_of=most,
        prices=tuple(map(_price, given["prices"])),
        **reserve,
    )


def _zones(text: str) -> dict[str, Any]:
    """So many equal zones, or the parts that stand in each."""
    try:
        parts = tuple(int(part) for part in text.split(":"))
    except ValueError:
        raise UsageError(
            f"--zones {text!r}: write a number of zones, or their parts: 2:1:1"
        ) from None
    if len(parts) == 1:
        return {"zones": parts[0]}
    return {"zones": len(parts), "zone_weights": parts}


def _by_name(option: str, texts: tuple[str, ...]) -> dict[str, int]:
    """The numbers by name; the one without a name under ""."""
    found: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            count = int(number)
        except ValueError:
            raise UsageError(f"{option} {text!r}: write a number, or NAME=N") from None
        if name in found:
            raise UsageError(f"{option} {text!r}: given twice; keep one")
        found[name] = count
    return found


def _price(text: str) -> Price:
    from servecap.plan.answer import Price

    gpu, equals, amount = text.partition("=")
    per_node = amount.endswith("/node")
    try:
        if not equals:
            raise ValueError
        return Price(gpu, float(amount.removesuffix("/node")), "node" if per_node else "gpu")
    except ValueError:
        raise UsageError(
            f"--price {text!r}: write GPU=USD per GPU-hour, or GPU=USD/node per node-hour"
        ) from None

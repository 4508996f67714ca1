"""`servecap demo`: the whole way, from a load test to a plan, on the embedded emulator."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from servecap import guarded
from servecap.cli import find, output, progress
from servecap.errors import EndpointError

if TYPE_CHECKING:
    from servecap.cell import Cell
    from servecap.metrics import Summary
    from servecap.plan.answer import Plan
    from servecap.probe import Bench
    from servecap.run import Run
    from servecap.scenario import Scenario
    from servecap.search import SearchResult

MODEL, GPU, TP = "llama-13b", "a30", 2
SLO = "ttft.mean<500ms,tpot.mean<50ms"
USERS = 24
PLAN_USERS = 10_000
_STOP_S = 5.0  # for the emulator to go

MATRIX = """\
# The demo's matrix: no GPU is there to measure, so the engine model predicts every cell.
defaults: {slo: "ttft.mean<3s,tpot.mean<100ms"}
scenarios: {chat: {workload: chat-en}}
cells:
  - {model: llama-13b, gpu: [a30, a40, a100-40gb], tp: [2, 4], scenario: chat, predict: {}}
"""


@click.command("demo")
@click.option("--out", type=click.Path(file_okay=False), help="Folder for the results.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
@output.lang_option
def command(out: str | None, quiet: bool, lang: str) -> int:
    """The whole way on the embedded emulator, in under three minutes.

    Starts an emulated server, loads it, finds how many users it carries, fills a small matrix by
    prediction, plans for 10,000 users and writes one HTML report.
    """
    from servecap.report import html

    scenario = _scenario()
    folder = output.unused(output.folder(out, "demo"))
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_emulator())
        _step(1, f"An emulated server: {MODEL} on {TP} x {GPU.upper()} at {url}")
        bench = stack.enter_context(contextlib.closing(_bench(url, scenario)))
        _step(2, f"servecap run: {USERS} users who chat and think 1 to 3 s")
        run, summary = _run(bench, scenario, folder / "run", quiet)
        _step(3, f"servecap find: the most users for whom {scenario.slo} holds")
        result, _ = find.search_with(
            bench,
            scenario,
            folder / "find",
            start=32,
            max_users=1000,
            precision=0.25,
            budget_s=75.0,
            quiet=quiet,
            keep_partial=True,
        )
    if result.interrupted:
        raise KeyboardInterrupt
    _step(4, "servecap matrix: six cells, predicted by the engine model")
    cells = _matrix(folder, quiet)
    _step(5, f"servecap plan: {PLAN_USERS:,} users")
    plan = _plan(cells)
    page = folder / "report.html"
    html.write_html(
        page,
        runs=[(run, summary)],
        search=result,
        cells=cells,
        plan=plan,
        title="servecap demo",
        lang=lang,
    )
    click.echo(_last_screen(summary, result, cells, plan))
    click.echo(f"report: {page.resolve()}")
    return 0


def _scenario() -> Scenario:
    from servecap import slo as slos
    from servecap.scenario import ClosedLoop, Scenario, StopRule, WorkloadSpec

    return Scenario(
        load=ClosedLoop(users=USERS),
        # Short answers, so that a cycle of a user takes seconds and the demo minutes.
        workload=WorkloadSpec(source="chat-en", output="40"),
        slo=slos.parse(SLO),
        stop=StopRule(requests=60, max_duration_s=60.0),
    )


def _bench(url: str, scenario: Scenario) -> Bench:
    """The emulated server and the workload; its metrics are looked at, as a real one's are."""
    from servecap.probe import Around, TargetSpec, open_bench

    target = TargetSpec(url=url)
    return open_bench(target, scenario.workload, scenario.timeouts, around=Around())


def _step(number: int, text: str) -> None:
    progress.say(click.style(f"\n[{number}/5] {text}", bold=True))


@contextlib.contextmanager
def _emulator() -> Iterator[str]:
    """The URL of an emulator in a process of its own: it must not share the client's core."""
    words = [sys.executable, "-m", "servecap", "emulate", "--model", MODEL, "--gpu", GPU]
    words += ["--tp", str(TP), "--port", "0", "--max-running", "24"]
    emulator = guarded.start(words, output=subprocess.DEVNULL, errors=subprocess.PIPE)
    try:
        assert emulator.process.stderr is not None
        line = emulator.process.stderr.readline().decode()
        _, found, rest = line.partition(" at http")
        if not found:
            raise EndpointError(f"the emulator did not start: {line.strip() or 'it said nothing'}")
        yield "http" + rest.split()[0]
    finally:
        emulator.end(_STOP_S)
        if emulator.process.stderr is not None:
            emulator.process.stderr.close()


def _run(bench: Bench, scenario: Scenario, out: Path, quiet: bool) -> tuple[Run, Summary]:
    from servecap.run import Status
    from servecap.summarize import summarize

    display = progress.Display(scenario, quiet=quiet)
    try:
        run = bench.run(scenario, out, display)
    finally:
        display.close()
    if run.header.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return run, summarize(run)


def _matrix(folder: Path, quiet: bool) -> list[Cell]:
    from servecap.cli.matrix import fill_spec
    from servecap.matrix import spec as specs

    path = folder / "matrix.yaml"
    path.write_text(MATRIX, encoding="utf-8")
    return fill_spec(specs.load(path), folder / "matrix", quiet=quiet)


def _plan(cells: list[Cell]) -> Plan:
    from servecap.plan.answer import Demand, Supply
    from servecap.plan.sizing import plan

    return plan(cells, Demand(PLAN_USERS), Supply(gpus_per_node=8))


def _last_screen(summary: Summary, result: SearchResult, cells: list[Cell], plan: Plan) -> str:
    """What was seen, in the order in which it was seen, with every number explained."""
    from servecap.report.plan_text import headline
    from servecap.report.search_text import headline as found
    from servecap.report.table import paragraph

    best = plan.models[0].gpus[0].best
    parts = [
        ("", "What you have just seen. The server was an emulator, so each figure below is the "
             "engine model's, met by a real client over real sockets. Against your own server the "
             "same commands measure."),
        ("run", _run_words(summary)),
        ("find", " ".join([found(result), *_find_words(result)])),
        ("matrix", "Users that each instance carries with mean TTFT < 3 s and mean TPOT < 100 ms, "
                   "predicted: " + ", ".join(map(_cell_words, cells)) + "."),
        ("plan", f"{headline(plan.models[0])}. {PLAN_USERS:,} users / {best.users_per_node:,} a "
                 f"node, rounded up, is {best.nodes:,} nodes. The report tells why, and what comes "
                 "second."),
    ]  # fmt: skip
    lines: list[str] = []
    for name, text in parts:
        first, *rest = paragraph(text, indent=" " * 8 if name else "")
        lines += ["", name.ljust(8) + first[8:] if name else first, *rest]
    return "\n".join(lines) + "\n"


def _find_words(result: SearchResult) -> Iterator[str]:
    """What the numbers of the answer stand for, and why it is as open as it is."""
    capacity = result.capacity
    if capacity.users and capacity.users_high is not None:
        yield (
            f"Between the two lies, with {capacity.confidence or 0.95:.0%} confidence, the most "
            "users that are served within the SLO; the first can be promised."
        )
    elif capacity.users_high != 0:
        yield "The search ended before it knew more:"
        yield result.stop_reason + "."


def _run_words(summary: Summary) -> str:
    from servecap.report import units

    ttft, tpot = summary.client["ttft"], summary.client["tpot"]
    return (
        f"{summary.users} users: {summary.requests} requests ended in the measured window. On "
        f"average the first token came after {units.seconds(ttft.mean)} (TTFT) and every later "
        f"one after {units.seconds(tpot.mean)} (TPOT). {units.count(summary.qps)} requests/s "
        f"(QPS), {units.count(summary.output_tps)} output tokens/s (TPS), "
        f"{units.share(summary.error_rate)} errors. On average "
        f"{units.count(summary.in_flight_mean)} requests were in flight; the other users thought."
    )


def _cell_words(cell: Cell) -> str:
    users = None if cell.capacity is None else cell.capacity.users
    return f"{cell.gpu} TP{cell.tp} {'n/a' if users is None else users}"

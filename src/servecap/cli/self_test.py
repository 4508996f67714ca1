"""`servecap self-test`: what this machine's client can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from servecap.cli import output, progress
from servecap.cli.options import Workers

if TYPE_CHECKING:
    from servecap.selftest import SelfTest


@click.command("self-test")
@click.option(
    "--workers",
    type=Workers(),
    default="1",
    show_default=True,
    help="Also measure so many processes at once (auto: one per core but one).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def command(workers: int | None, as_json: bool, quiet: bool) -> int:
    """Measure this machine's client against a server that only keeps time.

    It takes some ten seconds on an otherwise quiet machine. The result is kept for this user, and
    runs then say how near to the client's ceiling they were. For runs with several processes,
    measure as many here: they share caches and memory, so that two take less than twice as much.
    """
    from servecap import selftest

    progress.say("measuring the client against a null server on this machine", quiet=quiet)
    found = selftest.run(workers)
    selftest.keep(found)
    if as_json:
        output.print_json(found)
    else:
        click.echo(_text(found))
    return 0


def _text(found: SelfTest) -> str:
    lines = [
        f"{'asked/s':>9} {'sent/s':>9} {'streams':>8} {'client CPU':>11}"
        f" {'delay p50':>10} {'delay p99':>10}"
    ]
    for level in found.levels:
        note = "" if level.kept_up else "  the server was the limit"
        lines.append(
            f"{level.asked_per_s:>9,.0f} {level.events_per_s:>9,.0f} {level.streams:>8}"
            f" {level.cpu_share:>11.0%} {level.delay_p50_s * 1e3:>7.3f} ms"
            f" {level.delay_p99_s * 1e3:>7.3f} ms{note}"
        )
    lines.append(
        f"one process can take about {found.events_per_core_s:,.0f} token events/s, "
        f"and {found.requests_per_s:,.0f} one-token requests/s"
    )
    both = found.together
    if both is not None:
        lines.append(
            f"{both.workers} processes at once: about {both.events_per_s:,.0f} token events/s, "
            f"delay p99 {both.delay_p99_s * 1e3:.3f} ms,\n  and {both.requests_per_s:,.0f} "
            "one-token requests/s"
        )
    if found.shared_cores:
        lines.append("clients and servers shared cores: with more of them they can do more")
    return "\n".join(lines)

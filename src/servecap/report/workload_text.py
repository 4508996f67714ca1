"""What `servecap workload describe` prints of a data set or a trace."""

from __future__ import annotations

from servecap.record import TokenSource
from servecap.report import units
from servecap.report.table import Column, Table, lines, text_column
from servecap.stats import Distribution
from servecap.workload.census import Arrivals, Census
from servecap.workload.sample import dropped_text

STATISTICS = ("mean", "p50", "p90", "p99", "max")


def census_text(census: Census) -> str:
    """Lengths, arrivals, prefixes and sessions as plain text, ending in a newline."""
    parts = [lines(facts_table(census)), lines(lengths_table(census))]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def facts_table(census: Census) -> Table:
    """Everything but the lengths."""
    rows = [
        (
            "records",
            f"{census.records:,}, {census.used:,} of them usable"
            f" (left out: {dropped_text(census.dropped)})",
        ),
        *_arrival_rows(census.arrivals),
        (
            "shared prefixes",
            f"{units.share(census.shared_prefix_share)} of all input tokens begin another request"
            " too",
        ),
        ("sessions", _sessions(census)),
    ]
    title = units.clean(f"{census.name} ({census.format})")
    return Table(title=title, columns=(text_column(""), text_column("")), rows=tuple(rows))


def _arrival_rows(told: Arrivals | None) -> list[tuple[str, str]]:
    if told is None:
        return [("arrivals", "n/a (a data set has no times)")]
    rate = "n/a (all at once)" if told.rate_rps is None else f"{told.rate_rps:.4g} requests/s"
    rows = [("arrivals", f"{rate} on average, over {units.clock(told.span_s)}")]
    if told.cv is not None:
        rows.append(("burstiness", f"cv of the gaps {told.cv:.3g} (Poisson: 1)"))
    if told.dispersion is not None:
        rows[-1] = ("burstiness", f"{rows[-1][1]}; dispersion per minute {told.dispersion:.3g}")
    if told.rate_rps is not None and told.cv is not None:
        rows.append(("as a load", f"--rate {told.rate_rps:.4g} --burstiness {told.cv:.3g}"))
    return rows


def _sessions(census: Census) -> str:
    if census.turns is None:
        return "none with several turns"
    return (
        f"{census.sessions:,} with several turns: {census.turns.mean:.1f} on average,"
        f" at most {census.turns.max:.0f}"
    )


def lengths_table(census: Census) -> Table:
    """Input and output lengths in tokens."""
    rows = (_row("input", census.in_tokens), _row("output", census.out_tokens))
    notes = {
        None: "Token counts are those of the trace.",
        TokenSource.ESTIMATE: "Token counts are estimates; give --tokenizer FILE.",
    }
    note = notes.get(census.token_source, "Counted with the tokenizer given.")
    return Table(
        title="Tokens per request",
        columns=(text_column(""), *(Column(name) for name in STATISTICS)),
        rows=rows,
        notes=(note,),
    )


def _row(name: str, told: Distribution | None) -> tuple[str, ...]:
    if told is None:
        return (name, *(units.UNKNOWN for _ in STATISTICS))
    values = [told.statistic(statistic) for statistic in STATISTICS]
    return (name, units.count(values[0], 1), *(units.count(value, 0) for value in values[1:]))

"""What `servecap find --rate` prints at the end: the answer first, then every level."""

from __future__ import annotations

from servecap.report import units
from servecap.report.table import Column, Table, text_column
from servecap.search.rate import SATURATION, RateLevel, RateResult, broken_by


def rate(rate_rps: float) -> str:
    """A rate in figures.

    >>> rate(19.0512)
    '19.05'
    """
    return f"{rate_rps:,.4g}"


def headline(result: RateResult) -> str:
    """The capacity in one sentence that can be quoted."""
    capacity, slo = result.capacity, result.scenario.slo
    high = capacity.rate_high_rps
    if capacity.rate_rps == 0 and high is not None:
        return (
            f"requests/s: not known, below {rate(high)}. No rate was shown to be carried under "
            f"{slo}."
        )
    if capacity.rate_rps == 0:
        return f"requests/s: not known. No rate was shown to be carried under {slo}."
    if high is None:
        return (
            f"requests/s: at least {rate(capacity.rate_rps)}, at which {slo} held; the limit was "
            "not found."
        )
    return (
        f"requests/s: {rate(capacity.rate_rps)} (the limit lies within {rate(capacity.rate_rps)} "
        f"and {rate(high)}), under {slo}."
    )


def plain(result: RateResult) -> str:
    """The capacity in words for everybody."""
    capacity = result.capacity
    said = rate(capacity.rate_rps)
    if capacity.rate_rps == 0:
        return "How many requests a second the service carries within its targets is not known yet."
    if capacity.rate_high_rps is None:
        return (
            f"The service carries at least {said} requests a second within its targets; its limit "
            "was not found."
        )
    return f"The service carries {said} requests a second within its targets."


def meaning(result: RateResult) -> str:
    """What limits, what is promised and why the search ended."""
    capacity, estimate, parts = result.capacity, result.estimate, list[str]()
    if estimate is not None and estimate.best > 0 and capacity.rate_high_rps is not None:
        parts.append(
            f"The best single estimate is {rate(estimate.best)} requests/s; the interval holds "
            f"the capacity with {estimate.confidence:.0%} confidence, and its lower end is "
            "what can be promised."
        )
    if capacity.rate_high_rps is not None:
        parts += _limit(result)
    if result.unsure is not None:
        parts.append(f"{result.unsure[0].upper()}{result.unsure[1:]}.")
    parts.append(f"The search ended because {result.stop_reason}.")
    return " ".join(parts)


def _limit(result: RateResult) -> list[str]:
    """What more requests would meet: slowness, or a queue without end."""
    capacity, found = result.capacity, list[str]()
    if capacity.limited_by == SATURATION:
        found.append("What limits is over-saturation: with more requests the queue never ends.")
    elif capacity.limited_by is not None:
        found.append(f"With more requests {capacity.limited_by} breaks first.")
    grown = broken_by(result.levels)
    if grown is not None and capacity.answered_rps is not None:
        error = capacity.answered_error or 0.0
        found.append(
            f"The queue grows without bound at {rate(grown.rate_rps)} requests/s: the server "
            f"answers {rate(capacity.answered_rps)}/s (±{1.96 * error:.1%})."
        )
    elif capacity.limited_by != SATURATION:
        found.append("That is slowness: at no rate tried the queue was seen to grow without bound.")
    return found


def level_table(result: RateResult) -> Table:
    """Every level in the order in which it was tried."""
    columns = (
        Column("requests/s"),
        text_column("verdict"),
        text_column("queue"),
        Column("answered/s"),
        Column("TTFT mean"),
        Column("TPOT mean"),
        Column("errors"),
        Column("requests"),
        text_column("why it was tried"),
    )
    return Table(
        "Levels, in the order in which they were tried", columns, tuple(map(_row, result.levels))
    )


_STATES = {"settled": "settles", "growing": "grows", "unclear": "unclear"}


def _row(level: RateLevel) -> tuple[str, ...]:
    s = level.summary
    return (
        rate(level.rate_rps),
        level.verdict.upper() if level.valid else "INVALID",
        units.UNKNOWN if s.flow is None else _STATES[s.flow.state],
        units.UNKNOWN if s.flow is None else units.count(s.flow.answered_rps),
        *(
            units.seconds(found.mean if (found := s.client.get(m)) is not None else None)
            for m in ("ttft", "tpot")
        ),
        units.share(s.error_rate),
        f"{s.requests:,}",
        why(level, of_queue=False),
    )


def why(level: RateLevel, *, of_queue: bool = True) -> str:
    """Why the level was tried, and what is to be known of its figures."""
    if not level.valid:
        reasons = (reason.partition(". ")[0] for reason in level.summary.invalid_reasons)
        return f"{level.why}; {'; '.join(reasons)}"
    flow = level.summary.flow
    if of_queue and flow is not None and flow.state == "growing":
        return f"{level.why}; the queue grows without bound"
    return f"{level.why}; too short to promise it" if level.short else level.why

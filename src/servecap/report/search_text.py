"""What `servecap find` prints at the end: the answer first, then every level that led to it."""

from __future__ import annotations

from servecap.metrics import Summary, Verdict
from servecap.report import rate_text, units
from servecap.report.table import Column, Table, lines, paragraph, text_column
from servecap.search import Level, SearchResult
from servecap.search.rate import RateResult


def search_text(result: SearchResult | RateResult) -> str:
    """The whole result of a search as plain text, at most 100 columns, ending in a newline."""
    if isinstance(result, RateResult):
        said = rate_text.headline(result), rate_text.meaning(result)
        levels = rate_text.level_table(result)
    else:
        said, levels = (headline(result), meaning(result)), level_table(result)
    out = [line for text in said for line in (*paragraph(text), "")]
    out += lines(levels)
    return "\n".join(out) + "\n"


def headline(result: SearchResult) -> str:
    """The capacity in one sentence that can be quoted."""
    capacity = result.capacity
    if capacity.users_high == 0:
        return f"concurrency_users: 0. Not even one user is served within {result.scenario.slo}."
    if capacity.users == 0:
        high = "any number" if capacity.users_high is None else f"{capacity.users_high:,}"
        return f"concurrency_users: not known, up to {high}. {_why_unknown(result)}"
    if capacity.users_high is None:
        return (
            f"concurrency_users: at least {capacity.users:,}, for whom {result.scenario.slo} held; "
            "the limit was not found."
        )
    return (
        f"concurrency_users: {capacity.users:,} (the limit lies within {capacity.users:,} and "
        f"{capacity.users_high:,}), under {result.scenario.slo}."
    )


def _why_unknown(result: SearchResult) -> str:
    """Why no number can be named, though a level may have kept the limits by itself."""
    passed = [x.users for x in result.levels if x.valid and x.verdict is Verdict.PASS]
    if not passed:
        return f"No level was shown to keep {result.scenario.slo}."
    return (
        f"{max(passed):,} users kept {result.scenario.slo} by themselves, but all levels together "
        "do not bear it out surely enough to promise it."
    )


def meaning(result: SearchResult) -> str:
    """What limits, what is promised and why the search ended."""
    capacity = result.capacity
    parts = []
    known = result.estimate is not None and result.estimate.best >= 1
    if result.estimate is not None and known and capacity.users_high is not None:
        parts.append(
            f"The best single estimate is {result.estimate.best:,.0f} users; the interval holds "
            f"the capacity with {result.estimate.confidence:.0%} confidence, and its lower end is "
            "what can be promised."
        )
    held = result.at_capacity
    named = held is not None and 0 < held.users == capacity.users
    if held is not None and named and held.verdict is Verdict.UNSURE:
        alone = f"The level of {held.users:,} users is UNSURE by itself"
        parts.append(f"{alone}; all levels together bear it out.")
    if capacity.limited_by is not None and capacity.users_high is not None:
        parts.append(f"With more users {capacity.limited_by} breaks first.")
    if result.unsure is not None:
        parts.append(f"{result.unsure[0].upper()}{result.unsure[1:]}.")
    parts.append(f"The search ended because {result.stop_reason}.")
    return " ".join(parts)


def level_table(result: SearchResult) -> Table:
    """Every level in the order in which it was tried."""
    columns = (
        Column("users"),
        text_column("verdict"),
        Column("TTFT mean"),
        Column("TPOT mean"),
        Column("QPS"),
        Column("TPS"),
        Column("errors"),
        Column("requests"),
        text_column("why it was tried"),
    )
    return Table(
        "Levels, in the order in which they were tried", columns, tuple(map(_row, result.levels))
    )


def _row(level: Level) -> tuple[str, ...]:
    s = level.summary
    why = level.why if level.valid else f"{level.why}; {invalid(level)}"
    return (
        f"{level.users:,}",
        level.verdict.upper() if level.valid else "INVALID",
        _mean(s, "ttft"),
        _mean(s, "tpot"),
        units.count(s.qps),
        units.count(s.output_tps),
        units.share(s.error_rate),
        f"{s.requests:,}",
        why,
    )


def invalid(level: Level) -> str:
    """Why the level is INVALID, without the advice: that would be said once for each level."""
    return "; ".join(reason.partition(". ")[0] for reason in level.summary.invalid_reasons)


def _mean(summary: Summary, metric: str) -> str:
    found = summary.client.get(metric) or summary.server.get(metric)
    return units.seconds(None if found is None else found.mean)

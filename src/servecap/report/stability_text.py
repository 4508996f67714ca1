"""How a run's figures moved over its time, as a table."""

from __future__ import annotations

from servecap.metrics import Drift, Summary
from servecap.report import units
from servecap.report.table import Table, text_column
from servecap.run import STALL_S

_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "tps": "TPS", "server_rss": "the server's memory"}


def stability_table(summary: Summary) -> Table | None:
    """Drift, stalls and bursts of errors; None where there were too few requests to tell."""
    course = summary.stability
    if course is None:
        return None
    rows = [(f"drift of {_NAMES[name]}", _drift(d)) for name, d in course.drifts.items()]
    longest = "" if course.gap_max_s is None else f", longest gap {units.seconds(course.gap_max_s)}"
    rows.append(
        (
            "stalls",
            f"{course.stalled:,} answers stood still for over {units.bound(STALL_S)}{longest}",
        )
    )
    rows.append(("errors", f"{course.failed:,} of {course.requests:,} requests failed"))
    rows.append(("bursts of errors", f"{len(course.bursts)}" if course.bursts else "none"))
    return Table(
        title=f"Stability ({course.start_s:,.0f} to {course.end_s:,.0f} s,"
        f" {len(course.slices)} parts)",
        columns=(text_column(""), text_column("")),
        rows=tuple(rows),
        notes=("Drift: change of the mean from the first part to the last, by a straight line.",),
    )


def _drift(found: Drift) -> str:
    said = "significant" if found.significant else "not significant"
    low, high = found.low_share, found.high_share
    return f"{found.change_share:+.1%} (95%: {low:+.1%} to {high:+.1%}): {said}"

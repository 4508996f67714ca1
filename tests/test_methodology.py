"""The numbers in docs/methodology.md and docs/design.md are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from servecap import audit, scenario, slo, stats, steady, verdict
from test_architecture import FLOORS

DOCS = Path(__file__).resolve().parents[1] / "docs"
METHODOLOGY = (DOCS / "methodology.md").read_text(encoding="utf-8")
DESIGN = (DOCS / "design.md").read_text(encoding="utf-8")


def cells(text: str, first: str) -> list[str]:
    """The other cells of the table row that begins with *first*."""
    row = re.search(rf"^\| {re.escape(first)} \|(.*)\|$", text, re.M)
    assert row is not None, f"no table row begins with {first!r}"
    return [cell.strip() for cell in row[1].split("|")]


@pytest.mark.parametrize("percentile", ["p90", "p95", "p99"])
def test_table_of_requests_needed(percentile: str) -> None:
    one_sided = (1 + verdict.CONFIDENCE) / 2
    quantile = int(percentile[1:]) / 100
    for over, written in zip(
        cells(METHODOLOGY, "over the limit"), cells(METHODOLOGY, percentile), strict=True
    ):
        needed = stats.requests_needed(int(over), quantile=quantile, confidence=one_sided)
        assert int(written) == needed, f"{percentile} with {over} over the limit"


@pytest.mark.parametrize(
    ("row", "bound"),
    [
        ("The client was late: lag", f"p99 > {audit.LAG_P99_MAX_S * 1e3:g} ms"),
        (
            "The client was busy: delay of its event loop",
            f"p99 > {audit.LOOP_DELAY_P99_MAX_S * 1e3:g} ms",
        ),
        ("The client was busy: CPU", f"> {audit.CPU_SHARE_MAX:.0%} of one core"),
        ("Not stationary", f"drift by > {steady.DRIFT_SHARE:.0%} and"),
        (
            "Little's law broken: `qps x (E2E + think)` is not the number of users",
            f"more than {steady.LITTLE_SHARE:.0%},",
        ),
        (
            "The server's prefix cache answered although all prompts differ",
            f"> {audit.CACHED_SHARE_MAX:.0%} of",
        ),
        ("Answers shorter than asked, with exact lengths", f"< {audit.OUTPUT_SHORT_SHARE:.0%} of"),
    ],
)
def test_bounds_of_validity(row: str, bound: str) -> None:
    assert bound in cells(METHODOLOGY, row)[0]


def test_defaults_in_the_text() -> None:
    stop = scenario.StopRule()
    load = scenario.ClosedLoop(users=1)
    text = " ".join(METHODOLOGY.split())
    assert f"at least {stop.requests} requests (`--requests`)" in text
    assert f"at most {stop.max_duration_s:g} s" in text
    assert f"between {load.think_s[0]:g} and {load.think_s[1]:g} s unless given" in text
    assert f"error limit of the SLO ({slo.DEFAULT_ERROR_SHARE_MAX:.0%} unless given)" in text
    assert f"interval with {verdict.CONFIDENCE:.0%} confidence" in text
    assert f"9 degrees of freedom, {steady.DRIFT_CONFIDENCE:.1%}" in text
    assert f"when the first {steady.HOPELESS} requests have all failed" in text
    assert f"With {scenario.OpenLoop(rate_rps=1).max_in_flight:,} in flight" in text
    assert f"more than {steady.WARM_UP_SHARE:.0%} of what followed the ramp" in text
    assert f"more than {steady.DRIFT_OF_LIMIT:.0%} of their limit" in text
    assert steady.CYCLES == 2, "the text says two mean cycles"


def test_table_of_floors() -> None:
    for floor, modules in enumerate(FLOORS):
        named = set(re.findall(r"`([a-z_.]+)`", cells(DESIGN, str(floor))[0]))
        assert named == modules - {""}, f"floor {floor}"

"""What is said of a search for a rate: users never stand for requests/s, and no more is claimed."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import msgspec
import pytest
from queues import Live, Queue
from test_language import hold

from servecap import slo
from servecap.cell import Capacity, RateCapacity
from servecap.cli.find_rate import level_line
from servecap.cli.report import read_search
from servecap.compare import compare_capacities
from servecap.errors import UsageError
from servecap.report.overview import rate_headline
from servecap.report.search_text import search_text
from servecap.scenario import OpenLoop, Scenario, StopRule
from servecap.search.rate import SATURATION, RateResult, find_rate

CONTRADICTED = (
    "UNSURE: the levels contradict each other: what the server answers when it always has work "
    "differs by more than chance, so it changes with time or with the load"
)
SLOWLY = (
    "UNSURE: the interval is 9% wide instead of 5%; about 1,200 more requests near the edge would "
    "narrow it; so near to what the server answers (19.9/s) a queue moves slowly: a level at 97% "
    "of that must run 2,546 s, and here none may take longer than 900 s (--max-duration, --budget)"
)
STOPS = (
    "no level that there is time for would narrow it further; 30 requests/s cannot be measured: "
    "client_limited: requests were sent 52 ms late (p99, bound 20 ms). Give the client more "
    "processes (--workers, now 1), more CPU or a machine of its own, or a lower rate",
    "the levels contradict each other",
    "ended by Ctrl-C while 12.5 requests/s were tried",
)


@functools.cache
def made() -> RateResult:
    """A search on a queue, with levels whose queue settles and one whose queue grows."""
    asked = Scenario(
        load=OpenLoop(rate_rps=1), slo=slo.parse("ttft.mean<1s"), stop=StopRule(requests=60)
    )
    return find_rate(Live(Queue(12, 0.6, 1.0), 0), asked, start=60.0, budget_s=300)


def said(rate: float, high: float | None, limit: str | None = "ttft.mean<1s") -> RateResult:
    capacity = RateCapacity(
        rate_rps=rate, rate_high_rps=high, confidence=0.95, limited_by=limit, answered_rps=19.9,
        answered_error=0.01,
    )  # fmt: skip
    return msgspec.structs.replace(made(), capacity=capacity)


@pytest.mark.parametrize(
    ("rate", "high", "text", "plain"),
    [
        (0.0, 1.5, "not known, below 1.5", "not known yet"),
        (0.0, None, "not known", "not known yet"),
        (40.0, None, "at least 40", "at least 40 requests a second"),
        (18.525, 20.04, "the limit lies within 18.52 and 20.04", "carries 18.52 requests a second"),
    ],
)
def test_headlines_claim_what_was_shown(
    rate: float, high: float | None, text: str, plain: str
) -> None:
    result = said(rate, high)
    assert text in " ".join(search_text(result).split())
    assert plain in rate_headline(result).plain
    assert "users" not in search_text(result)


def test_over_saturation_is_told_from_slowness_in_words() -> None:
    told = " ".join(search_text(said(18.5, 20.1, SATURATION)).split())
    assert "What limits is over-saturation" in told
    grown = min(x.rate_rps for x in made().levels if x.summary.flow.state == "growing")  # type: ignore[union-attr]
    assert f"The queue grows without bound at {grown:.4g} requests/s: the server answers" in told
    assert "19.9/s (±2.0%)" in told
    slow = msgspec.structs.replace(said(18.5, 20.1), levels=())
    assert "That is slowness" in " ".join(search_text(slow).split())


def test_a_level_says_how_its_queue_went() -> None:
    lines = [level_line(x) for x in made().levels]
    assert any("the queue grows without bound" in line for line in lines)
    assert all("requests/s" in line and "users" not in line for line in lines)


def test_every_text_is_there_in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        said(0.0, 1.5), said(0.0, None), said(40.0, None), said(18.5, 20.1, SATURATION), made(),
        *(msgspec.structs.replace(said(18.5, 20.1), stop_reason=x) for x in STOPS),
        *(msgspec.structs.replace(said(18.5, 20.1), unsure=x) for x in (CONTRADICTED, SLOWLY)),
    ]  # fmt: skip
    for number, result in enumerate(given):
        hold({"search": result}, monkeypatch, drawn=number == 0)


def test_a_stored_search_is_read_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    path.write_bytes(msgspec.json.encode(made()))
    again = read_search(path)
    assert isinstance(again, RateResult)
    assert again.capacity == made().capacity
    assert "users" not in json.loads(path.read_text())["capacity"]


def test_two_rates_compare_and_a_rate_is_not_compared_with_users() -> None:
    before, after = said(10.0, 11.0).capacity, said(14.0, 15.0).capacity
    (row,) = compare_capacities(before, after).changes
    assert (row.metric, row.outcome) == ("rate_rps", "better")
    (same,) = compare_capacities(before, before).changes
    assert same.outcome == "no difference shown"
    with pytest.raises(UsageError, match="one kind"):
        compare_capacities(before, Capacity(users=3, users_high=4))

"""The sentence that is quoted says no more than the search has shown."""

from __future__ import annotations

import pytest

from servecap.cell import Capacity
from servecap.report.overview import search_headline
from servecap.report.search_text import search_text
from servecap.scenario import ClosedLoop, Scenario
from servecap.search import SearchResult


def found(users: int, high: int | None) -> SearchResult:
    return SearchResult(
        capacity=Capacity(users=users, users_high=high, confidence=0.95),
        levels=(),
        scenario=Scenario(load=ClosedLoop(users=8)),
        stop_reason="ended by Ctrl-C",
    )


@pytest.mark.parametrize(
    ("users", "high", "said", "plain"),
    [
        (0, 0, "Not even one user", "not serve even one user"),
        (0, 1, "not known, up to 1", "not known yet"),
        (0, None, "not known, up to any number", "not known yet"),
        (40, None, "at least 40", "at least 40 users"),
        (40, 44, "within 40 and 44", "carries 40 users"),
    ],
)
def test_headline_claims_what_was_shown(
    users: int, high: int | None, said: str, plain: str
) -> None:
    result = found(users, high)
    assert said in search_text(result)
    assert plain in search_headline(result).plain

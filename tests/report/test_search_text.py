"""The sentence that is quoted says no more than the search has shown."""

from __future__ import annotations

import msgspec
import pytest
import synthetic

from servecap.cell import Capacity
from servecap.cli.find import level_line
from servecap.metrics import Verdict
from servecap.report import canvas
from servecap.report.chart_capacity import search_chart
from servecap.report.language import say
from servecap.report.overview import search_headline
from servecap.report.search_text import headline, search_text
from servecap.scenario import ClosedLoop, Scenario
from servecap.search import Level, SearchResult
from servecap.summarize import summarize


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


def test_advice_is_said_once_and_not_for_each_level_that_could_not_be_measured() -> None:
    reason = "client_limited: requests were sent 69 ms late. Give the client more processes"
    summary = msgspec.structs.replace(summarize(synthetic.run()), invalid_reasons=(reason,))
    level = Level(users=9, verdict=Verdict.PASS, valid=False, summary=summary, why="why")
    stop = f"all held but what cannot be measured; 9 users cannot be measured: {reason}"
    result = msgspec.structs.replace(
        found(4, None), levels=(level,) * 4, stop_reason=stop, unsure="no upper end was found"
    )
    said = " ".join(search_text(result).split())
    assert said.count("Give the client more processes") == 1
    assert said.count("INVALID") == 4
    assert "No upper end was found. The search ended because all held" in said
    assert "69 ms late" in level_line(level)
    assert "Give the client" not in level_line(level)


@pytest.mark.parametrize(
    ("users", "high", "badge"),
    [
        (0, 53, "UNSURE"),
        (0, None, "UNSURE"),
        (0, 0, "CAPACITY 0"),
        (4, 5, "CAPACITY 4"),
        (4, None, "CAPACITY AT LEAST 4"),
    ],
)
def test_what_is_not_known_is_not_shown_as_none(users: int, high: int | None, badge: str) -> None:
    head = search_headline(found(users, high))
    assert head.badge == badge
    assert (head.tone == "unsure") == (badge == "UNSURE")


def test_a_level_that_passed_alone_is_told_where_all_together_promise_nothing() -> None:
    summary = summarize(synthetic.run())
    level = Level(users=32, verdict=Verdict.PASS, valid=True, summary=summary, why="why")
    result = msgspec.structs.replace(found(0, 53), levels=(level,))
    assert "not known, up to 53. 32 users kept" in headline(result)
    assert "No level was shown" not in headline(result)
    assert "未知，最多 53。32 个用户" in say(headline(result), "zh")
    alone = msgspec.structs.replace(level, valid=False)
    said = headline(msgspec.structs.replace(result, levels=(alone,)))
    assert "No level was shown" in said


@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.UNSURE])
def test_a_level_that_is_named_though_unsure_alone_is_explained(verdict: Verdict) -> None:
    level = Level(
        users=4, verdict=verdict, valid=True, summary=summarize(synthetic.run()), why="why"
    )
    result = msgspec.structs.replace(found(4, None), levels=(level,))
    alone = "The level of 4 users is UNSURE by itself; all levels together bear it out."
    assert (alone in " ".join(search_text(result).split())) == (verdict is Verdict.UNSURE)
    assert say(alone, "zh") == "单看 4 个用户这一级负载尚属未定；各级负载合起来足以证明。"


@pytest.mark.parametrize(
    ("low_s", "high_s", "bars"), [(0.1, 0.3, 1), (0.1, None, 1), (None, 0.3, 1), (None, None, 0)]
)
def test_an_interval_with_an_open_side_is_drawn(
    low_s: float | None, high_s: float | None, bars: int
) -> None:
    summary = summarize(synthetic.run())
    checks = tuple(
        msgspec.structs.replace(x, value_s=0.2, low_s=low_s, high_s=high_s) for x in summary.checks
    )
    summary = msgspec.structs.replace(summary, checks=checks)
    level = Level(users=4, verdict=Verdict.UNSURE, valid=True, summary=summary, why="why")
    chart = search_chart(msgspec.structs.replace(found(4, None), levels=(level,)))
    assert chart is not None
    assert canvas.svg(chart, canvas.WIDE_PX).count("opacity: 0.6") == bars * len(checks)

"""The comparison as a page: every row drawn and told, in both languages, and nothing is code."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
import synthetic

from servecap import cli
from servecap.cell import Capacity
from servecap.compare import compare_capacities, compare_runs
from servecap.errors import UsageError
from servecap.gate import check_gate, parse_gates
from servecap.report import canvas, chart_compare, html, language
from servecap.report.html import Compared
from servecap.run import Run
from servecap.store import RunWriter
from servecap.summarize import summarize


def compared(before: Run, after: Run, *gates: str) -> Compared:
    pair = ((before, summarize(before)), (after, summarize(after)))
    found = compare_runs(*pair)
    return Compared(found, [check_gate(g, found) for g in parse_gates(gates)], pair)


FAST = synthetic.run(seed=1, error_share=0)
SLOW = synthetic.run(seed=2, error_share=0, tpot_s=0.09)
SAME = synthetic.run(seed=3, error_share=0)
SHORT = synthetic.run(users=3, end_s=8)


def test_every_figure_and_gate_is_on_the_page_with_a_table_behind_each_chart() -> None:
    told = compared(FAST, SLOW, "tpot.mean>5%", "qps<-90%")
    page = html.render(compared=[told]).replace("<wbr>", "")
    assert "GATE NOT MET" in page
    for row in told.found.changes:
        assert page.count(row.metric) >= 3  # in the chart, its table and the table of figures
    assert page.count("<figure") == page.count("The same as a table") == 4
    assert "FAIL tpot.mean&gt;5%" in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)


def test_the_badge_says_what_matters_most() -> None:
    pages = {
        "WORSE": [compared(FAST, SLOW)],
        "BETTER": [compared(SLOW, FAST)],
        "NO DIFFERENCE SHOWN": [compared(FAST, SAME)],
    }
    for badge, told in pages.items():
        assert f">{badge}</span>" in html.render(compared=told)
    both = html.render(compared=[compared(FAST, SLOW), compared(FAST, SAME)])
    assert ">WORSE</span>" in both
    assert 'id="compare2"' in both


def test_searches_have_no_latencies_to_draw() -> None:
    found = compare_capacities(
        Capacity(users=40, users_high=44, confidence=0.95),
        Capacity(users=60, users_high=None, confidence=0.95),
    )
    page = html.render(compared=[Compared(found)])
    assert page.count("<figure") == 1
    assert ">BETTER</span>" in page


def test_nothing_in_a_comparison_is_code() -> None:
    told = compared(FAST, synthetic.run(seed=2, text=synthetic.HOSTILE))
    page = html.render(compared=[told])
    assert "<script>alert" not in page
    assert "\x1b" not in page


@pytest.mark.parametrize("after", [SLOW, SAME, SHORT])
def test_the_page_is_there_in_chinese(after: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = []
    asked = language.say

    def noted(text: str, lang: str = "en") -> str:
        if piece := language.untold(text, lang):
            missing.append(f"{piece!r} in {text!r}")
        return asked(text, lang)

    monkeypatch.setattr(language, "say", noted)
    told = compared(FAST, after, "tpot.mean>5%", "qps<-5%", "ttft.p95>5%")
    html.render(compared=[told], lang="zh")
    html.render(compared=[told, told], lang="zh")
    assert sorted(set(missing)) == []


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    for name, run in (("a", FAST), ("b", SLOW)):
        writer = RunWriter(tmp_path / name, run.header)
        for record in run.records:
            writer.add(record)
        writer.close(run.header)
    args = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--html"]
    page = tmp_path / "c.html"
    done = CliRunner().invoke(cli.cli, [*args, str(page)], standalone_mode=False)
    assert done.return_value == 0, done.exception
    assert "WORSE" in page.read_text()
    bad = CliRunner().invoke(cli.cli, [*args, str(tmp_path / "no" / "c")], standalone_mode=False)
    assert isinstance(bad.exception, UsageError)


def test_no_change_is_drawn_where_none_can_be() -> None:
    """Nothing falls by more than all of it; what rises may go on to the picture's other end."""
    found = compared(FAST, SLOW).found
    unbounded = [msgspec.structs.replace(x, low=-1.0, high=math.inf) for x in found.changes]
    rises = msgspec.structs.replace(found.changes[0], change=1.8, low=1.2, high=2.5)
    told = msgspec.structs.replace(found, changes=(*unbounded, rises))
    chart = chart_compare.change_chart(told, "c")
    assert chart is not None
    text = canvas.svg(chart, canvas.WIDE_PX)
    ticks = {
        float(x.replace("\N{MINUS SIGN}", "-"))
        for x in re.findall(r">([+\N{MINUS SIGN}]?\d+)</text>", text)
    }
    assert min(ticks) == -100
    assert max(ticks) == 200

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import synthetic

from servecap import search as searches
from servecap.cell import Capacity, Cell
from servecap.errors import UsageError
from servecap.plan import Demand, plan
from servecap.report.html import MOST_RUNS_DRAWN, render, write_html
from servecap.report.table import Table
from servecap.run import Run
from servecap.scenario import ClosedLoop, Scenario
from servecap.slo import parse
from servecap.summarize import summarize

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, and the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        if self.elements and self.elements[-1][0] == "wbr":  # where a word may break is no blank
            data = self.words.pop() + data
        self.words.append(data)

    def count(self, tag: str, **attributes: str) -> int:
        return sum(
            t == tag and all(a.get(k) == v for k, v in attributes.items()) for t, a in self.elements
        )

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(run: Run, **more: object) -> Page:
    return Page(render(runs=[(run, summarize(run))], **more))  # type: ignore[arg-type]


def cell(gpu: str = "A30", tp: int = 4, users: int | None = 45, **more: object) -> Cell:
    fields: dict[str, object] = {
        "model": "llama-13b", "gpu": gpu, "tp": tp, "scenario": "chat", "origin": "measured",
        "provenance": "table.csv:1", "ttft_s": 2.0, "tpot_s": 0.08, "error_rate": 0.0,
        "capacity": None if users is None else Capacity(users=users, users_high=None),
    }  # fmt: skip
    return Cell(**(fields | more))  # type: ignore[arg-type]


CELLS = [
    cell("A30", 2, 20), cell("A30", 4, 45), cell("A100", 4, 450),
    cell("A100", 8, 700, origin="predicted", notes=("beyond the calibrated range",)),
    cell("L4", 1, None, invalid_reason="the server did not start"),
]  # fmt: skip


def found() -> searches.SearchResult:
    def probe(scenario: Scenario) -> Run:
        assert isinstance(scenario.load, ClosedLoop)
        users = scenario.load.users
        return synthetic.run(
            users=users, end_s=40, error_share=0, tpot_s=0.03 + 0.001 * users,
            slo=str(scenario.slo), seed=scenario.seed,
        )  # fmt: skip

    scenario = Scenario(load=ClosedLoop(users=1), slo=parse("ttft.mean<1s,tpot.mean<60ms"))
    return searches.find(probe, scenario, start=8, max_users=64, precision=0.4)


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    text = render(runs=[(r := synthetic.run(), summarize(r))])
    page = Page(text)
    policy = next(
        a["content"] for t, a in page.elements
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert page.count("script") == 0
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            if (value := attributes.get(name)) is not None:
                assert value == "data:," or value.startswith("#"), (tag, value)
        assert not [name for name in attributes if name.startswith("on")]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_it_says_what_the_text_report_says() -> None:
    run = synthetic.run(server=True, timings="both")
    page = page_of(run)
    for table in _tables(run):
        for row in table.rows:
            for text in row:
                assert " ".join(text.split()) in page.text, text


def _tables(run: Run) -> list[Table]:
    from servecap.report import facts

    return facts.tables(run, summarize(run))


def test_structure_is_for_everyone() -> None:
    page = page_of(synthetic.run(server=True))
    levels = [int(t[1]) for t, _ in page.elements if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels)), "a level is skipped"
    assert page.count("html", lang="en") == 1
    assert page.count("main") == 1
    assert page.count("figure") == page.count("details") == 11
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")


def test_text_from_outside_stays_text() -> None:
    page = page_of(synthetic.run(text=synthetic.HOSTILE, server=True), title=synthetic.HOSTILE)
    assert page.count("script") == 0
    assert "<script>alert(1)</script>\\x1b[31m" in page.text
    assert "{{7*7}}" in page.text
    assert "49</style>" not in page.text
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
    hostile = msgspec.structs.replace(CELLS[0], gpu=synthetic.HOSTILE, model=synthetic.HOSTILE)
    page = Page(render(cells=[hostile], plan=plan([hostile], Demand(100))))
    assert page.count("script") == 0


def test_invalid_and_simulated_are_said_at_the_top() -> None:
    empty = msgspec.structs.replace(synthetic.run(), records=[])
    page = page_of(empty)
    assert "INVALID This test of 64 simultaneous users ran, but its numbers cannot be" in page.text
    assert "No charts: nothing was recorded." in page.text
    assert page.count("dl", **{"class": "figures"}) == 0
    page = page_of(synthetic.run(source="simulated", error_share=0, end_s=90))
    assert "VALID, PASS (simulated)" in page.text.split("Service level objective")[0]


def test_the_exact_scenario_is_there_to_repeat_it() -> None:
    run = synthetic.run(seed=7)
    told = page_of(run).text
    start = told.index('{ "scenario"')
    repeated = msgspec.json.decode(told[start : told.index(" Method, and what")])
    assert msgspec.convert(repeated["scenario"], Scenario) == run.scenario
    assert repeated["target"]["url"] == run.header.target.url


def test_a_search_shows_its_levels_and_its_capacity() -> None:
    search = found()
    page = Page(render(search=search))
    assert f"CAPACITY {search.capacity.users}" in page.text
    assert f"carries {search.capacity.users} users at the same time" in page.text
    assert page.count("figure", id="search") == 1
    for level in search.levels:
        assert f"{level.users} {level.verdict.upper()}" in page.text


def test_a_plan_stands_before_the_matrix_it_is_made_from() -> None:
    answer = plan(CELLS, Demand(10_000))
    page = Page(render(cells=CELLS, plan=answer))
    assert "To carry 10,000 users at the same time: llama-13b: 12 nodes of 8 x A100" in page.text
    assert page.text.index("Plan for 10,000 users") < page.text.index("Performance matrix")
    assert page.count("figure", id="plan-1") == page.count("figure", id="matrix-1") == 1
    assert "the server did not start" in page.text
    assert "beyond the calibrated range" in page.text
    assert "~700" in page.text
    assert "~: predicted, not measured." in page.text


def test_several_runs_are_compared_and_only_some_drawn() -> None:
    runs = [synthetic.run(users=8 + i, end_s=30, seed=i) for i in range(MOST_RUNS_DRAWN + 2)]
    text = render(runs=[(run, summarize(run)) for run in runs])
    page = Page(text)
    assert f"{len(runs)} runs:" in page.text
    assert page.count("section", **{"class": "run"}) == len(runs)
    assert page.text.count("Charts of this run are left out") == 2
    assert len(text.encode()) < 2_000_000
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_page_stays_small(tmp_path: Path) -> None:
    run = synthetic.run(users=400, end_s=60, tokens=60, error_share=0.1)
    path = tmp_path / "report.html"
    write_html(path, runs=[(run, summarize(run))])
    assert len(run.records) > 2900
    assert path.stat().st_size < 600_000


def test_the_same_run_gives_the_same_page() -> None:
    run = synthetic.run(users=8, end_s=30)
    summary = summarize(run)
    assert render(runs=[(run, summary)]) == render(runs=[(run, summary)])


def test_a_broken_character_does_not_break_the_file(tmp_path: Path) -> None:
    run = synthetic.run(users=8, end_s=30, text="\ud800")
    write_html(tmp_path / "x.html", runs=[(run, summarize(run))])
    assert "\\ud800" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_nothing_to_report_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to report"):
        render()

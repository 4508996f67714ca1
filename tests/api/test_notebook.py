"""Results in a notebook: many outputs share one page, whose style sheet and theme are not ours."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
import synthetic
from test_html import CELLS, Page
from test_html import found as searched

from servecap import api
from servecap.api import found
from servecap.compare import compare_runs
from servecap.plan import Demand, plan
from servecap.report import notebook, words
from servecap.report.table import Column, Table
from servecap.summarize import summarize


def run_found(**more: Any) -> found.RunFound:
    run = synthetic.run(end_s=40, **more)
    return found.RunFound(run, summarize(run))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every kind of result; the names in one run are hostile."""
    one, slow = run_found(seed=1), run_found(seed=2, tpot_s=0.09)
    other = run_found(seed=3, text=synthetic.HOSTILE)
    compared = compare_runs((one.run, one.summary), (slow.run, slow.summary))
    table = tmp_path_factory.mktemp("cells") / "cells.csv"
    table.write_text("model,gpu,tp,scenario,max_users,ttft_s\nllama-13b,a30,2,chat,20,9\n")
    return {
        "run": one,
        "hostile": other,
        "search": found.SearchFound(searched(), Path()),
        "matrix": found.MatrixFound(tuple(CELLS), Path()),
        "plan": found.PlanFound(plan(CELLS, Demand(10_000)), tuple(CELLS)),
        "compared": found.Compared(compared, ()),
        "predicted": api.predict(model="llama-13b", gpu="a30", tp=2),
        "audited": api.audit(table),
        "report": found.Reported('<!doctype html><p id="a" class="b">"&"</p>', None, ()),
    }


def test_outputs_on_one_page_do_not_meet(outputs: dict[str, Any]) -> None:
    """No id, class or script; the one style sheet is of its own output alone."""
    page = Page("".join(shown._repr_html_() for shown in outputs.values()))
    assert page.open == []
    assert {tag for tag, _ in page.elements} <= {
        "div", "p", "strong", "ul", "li", "pre", "details", "summary", "table", "thead", "tbody",
        "tr", "th", "td", "iframe", "style",
    }  # fmt: skip
    assert {name for _, given in page.elements for name in given} == {"style", "srcdoc"}
    assert page.count("iframe") == page.count("style") == 1
    (rules,) = re.findall("<style>(.*?)</style>", outputs["report"]._repr_html_(), re.DOTALL)
    assert rules.startswith("@scope {")


def test_colours_are_the_notebooks_own(outputs: dict[str, Any]) -> None:
    for name, shown in outputs.items():
        for _, given in Page(shown._repr_html_()).elements:
            assert not re.search(r"\bcolor|background|#|rgb", given.get("style") or ""), name


def test_they_say_what_the_terminal_is_told(outputs: dict[str, Any]) -> None:
    for name in ("run", "search", "plan", "compared", "predicted", "audited"):
        said = Page(outputs[name]._repr_html_()).text
        figures = set(re.findall(r"\d[\d.,]*\d", str(outputs[name])))
        assert len(figures) > 3, name
        assert {x for x in figures if x not in said} == set(), name


def test_what_makes_a_run_doubtful_is_not_folded_away() -> None:
    shown = run_found(error_share=0.4)
    open_text, _, folded = shown._repr_html_().partition("<details>")
    assert folded
    for doubt in (*words.headline(shown.run, shown.summary).todo, *shown.summary.warnings):
        assert doubt in Page(open_text).text


def test_a_wide_table_and_a_wide_line_scroll_by_themselves() -> None:
    table = Table("", (Column("figure"), Column("why")), (("1" * 300, "because"),))
    head = words.Headline(badge="B", tone="neutral", plain="", quote="")
    for text in (notebook.fragment(head, [table]), notebook.in_lines("x" * 300)):
        assert "overflow-x: auto" in text

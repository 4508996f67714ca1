"""A comparison as people and CI servers read it."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec

from servecap.compare import Change, Comparison
from servecap.gate import GateCheck, check_gate, parse_gates
from servecap.report.compare_text import comparison_markdown, comparison_text, junit

NASTY = "run\x1b[31m|`<b>\n\x00"

FOUND = Comparison(
    before="old",
    after="new",
    confidence=0.95,
    changes=(
        Change(
            metric="ttft.p95",
            outcome="worse",
            before=0.2,
            after=0.25,
            change=0.25,
            low=0.1,
            high=0.42,
        ),
        Change(
            metric="qps",
            outcome="no difference shown",
            before=10.0,
            after=10.1,
            change=0.01,
            low=-0.03,
            high=0.05,
        ),
        Change(
            metric="tpot.p99",
            outcome="no difference shown",
            before=0.05,
            after=0.05,
            change=0.0,
            low=-0.2,
            high=float("inf"),
            note="too few requests to bound it",
        ),
        Change(
            metric="error_rate",
            outcome="better",
            before=0.05,
            after=0.0,
            change=-0.05,
            low=-0.08,
            high=-0.02,
        ),
    ),
)


def gates() -> list[GateCheck]:
    asked = parse_gates(["ttft.p95>5%,qps<-5%,tpot.p99>10%"])
    return [check_gate(gate, FOUND) for gate in asked]


def test_text_says_first_what_got_worse_and_keeps_to_100_columns() -> None:
    text = comparison_text(FOUND, gates())
    first = text.splitlines()[0]
    assert first == "WORSE in ttft.p95; better in error_rate."
    assert "+25.0%" in text
    assert "+10.0% .. +42.0%" in text
    assert "-20.0% .. up" in text
    assert "-5.0 pp" in text
    assert "FAIL ttft.p95>5%" in text
    assert "UNSURE tpot.p99>10%" in text
    assert max(map(len, text.splitlines())) <= 100


def test_nothing_shown_is_said_in_so_many_words() -> None:
    found = msgspec.structs.replace(FOUND, changes=FOUND.changes[1:2])
    assert comparison_text(found).startswith("No difference shown")


def test_markdown_is_a_table_that_names_cannot_break_out_of() -> None:
    found = msgspec.structs.replace(FOUND, before=NASTY, differences=(f"model: {NASTY} -> <i>",))
    text = comparison_markdown(found, gates())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(FOUND.changes)
    assert {line.count("|") for line in rows} == {7}
    assert "\x1b" not in text
    assert "\x00" not in text
    assert "<i>" not in text
    assert "&lt;i&gt;" in text


def test_plain_text_shows_no_escapes_of_a_terminal() -> None:
    found = msgspec.structs.replace(FOUND, after=NASTY, invalid=(NASTY,))
    text = comparison_text(found)
    assert text.startswith("INVALID")
    assert "\x1b" not in text
    assert "\x00" not in text


def test_junit_has_a_test_for_each_gate() -> None:
    root = ElementTree.fromstring(junit([(FOUND, gates())]))
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    found = {case.get("name"): [child.tag for child in case] for case in suite}
    assert found == {"ttft.p95>5%": ["failure"], "qps<-5%": [], "tpot.p99>10%": ["skipped"]}
    failure = root.find(".//failure")
    assert failure is not None
    assert "+25.0%" in (failure.get("message") or "")


def test_junit_without_gates_lists_the_figures() -> None:
    (suite,) = ElementTree.fromstring(junit([(FOUND, [])]))
    assert [case.get("name") for case in suite] == [row.metric for row in FOUND.changes]


def test_junit_of_what_cannot_be_believed_is_an_error_and_well_formed() -> None:
    found = msgspec.structs.replace(FOUND, invalid=(NASTY,))
    (suite,) = ElementTree.fromstring(junit([(found, gates())]))
    assert suite.get("errors") == "3"
    assert all(case.find("error") is not None for case in suite)

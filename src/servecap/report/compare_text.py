"""A comparison for a terminal, for a pull request (Markdown) and for a CI server (JUnit)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from servecap.compare import ERRORS, RATE, RATES, USERS, Change, Comparison
from servecap.gate import GateCheck
from servecap.metrics import Verdict
from servecap.report import units
from servecap.report.table import Column, Table, bullet, lines, paragraph, text_column
from servecap.report.words import Headline

_MARKS = {"better": "better", "worse": "WORSE", "no difference shown": "-", "unknown": "n/a"}
_COLUMNS = (
    text_column("figure"),
    Column("before"),
    Column("after"),
    Column("change"),
    Column("interval"),
    text_column(""),
)


def comparison_text(found: Comparison, gates: Sequence[GateCheck] = ()) -> str:
    """The comparison as plain text, ending in a newline: the answer first, then the figures."""
    out = [*paragraph(headline(found)), "", *lines(table(found))]
    for name, items in lists_of(found, gates):
        out += ["", name]
        out += [line for item in items for line in bullet(_clean(item))]
    return "\n".join(out) + "\n"


def title(found: Comparison) -> str:
    """What is compared: "old-run -> new-run"."""
    return f"{_clean(found.before)} -> {_clean(found.after)}"


def table(found: Comparison) -> Table:
    """Every figure before and after, its change, and whether that is more than noise."""
    rows = tuple(map(_row, found.changes))
    return Table(title(found), _COLUMNS, rows, notes=(_confidence(found),))


def change_row(row: Change) -> tuple[str, str, str]:
    """The figure's name, its change and the interval of that."""
    points = row.metric == ERRORS
    return row.metric, percent(row.change, points=points), _interval(row, points)


def lists_of(found: Comparison, gates: Sequence[GateCheck]) -> list[tuple[str, list[str]]]:
    """What stands below the table: heading and items of each part that is not empty."""
    parts = (
        ("Gates", [_gate(gate, found) for gate in gates]),
        ("Not to be believed", list(found.invalid)),
        ("Also differs", list(found.differences)),
    )
    return [(name, items) for name, items in parts if items]


def page_headline(compared: Sequence[tuple[Comparison, Sequence[GateCheck]]]) -> Headline:
    """The one answer above all comparisons: what is worse first, and whether the gates are met."""
    gates = [check for _, checks in compared for check in checks]
    outcomes = {row.outcome for found, _ in compared for row in found.changes}
    failed = any(check.verdict is Verdict.FAIL for check in gates)
    badge, tone = "NO DIFFERENCE SHOWN", "neutral"
    if any(found.invalid for found, _ in compared):
        badge, tone = "INVALID", "invalid"
    elif failed:
        badge, tone = "GATE NOT MET", "fail"
    elif "worse" in outcomes:
        badge, tone = "WORSE", "fail"
    elif "better" in outcomes:
        badge, tone = "BETTER", "pass"
    said = [headline(found) for found, _ in compared]
    several = tuple(f"{title(found)}: {headline(found)}" for found, _ in compared)
    return Headline(
        badge=badge,
        tone=tone,
        plain=said[0] if len(said) == 1 else f"{len(said)} comparisons with one run or search.",
        quote=title(compared[0][0]) if len(said) == 1 else "",
        todo=several if len(said) > 1 else (),
    )


def comparison_markdown(found: Comparison, gates: Sequence[GateCheck] = ()) -> str:
    """The comparison as Markdown for a pull request, ending in a newline."""
    before, after = _code(found.before), _code(found.after)
    out = [f"**{headline(found)}**", "", f"{before} → {after}", ""]
    out += ["| figure | before | after | change | interval | |", "|---|--:|--:|--:|--:|---|"]
    out += ["| " + " | ".join(_escaped(cell) for cell in _row(row)) + " |" for row in found.changes]
    out += ["", _confidence(found)]
    for name, items in lists_of(found, gates):
        out += ["", f"{name}:", "", *(f"- {_escaped(_clean(item))}" for item in items)]
    return "\n".join(out) + "\n"


def junit(compared: Sequence[tuple[Comparison, Sequence[GateCheck]]]) -> bytes:
    """All comparisons as one JUnit file: a test for each gate, or for each figure without gates.

    A gate that is UNSURE is skipped, and a comparison that cannot be believed is an error.
    """
    root = ElementTree.Element("testsuites", name="servecap compare")
    for found, gates in compared:
        names = [str(check.gate) for check in gates] or [row.metric for row in found.changes]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"{_clean(found.before)} -> {_clean(found.after)}",
            tests=str(len(names)),
            failures=str(sum(check.verdict is Verdict.FAIL for check in gates)),
            errors=str(len(names) if found.invalid else 0),
            skipped=str(sum(check.verdict is Verdict.UNSURE for check in gates)),
        )
        checks = {str(check.gate): check for check in gates}
        for name in names:
            case = ElementTree.SubElement(suite, "testcase", classname="servecap", name=name)
            _judge(case, found, checks.get(name))
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _judge(case: ElementTree.Element, found: Comparison, check: GateCheck | None) -> None:
    if found.invalid:
        message = _clean("; ".join(found.invalid))
        ElementTree.SubElement(case, "error", message=message)
        return
    if check is None or check.verdict is Verdict.PASS:
        return
    kind = "failure" if check.verdict is Verdict.FAIL else "skipped"
    ElementTree.SubElement(case, kind, message=_gate(check, found))


def headline(found: Comparison) -> str:
    """What is to be said of the comparison in one sentence."""
    if found.invalid:
        return "INVALID: what is compared cannot be believed."
    worse = [row.metric for row in found.changes if row.outcome == "worse"]
    better = [row.metric for row in found.changes if row.outcome == "better"]
    parts = []
    if worse:
        parts.append(f"WORSE in {units.listed(worse)}")
    if better:
        parts.append(f"better in {units.listed(better)}")
    if not parts:
        return "No difference shown: what there is lies within the noise."
    return ("; ".join(parts)).capitalize().replace("Worse", "WORSE") + "."


def _row(row: Change) -> tuple[str, ...]:
    points = row.metric == ERRORS
    mark = _MARKS[row.outcome]
    return (
        row.metric,
        _value(row.metric, row.before),
        _value(row.metric, row.after),
        percent(row.change, points=points),
        _interval(row, points),
        f"{mark} ({row.note})" if row.note else mark,
    )


def _value(metric: str, value: float | None) -> str:
    if metric == ERRORS:
        return units.share(value)
    if metric in (*RATES, RATE):
        return units.count(value) + ("" if value is None else " /s")
    return units.count(value, 0) if metric == USERS else units.seconds(value)


def _interval(row: Change, points: bool) -> str:
    if row.low is None or row.high is None:
        return units.UNKNOWN
    if row.low <= -1 and math.isinf(row.high):
        return "any"
    low = "down" if row.low <= -1 and not points else percent(row.low, points=points)
    return f"{low} .. {'up' if math.isinf(row.high) else percent(row.high, points=points)}"


def percent(change: float | None, *, points: bool = False) -> str:
    """A signed change in percent, or in percentage points.

    >>> percent(0.0512), percent(-0.25), percent(0.012, points=True), percent(None)
    ('+5.1%', '-25.0%', '+1.2 pp', 'n/a')
    """
    if change is None or not math.isfinite(change):
        return units.UNKNOWN
    text = f"{change * 100:+.1f}"
    return ("+0.0" if text == "-0.0" else text) + (" pp" if points else "%")


def _gate(check: GateCheck, found: Comparison) -> str:
    row = next((row for row in found.changes if row.metric == check.gate.metric), None)
    points = check.gate.metric == ERRORS
    seen = ""
    if row is not None and row.change is not None:
        seen = f" ({percent(row.change, points=points)}, {_interval(row, points)})"
    return f"{check.verdict.upper()} {check.gate}: {check.reason}{seen}"


def _confidence(found: Comparison) -> str:
    rows = "the interval" if len(found.changes) == 1 else "all intervals together"
    return (
        f"{found.confidence * 100:g}% confidence for {rows}; it knows the noise within a run only."
    )


def _clean(text: str) -> str:
    return units.clean(text)


def _code(text: str) -> str:
    return "`" + _clean(text).replace("`", "'") + "`"


def _escaped(text: str) -> str:
    """Text that Markdown and the HTML inside it take literally."""
    for char in "\\`*_[]|":
        text = text.replace(char, "\\" + char)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

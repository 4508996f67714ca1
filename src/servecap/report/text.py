"""What `servecap run` prints at the end: verdict first, plain text, at most 100 columns."""

from __future__ import annotations

from servecap.metrics import Summary
from servecap.report import facts, overview, words
from servecap.report.table import lines, paragraph
from servecap.run import Run
from servecap.search import SearchResult


def summary_text(run: Run, summary: Summary) -> str:
    """The whole report of one run as plain text, ending in a newline.

    It holds no control characters but newlines, whatever a server or a prompt contained.
    """
    top = words.headline(run, summary)
    out = [top.badge, "", *paragraph(top.quote)]
    if top.todo:
        out.append("")
        for item in top.todo:
            out += _bullet(item)
    for table in facts.tables(run, summary):
        out += ["", *lines(table)]
    warnings = facts.warnings(run, summary)
    if warnings:
        out += ["", "Warnings"]
        for item in warnings:
            out += _bullet(item)
    return "\n".join(out) + "\n"


def search_text(search: SearchResult) -> str:
    """The capacity and every level tried as plain text, ending in a newline."""
    top = overview.search_headline(search, ())
    out = [top.badge, "", *paragraph(top.quote), ""]
    for item in top.todo:
        out += _bullet(item)
    out += ["", *lines(overview.search_table(search))]
    return "\n".join(out) + "\n"


def _bullet(text: str) -> list[str]:
    first, *rest = paragraph(text, indent="    ")
    return ["  - " + first[4:], *rest]

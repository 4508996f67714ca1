"""What `servecap run` prints at the end: verdict first, plain text, at most 100 columns."""

from __future__ import annotations

from servecap.metrics import Summary
from servecap.report import facts, words
from servecap.report.table import bullet, lines, paragraph
from servecap.run import Run


def summary_text(run: Run, summary: Summary) -> str:
    """The whole report of one run as plain text, ending in a newline.

    It holds no control characters but newlines, whatever a server or a prompt contained.
    """
    top = words.headline(run, summary)
    out = [top.badge, "", *paragraph(top.quote)]
    if top.todo:
        out.append("")
        for item in top.todo:
            out += bullet(item)
    for table in facts.tables(run, summary):
        out += ["", *lines(table)]
    warnings = facts.warnings(run, summary)
    if warnings:
        out += ["", "Warnings"]
        for item in warnings:
            out += bullet(item)
    return "\n".join(out) + "\n"

"""The picture of a workload: its rate over time, and how long prompts and answers are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from servecap.report.canvas import Canvas, Chart
from servecap.report.table import Table

BINS = 60


def workload_chart(
    name: str, in_tokens: Sequence[int], out_tokens: Sequence[int], due_s: Sequence[float]
) -> Chart:
    """Panels of what is known; *due_s* is empty for a data set, which has no times."""
    panels: list[tuple[str, Sequence[float]]] = []
    if len(due_s) > 1 and due_s[-1] > due_s[0]:
        each_s = (due_s[-1] - due_s[0]) / BINS
        panels.append((f"requests in each {each_s:,.3g} s, over seconds", due_s))
    panels += [
        (f"requests by {what} tokens (longest: {max(lengths):,})", lengths)
        for what, lengths in (("input", in_tokens), ("output", out_tokens))
        if lengths
    ]

    def draw(canvas: Canvas) -> None:
        axes = canvas.panels(
            # Each panel has an x axis of its own, whose figures need room.
            [label for label, _ in panels],
            "",
            right_px=30,
            gap_px=56,
            whole=True,
        )
        for ax, (_, values) in zip(axes, panels, strict=True):
            data = np.asarray(values, dtype=np.float64)
            counts, edges = np.histogram(data, bins=BINS, range=(0.0, float(data.max())))
            canvas.stairs(ax, counts, edges, 0, color=canvas.colour("teal"))
            ax.set_xlim(edges[0], edges[-1])
            ax.set_ylim(0, counts.max() * 1.08)

    return Chart(
        name="workload",
        title=name,
        caption="",
        table=Table(title="", columns=(), rows=()),
        draw=draw,
        height_px=190 * len(panels),
    )

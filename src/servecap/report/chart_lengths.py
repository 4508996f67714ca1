"""Charts of lengths: of prompts and answers, and what the length of an answer costs."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import MaxNLocator

from servecap.report import series, units
from servecap.report.canvas import Canvas, Chart
from servecap.report.chart_data import MOST_DOTS, Data, top_of
from servecap.report.table import Column, Table
from servecap.stats import Floats


def length_charts(told: Data, name: str) -> list[Chart]:
    """How long prompts and answers were, and what the length of an answer costs."""
    good = told.good
    e2e_s = told.latency_s("e2e", good)
    charts = [
        _histogram(good.prompt_tokens, "prompt tokens", f"{name}-prompt-lengths"),
        _histogram(good.output_tokens, "output tokens", f"{name}-output-lengths"),
        _length_chart(good.output_tokens, e2e_s, f"{name}-length-e2e"),
    ]
    return [chart for chart in charts if chart is not None]


def _histogram(lengths: Floats, what: str, name: str) -> Chart | None:
    known = lengths[np.isfinite(lengths)]
    if not len(known):
        return None
    low, high = float(known.min()), float(known.max())
    width = max(1, math.ceil((high - low + 1) / 30))
    edges = np.arange(low, high + width + 0.5, width)
    counts, _ = np.histogram(known, bins=edges)

    def draw(canvas: Canvas) -> None:
        (ax,) = canvas.panels(["requests"], what, whole=True)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        canvas.stairs(ax, counts, edges - 0.5, 0, color=canvas.colour("teal"))
        room = max(1.0, 0.02 * (edges[-1] - edges[0]))
        ax.set_xlim(max(0.0, edges[0] - 0.5 - room), edges[-1] - 0.5 + room)
        ax.set_ylim(0, counts.max() * 1.08)

    rows = tuple(
        (f"{edges[i]:,.0f} to {edges[i + 1] - 1:,.0f}", units.count(int(n)))
        for i, n in enumerate(counts)
        if n
    )
    return Chart(
        name=name,
        title=f"{what.capitalize()} per request",
        caption=f"All {low:,.0f}."
        if low == high
        else f"Mean {units.count(float(known.mean()))}, from {low:,.0f} to {high:,.0f}.",
        table=Table(title="", columns=(Column(what), Column("requests")), rows=rows),
        draw=draw,
        small=True,
    )


def _length_chart(tokens: Floats, e2e_s: Floats, name: str) -> Chart | None:
    known = np.isfinite(tokens)
    tokens, e2e_s = tokens[known], e2e_s[known]
    if not len(tokens):
        return None
    low, high = float(tokens.min()), float(tokens.max())
    width = max(1, math.ceil((high - low + 1) / 24))
    edges = np.arange(low, high + width + 0.5, width)
    spread = series.bands(tokens, e2e_s, edges)
    unit = units.time_unit(float(np.median(e2e_s)))
    many = len(tokens) > MOST_DOTS
    top = top_of(e2e_s) * 1.08

    def draw(canvas: Canvas) -> None:
        (ax,) = canvas.panels([f"E2E, {unit.name}"], "output tokens")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        scale, seen = unit.per_s, np.isfinite(spread.median)
        middle = spread.middle - 0.5
        if many:
            ax.fill_between(
                middle[seen], spread.low[seen] * scale, spread.high[seen] * scale,
                color=canvas.colour("teal"), alpha=0.25, linewidth=0,
            )  # fmt: skip
            ax.plot(middle[seen], spread.median[seen] * scale, color=canvas.colour("teal"))
        else:
            below = e2e_s <= top
            canvas.dots(ax, tokens[below], e2e_s[below] * scale, "teal")
        room = max(1.0, 0.03 * (high - low))
        ax.set_xlim(max(0.0, low - room), high + room)
        ax.set_ylim(0, top * scale)

    rows = tuple(
        (
            f"{edges[i]:,.0f} to {edges[i + 1] - 1:,.0f}",
            units.count(int(spread.count[i])),
            *(unit.number(float(b[i])) for b in (spread.low, spread.median, spread.high)),
        )
        for i in range(len(edges) - 1)
        if spread.count[i]
    )
    names = ("output tokens", "requests", *(f"{p}, {unit.name}" for p in ("p10", "p50", "p90")))
    above = int((e2e_s > top).sum())
    caption = "Median line and p10 to p90 band." if many else "One dot for each request."
    if above:
        caption += f" {units.number_word(above, 'slower request')} above the chart."
    return Chart(
        name=name,
        title="Output length and E2E",
        caption=caption,
        table=Table(title="", columns=tuple(map(Column, names)), rows=rows),
        draw=draw,
        small=True,
    )

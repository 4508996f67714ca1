"""Charts of a comparison: how much each figure changed, and the latencies of both runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from servecap.columns import present
from servecap.compare import Change, Comparison
from servecap.metrics import Summary
from servecap.report import chart_data, compare_text, series, units
from servecap.report.canvas import Canvas, Chart, Colour, Key
from servecap.report.table import Column, Table, text_column
from servecap.run import Run
from servecap.stats import Floats

_ROW_PX = 26
_NARROWEST = 0.05  # of change: the chart shows at least so much on each side
_WIDEST = 2.0  # and at most so much: a longer interval runs out of the picture
_LEAST = -1.0  # nothing falls by more than all of it
_COLOURS: dict[str, Colour] = {"better": "teal", "worse": "red", "no difference shown": "grey"}
_RANKS = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)

Pair = tuple[tuple[Run, Summary], tuple[Run, Summary]]


def change_chart(found: Comparison, name: str) -> Chart | None:
    """Every figure's change with its interval around "the same"; None where none is known."""
    rows = [row for row in found.changes if row.change is not None]
    if not rows:
        return None
    seen = {row.outcome for row in rows}
    left, side = _ends(rows)
    cut = any((row.low or 0.0) < left or (row.high or 0.0) > side for row in rows)
    words = {"better": "better", "worse": "WORSE", "no difference shown": "no difference shown"}
    return Chart(
        name=f"{name}-changes",
        title="Change of each figure, with its interval",
        caption="A bar that leaves out 0 shows a difference; the others may be noise. The error "
        "rate is in percentage points."
        + (" A bar that reaches an edge goes on beyond it." if cut else ""),
        keys=tuple(Key(words[o], c, "dot") for o, c in _COLOURS.items() if o in seen),
        table=Table(
            title="",
            columns=(text_column("figure"), Column("change"), Column("interval")),
            rows=tuple(compare_text.change_row(row) for row in rows),
        ),
        draw=lambda canvas: _draw_changes(canvas, rows),
        height_px=64 + _ROW_PX * len(rows),
    )


def _ends(rows: Sequence[Change]) -> tuple[float, float]:
    """Where the chart begins and ends, as changes."""
    told = (x for row in rows for x in (row.change, row.low, row.high))
    known = [abs(x) for x in told if x is not None and math.isfinite(x)]
    side = min(_WIDEST, max([_NARROWEST, *known])) * 1.05
    return max(-side, _LEAST * 1.05), side


def _draw_changes(canvas: Canvas, rows: Sequence[Change]) -> None:
    (ax,) = canvas.panels([""], "change, %", left_px=88)
    left, side = _ends(rows)
    for y, row in enumerate(rows):
        colour = _COLOURS.get(row.outcome, "grey")
        low, high = max(left, row.low or 0.0), min(side, row.high or 0.0)
        canvas.bars(ax, [(100 * low, 100 * high, y)], colour, 7)
        if row.change is not None and abs(row.change) <= side:
            at = np.array([100 * row.change])
            canvas.dots(ax, at, np.array([float(y)]), "ink", 7, alpha=1)
    ax.axvline(0, color=canvas.colour("muted"), linewidth=1.2)
    ax.set_xlim(100 * left, 100 * side)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x", color=canvas.colour("rule"), linewidth=1)
    ax.set_yticks(range(len(rows)), [row.metric for row in rows])
    ax.xaxis.set_major_locator(MaxNLocator(max(4, int(canvas.width_px / 85)), steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(_percent))


def _percent(value: float, _: object = None) -> str:
    return "0" if value == 0 else f"{value:+g}".replace("-", "\N{MINUS SIGN}")


def latency_charts(pair: Pair, name: str) -> list[Chart]:
    """The share of requests at or below each TTFT, TPOT and E2E, of both runs in one picture."""
    made = (_latency_chart(pair, metric, name) for metric in ("ttft", "tpot", "e2e"))
    return [chart for chart in made if chart is not None]


def _latency_chart(pair: Pair, metric: str, name: str) -> Chart | None:
    curves = [_curve(run, summary, metric) for run, summary in pair]
    if any(curve is None for curve in curves):
        return None
    (bx, by), (ax, ay) = (curve for curve in curves if curve is not None)
    unit = units.time_unit(float(np.median(bx)))
    rows = []
    for rank in _RANKS:
        values = [_at(x, y, rank) for x, y in ((bx, by), (ax, ay))]
        rows.append((units.share(rank), *(unit.text(value) for value in values)))
    return Chart(
        name=f"{name}-{metric}",
        title=f"{units.SHORT[metric]}: share of requests at or below",
        caption="Requests in the measured window; a failed one counts as infinitely slow.",
        keys=(Key("before", "blue", "dash"), Key("after", "amber", "line")),
        table=Table(
            title="",
            columns=(Column("share of requests"), Column("before"), Column("after")),
            rows=tuple(rows),
        ),
        draw=lambda canvas: _draw_curves(canvas, (bx, by), (ax, ay), metric, unit),
        small=True,
    )


def _curve(run: Run, summary: Summary, metric: str) -> tuple[Floats, Floats] | None:
    told = chart_data.data(run, summary)
    values = present(told.latency_s(metric, told.good))
    if not len(values):
        return None
    return series.ecdf(values, int((told.inside & ~told.columns.ok).sum()))


def _at(x: Floats, share: Floats, rank: float) -> float | None:
    at = int(np.searchsorted(share, rank - 1e-9))
    return float(x[at]) if at < len(x) else None


def _draw_curves(
    canvas: Canvas,
    before: tuple[Floats, Floats],
    after: tuple[Floats, Floats],
    metric: str,
    unit: units.Unit,
) -> None:
    (ax,) = canvas.panels(["share of requests"], f"{units.SHORT[metric]}, {unit.name}")
    right = 0.0
    for (x, share), colour, line in ((before, "blue", (0, (5, 2))), (after, "amber", "solid")):
        shown: Colour = "blue" if colour == "blue" else "amber"
        steps = np.concatenate([[x[0]], x]) * unit.per_s
        heights = np.concatenate([[0.0], share])
        ax.step(
            steps, heights, where="post", color=canvas.colour(shown), linewidth=1.8, linestyle=line
        )
        right = max(right, chart_data.top_of(x) * unit.per_s)
    ax.set_xlim(0, right * 1.04 or 1.0)
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])

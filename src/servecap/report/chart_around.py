"""A chart of what was seen around the run: the server's queue and cache, GPUs, the client."""

from __future__ import annotations

import numpy as np

from servecap.report.canvas import Canvas, Chart, Colour, Key
from servecap.report.chart_data import TABLE_BINS, Data
from servecap.report.table import Column, Table
from servecap.stats import Floats

_PANELS: tuple[tuple[str, float, tuple[tuple[str, str, Colour], ...]], ...] = (
    (
        "requests at the server",
        1.0,
        (("server", "running", "blue"), ("server", "waiting", "red")),
    ),
    ("KV cache, %", 100.0, (("server", "kv_used_share", "violet"),)),
    ("GPU, %", 100.0, (("gpu", "util_share", "teal"),)),
    ("CPU, %", 100.0, (("client", "cpu_share", "teal"), ("node", "cpu_share", "amber"))),
)
_NAMES = {
    "server.running": "requests running",
    "server.waiting": "requests waiting",
    "server.kv_used_share": "KV cache in use",
    "gpu.util_share": "GPU utilisation",
    "client.cpu_share": "CPU of the client's machine",
    "node.cpu_share": "CPU of the server's machine",
}

Line = tuple[str, Colour, Floats]  # label, colour, seconds and values in two rows
Panel = tuple[str, list[Line]]


def around_chart(told: Data, name: str) -> Chart | None:
    """The most telling figures over time; None where nothing was looked at."""
    panels = [
        (title, lines)
        for title, times, figures in _PANELS
        if (lines := [line for f in figures if (line := _line(told, times, *f)) is not None])
    ]
    if not panels:
        return None
    lines = [line for _, some in panels for line in some]
    return Chart(
        name=f"{name}-around",
        title="The server, GPUs and the client's machine",
        caption="As each of them told at the time, about once a second.",
        keys=tuple(Key(label, colour) for label, colour, _ in lines),
        table=_table(told, lines),
        draw=lambda canvas: _draw(canvas, told, panels),
        height_px=80 + 90 * len(panels),
    )


def _line(told: Data, times: float, source: str, figure: str, colour: Colour) -> Line | None:
    seen = [
        (s.at_s, times * s.values[figure])
        for s in told.run.telemetry
        if s.source == source and figure in s.values and told.start_s <= s.at_s <= told.end_s
    ]
    if len(seen) < 2:
        return None
    return _NAMES[f"{source}.{figure}"], colour, np.array(seen, dtype=np.float64).T


def _draw(canvas: Canvas, told: Data, panels: list[Panel]) -> None:
    axes = canvas.panels([title for title, _ in panels], "seconds since the run's start")
    for ax, (_, lines) in zip(axes, panels, strict=True):
        canvas.shade(ax, told.window.start_s, told.window.end_s)
        top = 0.0
        for _, colour, (at_s, values) in lines:
            ax.plot(at_s, values, color=canvas.colour(colour), linewidth=1.6)
            top = max(top, float(values.max()))
        ax.set_xlim(told.start_s, told.end_s)
        ax.set_ylim(0, top * 1.12 or 1.0)
        ax.tick_params(labelbottom=ax is axes[-1])


def _table(told: Data, lines: list[Line]) -> Table:
    at_s = np.linspace(told.start_s, told.end_s, TABLE_BINS + 1)[1:]
    rows = []
    for at in at_s:
        cells = [f"{at:,.0f}"]
        for _, _, (times_s, values) in lines:
            before = int(np.searchsorted(times_s, at, side="right")) - 1
            cells.append("n/a" if before < 0 else f"{values[before]:,.1f}")
        rows.append(tuple(cells))
    return Table(
        title="",
        columns=(Column("at, s"), *(Column(label) for label, _, _ in lines)),
        rows=tuple(rows),
    )

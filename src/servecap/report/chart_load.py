"""Charts of the load: users, requests in flight, throughput, what each user did, failures."""

from __future__ import annotations

import numpy as np

from servecap.record import Outcome, error_kind
from servecap.report import series, units
from servecap.report.canvas import Canvas, Chart, Colour, Key
from servecap.report.chart_data import TABLE_BINS, Data, span
from servecap.report.table import Column, Table
from servecap.scenario import ClosedLoop, OpenLoop
from servecap.stats import Floats

_ERROR_COLOURS: tuple[Colour, ...] = ("red", "amber", "violet", "blue", "teal", "grey")


def load_chart(told: Data, name: str) -> Chart:
    """Users, requests in flight, requests/s and tokens/s over time."""
    # About ten requests to a bin, or QPS would show chance rather than the load.
    bins = min(120, max(TABLE_BINS, len(told.records) // 10))
    edges = series.bin_edges(told.start_s, told.end_s, most=bins)
    coarse_edges = series.bin_edges(told.start_s, told.end_s, most=TABLE_BINS)
    fine, coarse = _load(told, edges, coarse_edges)
    rows = tuple(
        (span(coarse_edges, i), *(units.count(float(v[i])) for v in coarse.values()))
        for i in range(len(coarse_edges) - 1)
    )
    keys = [Key("requests in flight, QPS, TPS", "blue"), Key("measured window", "shade", "area")]
    caption = f"Means over {units.bound(float(edges[1] - edges[0]))}."
    if "users" in fine:
        keys.insert(0, Key("users", "amber"))
        caption += " A user who thinks has no request in flight."
    return Chart(
        name=f"{name}-load",
        title="Users, requests in flight and throughput",
        caption=caption,
        keys=tuple(keys),
        table=Table(title="", columns=(Column("at, s"), *map(Column, coarse)), rows=rows),
        draw=lambda canvas: _draw_load(canvas, told, edges, fine),
        height_px=420,
    )


def _load(told: Data, *edges: Floats) -> list[dict[str, Floats]]:
    """The courses of the load by name, for each set of bins."""
    c = told.columns
    load = told.run.scenario.load
    tokens = series.output_tokens_per_s(told.records, *edges)
    courses = []
    for one, tps in zip(edges, tokens, strict=True):
        found = {}
        if isinstance(load, ClosedLoop):
            by_count = load.queue is not None or load.each is not None
            stay_s = None if by_count else told.end_s
            found["users"] = series.users_present(c, one, stay_s)
        found["in flight"] = series.mean_level(c.sent_s, c.end_s, one)
        found["QPS"] = series.per_s(c.end_s[c.ok], one)
        found["TPS"] = tps
        courses.append(found)
    return courses


def _draw_load(canvas: Canvas, told: Data, edges: Floats, values: dict[str, Floats]) -> None:
    head = "users and requests in flight" if "users" in values else "requests in flight"
    panels = canvas.panels(
        [head, "QPS, requests/s", "TPS, output tokens/s"], "seconds since the run's start"
    )
    # The last bin may reach past the run's end: its rates would look like a fall.
    whole = edges[1:] <= told.end_s + 1e-9
    whole[0] = True
    shown = edges[: int(whole.sum()) + 1]
    for panel, names in zip(panels, (("users", "in flight"), ("QPS",), ("TPS",)), strict=True):
        canvas.shade(panel, told.window.start_s, told.window.end_s)
        top = 1e-9
        for name in names:
            if name in values:
                line = values[name][whole]
                colour = canvas.colour("amber" if name == "users" else "blue")
                canvas.stairs(panel, line, shown, None, color=colour, linewidth=1.6)
                top = max(top, float(line.max()))
        panel.set_xlim(told.start_s, told.end_s)
        panel.set_ylim(0, top * 1.1)
        panel.tick_params(labelbottom=panel is panels[-1])


def gantt_chart(told: Data, name: str) -> Chart:
    """What the first users were doing: waiting, streaming, thinking.

    Where requests come by themselves each is a user of its own, and is called a request.
    """
    phases = series.phases(told.records, start_s=told.start_s)
    rows = len(phases.users)
    load = told.run.scenario.load
    one = "request" if isinstance(load, OpenLoop) and not load.of_sessions else "user"
    keys = [Key("waiting for the first token", "amber", "area"), Key("streaming", "blue", "area")]
    if phases.thinking:
        keys.append(Key("thinking", "grey"))
    if phases.failed:
        keys.append(Key("failed", "red", "dot"))
    cut = " (cut there)" if phases.end_s < told.end_s - 1e-6 else ""
    who = f"The first {rows} {one}s" if rows > 1 else f"The only {one}"
    return Chart(
        name=f"{name}-users",
        title=f"What each {one} was doing",
        caption=f"{who}, until {units.clock(phases.end_s)}{cut}.",
        keys=tuple(keys),
        table=_phase_rows(phases, one),
        draw=lambda canvas: _draw_gantt(canvas, phases, one, told.start_s),
        height_px=min(440, 80 + 9 * max(rows, 4)),
    )


def _draw_gantt(canvas: Canvas, phases: series.Phases, one: str, start_s: float) -> None:
    (ax,) = canvas.panels([one], "seconds since the run's start")
    rows = len(phases.users)
    px = max(2.0, min(9.0, (canvas.height_px - 60) / max(rows, 1) - 2))
    canvas.bars(ax, phases.thinking, "grey", max(1.0, px / 4))
    canvas.bars(ax, phases.waiting, "amber", px)
    canvas.bars(ax, phases.streaming, "blue", px)
    if phases.failed:
        x, y = np.array(phases.failed, dtype=np.float64).T
        canvas.dots(ax, x, y, "red", px + 1, alpha=1)
    ax.set_ylim(rows - 0.2, -0.8)
    ax.set_xlim(start_s, max(phases.end_s, start_s + 1e-9))
    ax.grid(visible=False)
    step = max(1, rows // 8)
    ax.set_yticks(range(0, rows, step), [str(user) for user in phases.users[::step]])


def _phase_rows(phases: series.Phases, one: str) -> Table:
    totals = np.zeros((len(phases.users), 3))
    for column, segments in enumerate((phases.waiting, phases.streaming, phases.thinking)):
        for begin_s, end_s, row in segments:
            totals[row, column] += end_s - begin_s
    rows = tuple(
        (str(user), *(f"{t:,.1f}" for t in totals[row])) for row, user in enumerate(phases.users)
    )
    names = (one, "waiting, s", "streaming, s", "thinking, s")
    return Table(title="", columns=tuple(map(Column, names)), rows=rows)


def error_chart(told: Data, name: str) -> Chart | None:
    """Failed requests over time by kind; None when nothing failed."""
    unborn = (Outcome.CENSORED, Outcome.CANCELLED)
    failed = [r for r in told.records if not r.ok and r.outcome not in unborn]
    kinds = list(map(error_kind, failed))
    names = series.error_kinds(kinds)
    if not names:
        return None
    if len(names) > len(_ERROR_COLOURS):
        rare = set(names[len(_ERROR_COLOURS) - 1 :])
        kinds = ["other kinds" if kind in rare else kind for kind in kinds]
        names = series.error_kinds(kinds)
    labels = [units.clean(kind, 40) for kind in names]
    edges = series.bin_edges(told.start_s, told.end_s, most=80)
    counts = series.errors_per_bin(failed, kinds, edges)
    coarse = series.bin_edges(told.start_s, told.end_s, most=TABLE_BINS)
    rows = tuple(
        (span(coarse, i), *(units.count(int(n)) for n in bins))
        for i, bins in enumerate(zip(*series.errors_per_bin(failed, kinds, coarse), strict=True))
    )
    return Chart(
        name=f"{name}-errors",
        title="Failed requests by kind",
        caption=f"By when they ended, per {units.bound(float(edges[1] - edges[0]))}.",
        keys=tuple(
            Key(label, colour, "area")
            for label, colour in zip(labels, _ERROR_COLOURS, strict=False)
        ),
        table=Table(title="", columns=(Column("at, s"), *map(Column, labels)), rows=rows),
        draw=lambda canvas: _draw_errors(canvas, told, edges, counts),
        height_px=200,
    )


def _draw_errors(canvas: Canvas, told: Data, edges: Floats, counts: list[Floats]) -> None:
    (ax,) = canvas.panels(["failed requests"], "seconds since the run's start", whole=True)
    canvas.shade(ax, told.window.start_s, told.window.end_s)
    base = np.zeros(len(edges) - 1)
    for values, name in zip(counts, _ERROR_COLOURS, strict=False):
        colour = canvas.colour(name)
        canvas.stairs(ax, base + values, edges, base, color=colour)
        base = base + values
    ax.set_xlim(told.start_s, told.end_s)
    ax.set_ylim(0, float(base.max()) * 1.12)

"""Charts of latency: how many requests were so fast, and how it went over time."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from matplotlib.axes import Axes

from servecap.columns import Bools, present
from servecap.report import series, units
from servecap.report.canvas import Canvas, Chart, Key
from servecap.report.chart_data import MOST_DOTS, TABLE_BINS, Data, span, thin, top_of
from servecap.report.table import Column, Table
from servecap.slo import Limit
from servecap.stats import Floats


def _limits(told: Data, metric: str) -> list[Limit]:
    return [limit for limit in told.run.scenario.slo.limits if limit.metric == metric]


def ecdf_chart(told: Data, metric: str, name: str) -> Chart | None:
    """How many requests were at least so fast; None when none has the figure."""
    values = present(told.latency_s(metric, told.good))
    if not len(values):
        return None
    failed = int((told.inside & ~told.columns.ok).sum())
    x, share = series.ecdf(values, failed)
    unit = units.time_unit(float(np.median(values)))
    limits = _limits(told, metric)
    shown = [limit for limit in limits if limit.at_most_s <= 2.5 * float(x[-1])]
    caption = f"Successful requests in the measured window, by the {told.clock} clock."
    if failed:
        caption = (
            f"By the {told.clock} clock. {units.number_word(failed, 'failed request')} counted as"
            " infinitely slow: the curve ends below 100%."
        )
    caption += _hidden(limits, shown, "right")
    return Chart(
        name=f"{name}-ecdf-{metric}",
        title=f"{units.SHORT[metric]}: share of requests at or below",
        caption=caption,
        table=_rank_table(x, share, unit),
        draw=lambda canvas: _draw_ecdf(canvas, x * unit.per_s, share, shown, metric, unit),
        small=True,
    )


def _draw_ecdf(
    canvas: Canvas, x: Floats, share: Floats, limits: list[Limit], metric: str, unit: units.Unit
) -> None:
    (ax,) = canvas.panels(["share of requests"], f"{units.SHORT[metric]}, {unit.name}")
    steps_x, steps_y = np.concatenate([[x[0]], x]), np.concatenate([[0.0], share])
    ax.step(steps_x, steps_y, where="post", color=canvas.colour("blue"), linewidth=1.8)
    right = max([float(x[-1]), *(limit.at_most_s * unit.per_s for limit in limits)]) * 1.04
    ax.set_xlim(0, right or 1.0)  # all values may be 0
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    for limit in limits:
        at = limit.at_most_s * unit.per_s
        ax.axvline(at, color=canvas.colour("red"), linewidth=1.2, dashes=(5, 3))
        left = at > right / 2
        ax.annotate(
            f"{limit.statistic} limit {units.bound(limit.at_most_s)}",
            xy=(at, 0.04),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            color=canvas.colour("red"),
        )


def _rank_table(x: Floats, share: Floats, unit: units.Unit) -> Table:
    rows = []
    for rank in (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0):
        at = int(np.searchsorted(share, rank - 1e-9))
        rows.append((units.share(rank), unit.text(float(x[at])) if at < len(x) else units.UNKNOWN))
    heads = (Column("share of requests"), Column("at or below"))
    return Table(title="", columns=heads, rows=tuple(rows))


def _hidden(limits: Sequence[Limit], shown: Sequence[Limit], edge: str) -> str:
    far = [f"{x.statistic} {units.bound(x.at_most_s)}" for x in limits if x not in shown]
    return f" Limit beyond the {edge} edge: {units.listed(far)}." if far else ""


class _Cloud(msgspec.Struct, frozen=True, kw_only=True):
    """One latency of all successful requests, by when they ended."""

    at_s: Floats
    value_s: Floats
    inside: Bools  # in the measured window
    start_s: float
    end_s: float  # of the run
    ceiling_s: float  # the chart's top
    limits: list[Limit]  # that fit below it
    unit: units.Unit

    @property
    def many(self) -> bool:
        return len(self.at_s) > MOST_DOTS


def latency_chart(told: Data, metric: str, name: str) -> Chart | None:
    """A latency of each request over time, the running mean, and the limit; None without one."""
    values = told.latency_s(metric, told.columns)
    known = told.columns.ok & np.isfinite(values)
    if not known.any():
        return None
    limits = _limits(told, metric)
    top_s = top_of(values[known])
    shown = [limit for limit in limits if limit.at_most_s <= 2.5 * top_s]
    cloud = _Cloud(
        at_s=told.columns.end_s[known],
        value_s=values[known],
        inside=told.inside[known],
        start_s=told.start_s,
        end_s=told.end_s,
        ceiling_s=max([top_s, *(limit.at_most_s for limit in shown)]) * 1.12,
        limits=shown,
        unit=units.time_unit(float(np.median(values[known]))),
    )
    caption = f"Successful requests by the {told.clock} clock, placed at the time they ended."
    return Chart(
        name=f"{name}-time-{metric}",
        title=f"{units.TERMS[metric]} over time",
        caption=caption + _hidden(limits, shown, "upper"),
        keys=_latency_keys(cloud),
        table=_band_table(cloud),
        draw=lambda canvas: _draw_latency(canvas, cloud, told, units.SHORT[metric]),
        height_px=250,
    )


def _latency_keys(cloud: _Cloud) -> tuple[Key, ...]:
    keys = [Key("one request", "blue", "dot")]
    if cloud.many:
        keys = [
            Key("p10 to p90", "blue", "area"),
            Key("median", "blue"),
            Key("slowest", "blue", "dot"),
        ]
    keys.append(Key("running mean in the window", "ink"))
    keys.append(Key("measured window", "shade", "area"))
    if cloud.limits:
        keys.append(Key("limit", "red", "dash"))
    return tuple(keys)


def _draw_latency(canvas: Canvas, cloud: _Cloud, told: Data, short: str) -> None:
    unit = cloud.unit
    (ax,) = canvas.panels([f"{short}, {unit.name}"], "seconds since the run's start")
    canvas.shade(ax, told.window.start_s, told.window.end_s)
    if cloud.many:
        _draw_spread(canvas, ax, cloud)
    else:
        below = cloud.value_s <= cloud.ceiling_s
        canvas.dots(ax, cloud.at_s[below], cloud.value_s[below] * unit.per_s, "blue")
    if cloud.inside.any():
        mean = series.running_mean(cloud.value_s[cloud.inside])
        x, y = thin(cloud.at_s[cloud.inside], mean, 400)
        ax.plot(x, y * unit.per_s, color=canvas.colour("ink"), linewidth=1.8)
    for limit in cloud.limits:
        text = f"limit {units.bound(limit.at_most_s)} ({limit.statistic})"
        canvas.level(ax, limit.at_most_s * unit.per_s, text)
    above = int((cloud.value_s > cloud.ceiling_s).sum())
    if above:
        slowest = unit.text(float(cloud.value_s.max()))
        text = f"{above:,} above, up to {slowest}"
        canvas.note(ax, text, y=9, corner="upper right")
    ax.set_ylim(0, cloud.ceiling_s * unit.per_s or 1.0)
    ax.set_xlim(cloud.start_s, cloud.end_s)


def _draw_spread(canvas: Canvas, ax: Axes, cloud: _Cloud) -> None:
    spread = series.bands(cloud.at_s, cloud.value_s, series.bin_edges(cloud.start_s, cloud.end_s))
    scale, blue = cloud.unit.per_s, canvas.colour("blue")
    low, high = spread.low * scale, spread.high * scale
    ax.fill_between(spread.middle, low, high, color=blue, alpha=0.22, linewidth=0)
    ax.plot(spread.middle, spread.median * scale, color=blue, linewidth=1)
    seen = np.isfinite(spread.top) & (spread.top <= cloud.ceiling_s)
    canvas.dots(ax, spread.middle[seen], spread.top[seen] * scale, "blue", 3)


def _band_table(cloud: _Cloud) -> Table:
    edges = series.bin_edges(cloud.start_s, cloud.end_s, most=TABLE_BINS)
    spread = series.bands(cloud.at_s, cloud.value_s, edges)
    unit = cloud.unit
    marks = (spread.low, spread.median, spread.high, spread.top)
    rows = [
        (
            span(edges, i),
            units.count(int(spread.count[i])),
            *(unit.number(float(mark[i])) for mark in marks),
        )
        for i in range(len(edges) - 1)
    ]
    names = ("requests", *(f"{mark}, {unit.name}" for mark in ("p10", "p50", "p90", "max")))
    return Table(title="", columns=(Column("ended at, s"), *map(Column, names)), rows=tuple(rows))

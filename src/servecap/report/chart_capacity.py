"""Charts above single runs: the search for the capacity, the matrix, the plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from servecap.cell import Cell
from servecap.metrics import LimitCheck
from servecap.plan.answer import GpuPlan, ModelPlan, Split
from servecap.plan.sizing import gpu_label
from servecap.report import overview, rate_text, units
from servecap.report.canvas import Canvas, Chart, Colour, Key
from servecap.report.table import Column, Table, text_column
from servecap.search import Level, SearchResult
from servecap.search.rate import RateLevel, RateResult
from servecap.slo import Limit

_TONES: dict[str, Colour] = {"pass": "teal", "fail": "red", "unsure": "amber", "invalid": "grey"}
_ROW_PX = 27
AnySearch = SearchResult | RateResult
AnyLevel = Level | RateLevel


def search_chart(search: AnySearch) -> Chart | None:
    """Every level tried: its latency with interval against each limit, coloured by verdict."""
    limits = [x for x in search.scenario.slo.limits if _points(search.levels, x)]
    if not limits:
        return None
    seen = {overview.tone(level) for level in search.levels}
    return Chart(
        name="search",
        title="Levels tried on the way to the capacity",
        caption="A dot is a level's value, its bar the interval that the limit is held against.",
        keys=(
            *(Key(f"{t.upper()}", c, "dot") for t, c in _TONES.items() if t in seen),
            Key("limit", "red", "dash"),
            Key("the capacity lies here", "shade", "area"),
        ),
        table=_search_points(search, limits),
        draw=lambda canvas: _draw_search(canvas, search, limits),
        height_px=60 + 150 * len(limits),
    )


def _unit_of_load(search: AnySearch) -> str:
    return "requests/s" if isinstance(search, RateResult) else "users"


def _load(level: AnyLevel) -> float:
    return float(level.users) if isinstance(level, Level) else level.rate_rps


def _interval(search: AnySearch) -> tuple[float, float | None]:
    """Where the capacity lies."""
    if isinstance(search, RateResult):
        return search.capacity.rate_rps, search.capacity.rate_high_rps
    high = search.capacity.users_high
    return search.capacity.users, None if high is None else high + 1


def _points(levels: Sequence[AnyLevel], limit: Limit) -> list[tuple[AnyLevel, LimitCheck]]:
    return [
        (level, check)
        for level in levels
        for check in level.summary.checks
        if check.limit == limit and check.value_s is not None and np.isfinite(check.value_s)
    ]


def _draw_search(canvas: Canvas, search: AnySearch, limits: list[Limit]) -> None:
    shown = [_unit(search, limit) for limit in limits]
    names = [
        f"{units.SHORT.get(limit.metric, limit.metric)} {limit.statistic}, {unit.name}"
        for limit, unit in zip(limits, shown, strict=True)
    ]
    panels = canvas.panels(names, _unit_of_load(search))
    right = max(map(_load, search.levels)) * 1.06
    low, high = _interval(search)
    for ax, limit, unit in zip(panels, limits, shown, strict=True):
        canvas.shade(ax, low, right if high is None else high)
        top = limit.at_most_s
        for level, check in _points(search.levels, limit):
            _draw_level(canvas, ax, level, check, unit)
            top = max(top, check.value_s or 0.0)
        canvas.level(
            ax, limit.at_most_s * unit.per_s, f"limit {units.bound(limit.at_most_s)}", left=True
        )
        ax.set_xlim(0, right)
        ax.set_ylim(0, top * 1.2 * unit.per_s)
        ax.tick_params(labelbottom=ax is panels[-1])


def _unit(search: AnySearch, limit: Limit) -> units.Unit:
    values = [check.value_s for _, check in _points(search.levels, limit) if check.value_s]
    return units.time_unit(max([*values, limit.at_most_s]))


def _draw_level(
    canvas: Canvas, ax: Axes, level: AnyLevel, check: LimitCheck, unit: units.Unit
) -> None:
    colour: Colour = _TONES[overview.tone(level)]
    value = (check.value_s or 0.0) * unit.per_s
    if check.low_s is not None or check.high_s is not None:
        # An open side reaches past the chart.
        low = 0.0 if check.low_s is None else max(check.low_s, 0.0)
        high = 1e6 if check.high_s is None else min(check.high_s, 1e6)
        x = [_load(level), _load(level)]
        y = [low * unit.per_s, high * unit.per_s]
        ax.plot(x, y, color=canvas.colour(colour), linewidth=2, solid_capstyle="butt", alpha=0.6)
    canvas.dots(ax, np.array([_load(level)]), np.array([value]), colour, 8, alpha=1)


def _search_points(search: AnySearch, limits: list[Limit]) -> Table:
    rows = []
    for level in search.levels:
        told = {check.limit: check for check in level.summary.checks}
        values = [units.seconds(told[x].value_s) if x in told else units.UNKNOWN for x in limits]
        load = f"{level.users:,}" if isinstance(level, Level) else rate_text.rate(level.rate_rps)
        rows.append((load, overview.said(level), *values))
    heads = (f"{units.SHORT.get(x.metric, x.metric)} {x.statistic}" for x in limits)
    return Table(
        title="",
        columns=(Column(_unit_of_load(search)), text_column("verdict"), *map(Column, heads)),
        rows=tuple(rows),
    )


def matrix_charts(cells: Sequence[Cell]) -> list[Chart]:
    """A heat map for each scenario: model and GPU down, tensor-parallel degree across."""
    scenarios = list(dict.fromkeys(cell.scenario for cell in cells))
    return [
        _matrix_chart([c for c in cells if c.scenario == scenario], scenario, i)
        for i, scenario in enumerate(scenarios)
    ]


def _matrix_chart(cells: list[Cell], scenario: str, number: int) -> Chart:
    tps = sorted({cell.tp for cell in cells})
    rows = list(dict.fromkeys((cell.model, gpu_label(cell)) for cell in cells))
    at = {(cell.model, gpu_label(cell), cell.tp): cell for cell in cells}
    told = tuple(
        (
            units.clean(f"{model}, {gpu}", 60),
            *(_cell_text(at.get((model, gpu, tp))) for tp in tps),
        )
        for model, gpu in rows
    )
    predicted = any(cell.origin == "predicted" for cell in cells)
    return Chart(
        name=f"matrix-{number + 1}",
        about=scenario,
        title=f"Users of one instance: {units.clean(scenario, 60)}",
        caption="The stronger the colour, the more users per GPU. Empty: no such cell."
        " ?: no capacity is known." + (" ~: predicted, not measured." if predicted else ""),
        table=Table(
            title="",
            columns=(text_column("model, GPU"), *(Column(f"TP{tp}") for tp in tps)),
            rows=told,
        ),
        draw=lambda canvas: _draw_matrix(canvas, rows, tps, at),
        height_px=46 + _ROW_PX * len(rows),
    )


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.capacity is None:
        return "?"
    return ("~" if cell.origin == "predicted" else "") + f"{cell.capacity.users:,}"


def _draw_matrix(
    canvas: Canvas,
    rows: list[tuple[str, str]],
    tps: list[int],
    at: dict[tuple[str, str, int], Cell],
) -> None:
    labels = [_label(f"{model} {gpu}") for model, gpu in rows]
    left_px = _left_px(canvas, labels)
    (ax,) = canvas.panels([""], "GPUs of one instance", left_px=left_px)
    ax.grid(visible=False)
    ax.spines["bottom"].set_visible(False)
    per_gpu = [c.capacity.users / c.tp for c in at.values() if c.capacity]
    most = max([*per_gpu, 1e-9])
    for y, (model, gpu) in enumerate(rows):
        for x, tp in enumerate(tps):
            cell = at.get((model, gpu, tp))
            if cell is None:
                continue
            share = cell.capacity.users / tp / most if cell.capacity else 0.0
            box = Rectangle(
                (x - 0.47, y - 0.44), 0.94, 0.88, linewidth=0,
                facecolor=canvas.colour("blue"), alpha=0.06 + 0.5 * share,
            )  # fmt: skip
            ax.add_patch(box)
            text = _cell_text(cell)
            ax.text(x, y, text, ha="center", va="center_baseline", color=canvas.colour("ink"))
    ax.set_xlim(-0.5, len(tps) - 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xticks(range(len(tps)), [f"TP{tp}" for tp in tps])
    ax.set_yticks(range(len(rows)), labels)


def _left_px(canvas: Canvas, labels: Sequence[str]) -> float:
    """Room for the names of rows; on a narrow screen no more than they need in any usual font."""
    return 160.0 if canvas.width_px > 500 else 10.0 + 6.4 * max(map(len, labels))


def _label(text: str, most: int = 23) -> str:
    seen = units.clean(text, 60)
    return seen if len(seen) <= most else seen[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def plan_charts(models: Sequence[ModelPlan]) -> list[Chart]:
    """For each model the nodes that every GPU type and split takes."""
    return [_plan_chart(model, i) for i, model in enumerate(models) if model.gpus]


def _plan_chart(model: ModelPlan, number: int) -> Chart:
    splits = [(gpu, split) for gpu in model.gpus for split in gpu.splits]
    return Chart(
        name=f"plan-{number + 1}",
        about=model.model,
        title=f"Nodes needed: {units.clean(model.model, 60)}",
        caption="Each GPU type's best split is blue.",
        keys=(Key("best split", "blue", "area"), Key("other splits", "grey", "area")),
        table=Table(
            title="",
            columns=(
                text_column("GPU"), text_column("split"), *map(Column, ("nodes", "GPUs")),
            ),
            rows=tuple(
                (units.clean(gpu.gpu, 60), split.name, f"{split.nodes:,}", f"{split.gpus:,}")
                for gpu, split in splits
            ),
        ),
        draw=lambda canvas: _draw_plan(canvas, splits),
        height_px=30 + 22 * len(splits),
    )  # fmt: skip


def _draw_plan(canvas: Canvas, splits: list[tuple[GpuPlan, Split]]) -> None:
    labels = [_label(f"{gpu.gpu}, {split.name}") for gpu, split in splits]
    left_px = _left_px(canvas, labels)
    (ax,) = canvas.panels([""], "", left_px=left_px)
    most = max(split.nodes for _, split in splits)
    ax.grid(visible=False)
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(labelbottom=False)
    # Room at the right for the figures that stand beside the longest bar.
    right = most * (1 + 115 / (canvas.width_px - left_px - 12 - 115))
    for y, (gpu, split) in enumerate(splits):
        best = split == gpu.best
        ax.barh(y, split.nodes, 0.66, color=canvas.colour("blue" if best else "grey"), linewidth=0)
        ax.annotate(
            f"{split.nodes:,} ({split.gpus:,} GPUs)",
            xy=(split.nodes, y), xytext=(5, 0), textcoords="offset points",
            va="center_baseline", color=canvas.colour("ink" if best else "muted"),
        )  # fmt: skip
    ax.set_xlim(0, right)
    ax.set_ylim(len(splits) - 0.4, -0.6)
    ax.set_yticks(range(len(splits)), labels)

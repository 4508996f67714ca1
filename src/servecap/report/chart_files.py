"""The charts of a report as files of their own, for papers and wikis.

They are drawn by the same functions from the same figures as those of the page; only here they
carry their title and legend, and colours of their own instead of the page's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from servecap.cell import Cell
from servecap.errors import UsageError
from servecap.plan.answer import Plan
from servecap.report import canvas, chart_capacity, chart_compare, charts, language, units
from servecap.report.canvas import DARK, FONT_PX, LIGHT, Chart, Colour, Key
from servecap.report.html import Compared
from servecap.report.overview import Runs
from servecap.search import SearchResult

Form = Literal["svg", "png"]
FORMS: tuple[str, ...] = get_args(Form)
FILE_PX, SMALL_FILE_PX = 920, 560  # as wide as a page's charts; one of several in a row
MARGIN_PX = 10
_LATIN = "DejaVu Sans"  # comes with matplotlib
# Fonts with Chinese characters, as Linux, macOS and Windows have them.
CJK = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC",
    "Hiragino Sans GB", "Heiti SC", "STHeiti", "Arial Unicode MS", "Microsoft YaHei", "SimHei",
)  # fmt: skip
_CJK_FILE = re.compile(r"cjk|sourcehansans|wqy|fallback|pingfang|hei", re.IGNORECASE)


class Written(msgspec.Struct, frozen=True):
    """One chart in a file."""

    path: Path
    title: str


def report_charts(
    *,
    runs: Runs = (),
    search: SearchResult | None = None,
    cells: Sequence[Cell] = (),
    plan: Plan | None = None,
    compared: Sequence[Compared] = (),
) -> list[Chart]:
    """All charts of what is given, in the order of the page, each with a name of its own."""
    found: list[Chart] = []
    for i, told in enumerate(compared, start=1):
        name = "compare" if len(compared) == 1 else f"compare{i}"
        changes = chart_compare.change_chart(told.found, name)
        found += [] if changes is None else [changes]
        found += [] if told.pair is None else chart_compare.latency_charts(told.pair, name)
    if plan is not None:
        found += chart_capacity.plan_charts(plan.models)
    chart = None if search is None else chart_capacity.search_chart(search)
    found += [] if chart is None else [chart]
    found += chart_capacity.matrix_charts(cells)
    for i, (run, summary) in enumerate(runs, start=1):
        found += charts.run_charts(run, summary, "run" if len(runs) == 1 else f"run{i}")
    return found


def write_charts(
    folder: str | Path, drawn: Sequence[Chart], *, form: str = "svg", lang: str = "en"
) -> list[Written]:
    """Each chart as a file in *folder*, which is made; files of the same names are replaced.

    Raises:
        UsageError: there is no such format or language, no chart, or no font for its characters.
        OSError: a file cannot be written.
    """
    language.check(lang)
    if form not in FORMS:
        raise UsageError(f"--format {form}: give one of {', '.join(FORMS)}")
    if not drawn:
        raise UsageError("there is nothing to draw: what is given has no figure that a chart shows")
    if form == "png" and lang == "zh" and len(fonts()) == 1:
        raise UsageError(
            "--format png with --lang zh needs a font with Chinese characters, and this machine has"
            " none that is known: install one (fonts-noto-cjk), or write --format svg"
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in drawn:
        path = target / f"{stem(chart)}.{form}"
        path.write_bytes(png(chart, lang=lang) if form == "png" else svg(chart, lang=lang))
        written.append(Written(path, language.say(chart.title, lang)))
    return written


def stem(chart: Chart) -> str:
    """The file's name without its ending: what is drawn, and of which scenario or model.

    >>> from servecap.report.table import Table
    >>> made = Chart(name="matrix-1", about="Chat (en)", title="", caption="", draw=print,
    ...     table=Table("", (), ()))
    >>> stem(made)
    'matrix-1-chat-en'
    """
    about = re.sub(r"[^a-z0-9]+", "-", units.clean(chart.about, 60).lower()).strip("-")
    return f"{chart.name}-{about}" if about else chart.name


def svg(chart: Chart, width_px: int | None = None, *, lang: str = "en") -> bytes:
    """The chart as an SVG file with its title and legend; its words stay words that can be found.

    The same chart always gives the same file.
    """
    raw = io.BytesIO()
    about = {
        "Date": None,
        "Creator": "servecap",
        "Title": language.say(chart.title, lang),
        "Description": language.say(chart.caption, lang),
    }

    def save(to: io.BytesIO, figure: Figure) -> None:
        FigureCanvasSVG(figure)
        _head(figure, chart, LIGHT, lang)
        figure.savefig(
            to, format="svg", facecolor=LIGHT["card"], metadata=about, bbox_inches=_margin(figure)
        )

    canvas.render(
        chart, width_px or _width(chart), LIGHT, save, raw,
        vector=True, head_px=_head_px(chart), fonts=fonts(),
    )  # fmt: skip
    return raw.getvalue()


def png(
    chart: Chart,
    width_px: int | None = None,
    *,
    lang: str = "en",
    dark: bool = False,
    scale: float = 2.0,
) -> bytes:
    """The chart as a PNG picture with its title and legend, *scale* pixels to each px."""
    palette = DARK if dark else LIGHT
    raw = io.BytesIO()

    def save(to: io.BytesIO, figure: Figure) -> None:
        FigureCanvasAgg(figure)
        _head(figure, chart, palette, lang)
        figure.savefig(
            to, format="png", dpi=72 * scale, facecolor=palette["card"],
            bbox_inches=_margin(figure),
        )  # fmt: skip

    canvas.render(
        chart, width_px or _width(chart), palette, save, raw,
        vector=False, head_px=_head_px(chart), fonts=fonts(),
    )  # fmt: skip
    return raw.getvalue()


def fonts() -> list[str]:
    """The font of charts, and behind it one with Chinese characters where there is one."""
    return [_LATIN, *_cjk()]


@cache
def _cjk() -> tuple[str, ...]:
    """The first of the fonts with Chinese characters that is here, or none."""
    if not _known():
        # matplotlib remembers the fonts of an earlier day: this one may have come since.
        for path in font_manager.findSystemFonts():
            if _CJK_FILE.search(Path(path).name):
                font_manager.fontManager.addfont(path)
    return _known()


def _known() -> tuple[str, ...]:
    here = set(font_manager.get_font_names())
    return tuple(name for name in CJK if name in here)[:1]


def _margin(figure: Figure) -> Bbox:
    """The figure with white around it, in inches: a page has its own, a file has none."""
    wide, high = figure.get_size_inches()
    edge = MARGIN_PX / 72
    return Bbox([[-edge, -edge], [wide + edge, high + edge]])


def _width(chart: Chart) -> int:
    return SMALL_FILE_PX if chart.small else FILE_PX


def _head_px(chart: Chart) -> int:
    return 58 if chart.keys else 34


def _head(figure: Figure, chart: Chart, palette: dict[Colour, str], lang: str) -> None:
    wide_px, high_px = figure.get_figwidth() * 72, figure.get_figheight() * 72
    title = language.say(chart.title, lang)
    # Fonts with Chinese characters often have one weight, and matplotlib complains of a second.
    bold: dict[str, Any] = {"fontweight": "bold", "fontfamily": _LATIN} if title.isascii() else {}
    figure.text(4 / wide_px, 1 - 18 / high_px, title, color=palette["ink"], fontsize=14, **bold)
    if chart.keys:
        handles = [_handle(key, palette[key.colour]) for key in chart.keys]
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(-3 / wide_px, 1 - 24 / high_px),
            ncols=len(handles), frameon=False, labelcolor=palette["muted"], fontsize=FONT_PX,
        )  # fmt: skip
    canvas.translate(figure, lang)


def _handle(key: Key, colour: str) -> Line2D:
    match key.mark:
        case "line":
            return Line2D([], [], color=colour, label=key.label, linewidth=2)
        case "dash":
            return Line2D([], [], color=colour, label=key.label, linewidth=2, linestyle="--")
        case "area":
            return Line2D([], [], color=colour, label=key.label, linewidth=7)
        case "dot":
            return Line2D(
                [], [], color=colour, label=key.label, linestyle="none", marker="o", markersize=5
            )

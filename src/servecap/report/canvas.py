"""Drawing: one palette for light and dark, and charts as SVG for pages.

A chart is drawn once with marker colours; in the SVG these become CSS variables, so that the
same file follows the reader's light or dark page. No global state of matplotlib is used.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import matplotlib as mpl
import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, StepPatch
from matplotlib.path import Path as Outline
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from servecap.report import language
from servecap.report.table import Table
from servecap.stats import Floats

Colour = Literal[
    "page", "card", "ink", "muted", "rule", "shade",
    "blue", "teal", "amber", "red", "violet", "grey",
]  # fmt: skip

# Text colours (ink, muted, and the tones used for words) keep a contrast of 4.5 on page and card.
LIGHT: dict[Colour, str] = {
    "page": "#f7f7f5", "card": "#ffffff", "ink": "#1d2126", "muted": "#5b636d",
    "rule": "#dfe2e6", "shade": "#eef3f9", "blue": "#2563a8", "teal": "#0f766e",
    "amber": "#96590a", "red": "#b42318", "violet": "#6d4bb0", "grey": "#c3c9d1",
}  # fmt: skip
DARK: dict[Colour, str] = {
    "page": "#111417", "card": "#191d21", "ink": "#e7eaee", "muted": "#a0a9b4",
    "rule": "#30363d", "shade": "#1e2833", "blue": "#77aef2", "teal": "#4fc3b4",
    "amber": "#e5ac55", "red": "#f58a80", "violet": "#b59af0", "grey": "#4b545f",
}  # fmt: skip

_MARKERS: dict[Colour, str] = {name: f"#fe00{i + 1:02x}" for i, name in enumerate(LIGHT)}
_NAMES = {marker: name for name, marker in _MARKERS.items()}

FONT_PX = 11
STEPS = (1, 2, 2.5, 5, 10)  # between ticks: 0, 0.6, 1.2 are hard to read between
WIDE_PX, NARROW_PX, SMALL_PX = 860, 340, 340


class Key(msgspec.Struct, frozen=True):
    """One entry of a legend."""

    label: str
    colour: Colour
    mark: Literal["line", "dash", "dot", "area"] = "line"


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """A picture with the words and the table that say the same."""

    name: str  # [a-z0-9-]+, unique on a page
    about: str = ""  # the scenario or model it is of: for the names of files
    title: str
    caption: str
    table: Table
    draw: Callable[[Canvas], None]
    keys: tuple[Key, ...] = ()
    height_px: int = 230
    small: bool = False  # one of several in a row


class Canvas(msgspec.Struct, frozen=True):
    """A figure of a known size in pixels, and the colours to draw with."""

    figure: Figure
    width_px: float
    height_px: float
    colours: dict[Colour, str]
    head_px: float = 0.0  # room above for a title and a legend
    vector: bool = True  # drawn as SVG

    def colour(self, name: Colour) -> str:
        return self.colours[name]

    def panels(
        self,
        y_labels: Sequence[str],
        x_label: str,
        *,
        left_px: float = 48,
        right_px: float = 12,
        gap_px: float = 34,
        whole: bool = False,
    ) -> list[Axes]:
        """Axes stacked over one x axis, each with its label above its upper left corner.

        *whole*: the y values are counts, so that ticks stand at whole numbers only.
        """
        top_px = 24.0 if any(y_labels) else 4.0
        bottom_px = 36.0 if x_label else 22.0
        count = len(y_labels)
        high_px = (self.height_px - top_px - bottom_px - gap_px * (count - 1)) / count
        axes = []
        total_px = self.height_px + self.head_px
        for i, label in enumerate(y_labels):
            base_px = bottom_px + (count - 1 - i) * (high_px + gap_px)
            box = (
                left_px / self.width_px,
                base_px / total_px,
                (self.width_px - left_px - right_px) / self.width_px,
                high_px / total_px,
            )
            ax = self.figure.add_axes(box)
            self._ticks(ax, high_px, whole=whole)
            self.note(ax, label, x=-left_px + 4, y=9, corner="upper left")
            axes.append(ax)
        axes[-1].set_xlabel(x_label, color=self.colour("muted"), labelpad=5)
        return axes

    def _ticks(self, ax: Axes, high_px: float, *, whole: bool) -> None:
        across, up = max(4, int(self.width_px / 85)), max(3, int(high_px / 38))
        ax.xaxis.set_major_locator(MaxNLocator(across, steps=STEPS))
        ax.yaxis.set_major_locator(MaxNLocator(up, steps=STEPS, integer=whole))
        ax.xaxis.set_major_formatter(FuncFormatter(_tick))
        ax.yaxis.set_major_formatter(FuncFormatter(_tick))

    def note(
        self,
        ax: Axes,
        text: str,
        *,
        x: float = 0,
        y: float = 0,
        corner: Literal["upper left", "upper right"] = "upper left",
        colour: Colour = "muted",
    ) -> None:
        """Words at an offset in pixels from an upper corner of the axes."""
        right = corner == "upper right"
        ax.annotate(
            text,
            xy=(1 if right else 0, 1),
            xycoords="axes fraction",
            xytext=(x, y),
            textcoords="offset points",
            color=self.colour(colour),
            ha="right" if right else "left",
            va="bottom",
            fontsize=FONT_PX,
        )

    def dots(
        self,
        ax: Axes,
        x: Floats,
        y: Floats,
        colour: Colour,
        size_px: float = 3.5,
        alpha: float = 0.55,
    ) -> None:
        """One dot for each point; in an SVG all are one path, a few bytes each."""
        if not self.vector:
            ax.plot(
                x, y, "o", color=self.colour(colour), markersize=size_px, markeredgewidth=0,
                alpha=alpha,
            )  # fmt: skip
            return
        points = np.column_stack([x, y])
        # A stroke without length and with round caps is a dot (in SVG; Agg draws nothing).
        self._strokes(ax, np.repeat(points, 2, axis=0), colour, size_px, "round", alpha)

    def bars(
        self, ax: Axes, segments: Sequence[tuple[float, float, int]], colour: Colour, px: float
    ) -> None:
        """Horizontal strokes (start, end, row), as a single path."""
        if segments:
            rows = np.array(segments, dtype=np.float64)
            points = np.empty((2 * len(rows), 2))
            points[0::2, 0], points[1::2, 0] = rows[:, 0], rows[:, 1]
            points[0::2, 1] = points[1::2, 1] = rows[:, 2]
            self._strokes(ax, points, colour, px, "butt")

    def _strokes(
        self,
        ax: Axes,
        points: Floats,
        colour: Colour,
        px: float,
        cap: Literal["round", "butt"],
        alpha: float = 1.0,
    ) -> None:
        if not len(points):
            return
        codes = np.tile([Outline.MOVETO, Outline.LINETO], len(points) // 2)
        outline = Outline(points, codes)
        outline.should_simplify = False  # it would drop strokes without length
        patch = PathPatch(
            outline,
            facecolor="none",
            edgecolor=self.colour(colour),
            linewidth=px,
            capstyle=cap,
            alpha=alpha,
            snap=False,
        )
        ax.add_artist(patch)

    def stairs(
        self, ax: Axes, values: Floats, edges: Floats, base: Floats | float | None, **style: Any
    ) -> None:
        """A value for each bin: as a line without a base, else as the area above it.

        The axes' limits are the caller's: to find them matplotlib would walk along every step.
        """
        area = {"fill": False} if base is None else {"fill": True, "linewidth": 0}
        style |= area | {"baseline": base}
        ax.add_artist(StepPatch(values, edges, **style))

    def shade(self, ax: Axes, start_s: float, end_s: float) -> None:
        """The measured window."""
        if end_s > start_s:
            ax.axvspan(start_s, end_s, color=self.colour("shade"), linewidth=0, zorder=-1)

    def level(self, ax: Axes, value: float, label: str, *, left: bool = False) -> None:
        """A limit as a dashed line with its name above it, at the right end or the left."""
        colour: Colour = "red"
        ax.axhline(value, color=self.colour(colour), linewidth=1.2, dashes=(5, 3))
        ax.annotate(
            label,
            xy=(0 if left else 1, value),
            xycoords=("axes fraction", "data"),
            xytext=(3 if left else -2, 3),
            textcoords="offset points",
            ha="left" if left else "right",
            va="bottom",
            color=self.colour(colour),
            fontsize=FONT_PX,
        )


class Saves(Protocol):
    """Writes a figure that has been drawn."""

    def __call__(self, to: io.BytesIO, figure: Figure) -> None: ...


def _tick(value: float, _: object = None) -> str:
    if value == 0:
        return "0"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
    return text.replace("-", "\N{MINUS SIGN}")


def svg(chart: Chart, width_px: int, lang: str = "en") -> str:
    """The chart as an inline SVG element that takes its colours from the page's CSS.

    The same chart always gives the same text.
    """
    raw = io.BytesIO()

    def save(to: io.BytesIO, figure: Figure) -> None:
        FigureCanvasSVG(figure)
        translate(figure, lang)
        figure.savefig(to, format="svg", transparent=True, metadata={"Date": None})

    render(chart, width_px, _MARKERS, save, raw, vector=True)
    return _inline(
        raw.getvalue().decode(), f"{chart.name}-{width_px}", language.say(chart.title, lang)
    )


def translate(figure: Figure, lang: str) -> None:
    """Put every text into that language but those at ticks: they are figures and names."""
    if lang == "en":
        return  # it is what they are written in
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    ticks = {text for axis in axes for x in axis.get_major_ticks() for text in (x.label1, x.label2)}
    for words in figure.findobj(Text):
        if words not in ticks:
            words.set_text(language.say(words.get_text(), lang))


def render(
    chart: Chart,
    width_px: int,
    colours: dict[Colour, str],
    save: Saves,
    to: io.BytesIO,
    *,
    vector: bool,
    head_px: int = 0,
    fonts: Sequence[str] = ("DejaVu Sans",),
) -> None:
    """Draw the chart below *head_px* of free room, and have the figure saved."""
    rc = _look(colours) | {
        "svg.hashsalt": f"{chart.name}-{width_px}",
        "font.family": list(fonts),
    }
    with mpl.rc_context(rc), warnings.catch_warnings():
        # The reader's own fonts draw the text; matplotlib's need not know every character.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width_px / 72, (chart.height_px + head_px) / 72), dpi=72)
        chart.draw(Canvas(figure, width_px, chart.height_px, colours, head_px, vector=vector))
        save(to, figure)


def _look(colours: dict[Colour, str]) -> dict[Any, Any]:
    """How all charts look, as matplotlib's settings: they are taken when axes are made."""
    look: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": FONT_PX,
        "axes.facecolor": "none",
        "axes.edgecolor": colours["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": colours["rule"],
        "grid.linewidth": 1,
    }
    ticks = {"color": colours["muted"], "labelsize": FONT_PX, "major.size": 0, "major.pad": 5}
    return look | {f"{axis}tick.{name}": of for axis in "xy" for name, of in ticks.items()}


_PREAMBLE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_DROPPED = re.compile(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_OPENING = re.compile(r'<svg [^>]*viewBox="([^"]*)"[^>]*>')
_ID = re.compile(r'(<[a-zA-Z]+)((?:\s[^<>]*?)?) id="([^"]+)"')
_USED = re.compile(r'(url\(#|xlink:href="#)([^)"]+)')
_DATA = re.compile(r' d="([^"]*)"')
_NUMBER = re.compile(r"-?\d+\.\d+")
_PAINT = re.compile(r"\b(fill|stroke): (#fe00[0-9a-f]{2})\b")
_FONT = re.compile(r"font: ([\d.]+px) [^;\"]*")  # matplotlib up to 3.10
_FAMILY = re.compile(r"font-family: [^;\"]*;? ?")  # the page's own font is used
_TURN = re.compile(r' transform="rotate\(-?0 [^)]*\)"')
_STROKE = re.compile(r"M(-?[\d.]+) (-?[\d.]+)L(-?[\d.]+) (-?[\d.]+)(?=M|$)")


def _inline(text: str, name: str, title: str) -> str:
    text = _DROPPED.sub("", _PREAMBLE.sub("", text))
    used = {match[1] for match in _USED.findall(text)}

    def keep_id(match: re.Match[str]) -> str:
        kept = f' id="{name}-{match[3]}"' if match[3] in used else ""
        return f"{match[1]}{match[2]}{kept}"

    text = _ID.sub(keep_id, text)
    text = _USED.sub(rf"\g<1>{name}-\g<2>", text)
    text = _DATA.sub(lambda match: f' d="{_short(match[1])}"', text)
    text = _PAINT.sub(lambda match: f"{match[1]}: var(--{_NAMES[match[2]]})", text)
    text = _TURN.sub("", _FAMILY.sub("", _FONT.sub(r"font-size: \1", text)))
    text = _OPENING.sub(
        rf'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" role="img"'
        rf' aria-label="{_attribute(title)}">',
        text,
        count=1,
    )
    return re.sub(r">\s+<", "><", text).replace("<g/>", "").strip()


def _attribute(text: str) -> str:
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;").replace("\\", "\\\\")
    )


def _short(data: str) -> str:
    """Path data to a tenth of a pixel, with horizontal strokes written as such."""
    rounded = _NUMBER.sub(lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), data)
    packed = re.sub(r"\s*([MLCQZz])\s*", r"\1", rounded.strip())
    return _STROKE.sub(_stroke, packed)


def _stroke(match: re.Match[str]) -> str:
    x, y, to_x, to_y = match.groups()
    if y != to_y:
        return match[0]
    return f"M{x} {y}h0" if x == to_x else f"M{x} {y}H{to_x}"

from __future__ import annotations

import io
import math
import re
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
import synthetic
from matplotlib import image
from matplotlib.figure import Figure

from servecap.record import Outcome
from servecap.report import canvas, chart_files
from servecap.report.canvas import Chart
from servecap.report.charts import run_charts
from servecap.run import Run
from servecap.scenario import OpenLoop
from servecap.summarize import summarize


def charts_of(run: Run) -> dict[str, Chart]:
    return {chart.name: chart for chart in run_charts(run, summarize(run))}


@pytest.fixture(scope="module")
def charts() -> dict[str, Chart]:
    return charts_of(synthetic.run(server=True, timings="both", slo="ttft.mean<1s,e2e.p99<9s"))


def test_all_charts_are_there(charts: dict[str, Chart]) -> None:
    assert list(charts) == [
        "run-ecdf-ttft", "run-ecdf-tpot", "run-ecdf-e2e", "run-time-ttft", "run-time-tpot",
        "run-load", "run-users", "run-errors", "run-prompt-lengths", "run-output-lengths",
        "run-length-e2e",
    ]  # fmt: skip
    for chart in charts.values():
        assert chart.table.rows, f"{chart.name} has no table"
        assert all(len(row) == len(chart.table.columns) for row in chart.table.rows)


def test_an_svg_is_small_well_formed_and_takes_its_colours_from_the_page(
    charts: dict[str, Chart],
) -> None:
    used: set[str] = set()
    for chart in charts.values():
        text = canvas.svg(chart, canvas.NARROW_PX)
        root = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="urn:svg" ', 1))
        assert root.get("role") == "img"
        assert root.get("aria-label") == chart.title
        assert len(text) < 60_000
        assert not re.findall(r"(?:fill|stroke): #", text), "a colour that no theme can change"
        assert "font-family" not in text
        assert "<style" not in text
        assert "<script" not in text
        ids = set(re.findall(r' id="([^"]+)"', text))
        links = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
        assert links == ids, "a link leads nowhere, or an id is of no use"
        assert not ids & used, "two charts share an id"
        used |= ids


def test_where_nobody_thinks_rows_are_requests() -> None:
    """In an open loop each request is a user of its own, who does not think."""
    chart = charts_of(synthetic.run(load=OpenLoop(rate_rps=8), end_s=20))["run-users"]
    assert chart.title == "What each request was doing"
    assert chart.table.columns[0].name == "request"
    assert chart.caption.startswith("The first 40 requests, until")


def steps_of(chart: Chart, width_px: int) -> list[float]:
    """Between the first two ticks of each axis."""
    found: list[float] = []

    def save(to: io.BytesIO, figure: Figure) -> None:  # noqa: ARG001
        axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
        found.extend(float(np.diff(axis.get_majorticklocs())[0]) for axis in axes)

    canvas.render(chart, width_px, canvas.LIGHT, save, io.BytesIO(), vector=True)
    return found


def test_ticks_stand_at_round_figures(charts: dict[str, Chart]) -> None:
    """1, 2, 2.5 and 5 times a power of ten apart, on each axis of figures."""
    for name in ("run-load", "run-time-ttft", "run-time-tpot", "run-ecdf-e2e"):
        for width_px in (canvas.WIDE_PX, canvas.NARROW_PX):
            for step in steps_of(charts[name], width_px):
                mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
                assert min(abs(mantissa - x) for x in canvas.STEPS) < 1e-6, (name, step)


def test_the_same_chart_gives_the_same_svg(charts: dict[str, Chart]) -> None:
    again = charts_of(synthetic.run(server=True, timings="both", slo="ttft.mean<1s,e2e.p99<9s"))
    for name in ("run-time-ttft", "run-users"):
        assert canvas.svg(charts[name], 340) == canvas.svg(again[name], 340)


def test_each_request_is_a_dot_inside_the_chart() -> None:
    run = synthetic.run(error_share=0, end_s=40)
    good = [r for r in run.records if r.outcome is Outcome.OK]
    text = canvas.svg(charts_of(run)["run-time-tpot"], canvas.WIDE_PX)
    dots = re.findall(r"M([\d.]+) ([\d.]+)h0", text)
    assert len(dots) == len(good)
    x, y = np.array(dots, dtype=float).T
    # Placed by the time they ended: the pixels are a straight line through those times.
    slope, start = np.polyfit([r.end_s for r in good], x, 1)
    assert np.abs(x - (slope * np.array([r.end_s for r in good]) + start)).max() < 0.2
    assert (y >= 0).all()
    assert (y <= 250).all()


def test_many_requests_are_shown_as_a_spread_of_bounded_size() -> None:
    run = synthetic.run(users=700, end_s=40, tokens=20)
    assert len(run.records) > 5000
    chart = charts_of(run)["run-time-ttft"]
    assert [key.label for key in chart.keys][:3] == ["p10 to p90", "median", "slowest"]
    assert len(canvas.svg(chart, canvas.WIDE_PX)) < 40_000


def test_no_empty_chart_is_drawn() -> None:
    names = charts_of(synthetic.run(error_share=0, streamed=False))
    assert "run-errors" not in names
    assert "run-ecdf-ttft" not in names
    assert "run-time-tpot" not in names
    assert "run-ecdf-e2e" in names
    empty = msgspec.structs.replace(synthetic.run(), records=[])
    assert charts_of(empty) == {}


def test_failures_keep_the_curve_below_all() -> None:
    run = synthetic.run(error_share=0.5, end_s=60)
    chart = charts_of(run)["run-ecdf-e2e"]
    assert chart.table.rows[-1] == ("100%", "n/a")
    assert "infinitely slow" in chart.caption


def test_rare_kinds_of_error_are_joined() -> None:
    run = synthetic.run(error_share=0.5, end_s=60)
    records = [
        r if r.ok or r.outcome is Outcome.CENSORED
        else msgspec.structs.replace(r, outcome=Outcome.HTTP_ERROR, status=400 + i % 20)
        for i, r in enumerate(run.records)
    ]  # fmt: skip
    chart = charts_of(msgspec.structs.replace(run, records=records))["run-errors"]
    assert len(chart.keys) == 6
    assert "other kinds" in [key.label for key in chart.keys]
    shown = sum(int(cell) for row in chart.table.rows for cell in row[1:])
    assert shown == sum(r.outcome is Outcome.HTTP_ERROR for r in records)


def test_by_the_server_s_clock_the_charts_are_too() -> None:
    run = synthetic.run(streamed=False, server=True, timings="server", error_share=0)
    chart = charts_of(run)["run-time-ttft"]
    assert "server's clock" in chart.caption
    assert canvas.svg(chart, 340)


def test_open_loop_has_no_line_of_users() -> None:
    run = synthetic.run(load=OpenLoop(rate_rps=20), error_share=0)
    chart = charts_of(run)["run-load"]
    assert [c.name for c in chart.table.columns] == ["at, s", "in flight", "QPS", "TPS"]


def test_a_png_is_a_picture_of_the_asked_size(charts: dict[str, Chart]) -> None:
    for dark in (False, True):
        data = chart_files.png(charts["run-load"], 600, dark=dark, scale=1)
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(data[16:20], "big") == 600 + 2 * chart_files.MARGIN_PX
    assert chart_files.png(charts["run-load"], 600) != chart_files.png(
        charts["run-load"], 600, dark=True
    )


def test_dots_are_in_the_png_too() -> None:
    run = synthetic.run(error_share=0, end_s=40)
    chart = charts_of(run)["run-length-e2e"]
    picture = image.imread(io.BytesIO(chart_files.png(chart, 340, scale=1)))
    teal = np.array([int(canvas.LIGHT["teal"][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    # Dots are half transparent: where they overlap the colour is nearly the palette's own.
    near = np.abs(picture[:, :, :3] - teal).max(axis=2) < 0.2
    assert near.sum() > 100


@pytest.mark.parametrize("palette", [canvas.LIGHT, canvas.DARK])
def test_words_have_enough_contrast(palette: dict[canvas.Colour, str]) -> None:
    for text in ("ink", "muted", "blue", "teal", "amber", "red"):
        for ground in ("page", "card"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)  # WCAG 2 AA


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

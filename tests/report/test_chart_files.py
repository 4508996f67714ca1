"""Charts as files: every one is there under a name that tells, really drawn, and safe to open."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
import synthetic
from click.testing import CliRunner, Result
from matplotlib import font_manager, image
from test_html import CELLS, found

from servecap import cli
from servecap.compare import compare_runs
from servecap.errors import UsageError
from servecap.plan import Demand, plan
from servecap.report import chart_files
from servecap.report.html import Compared
from servecap.store import RunWriter, write_json
from servecap.summarize import summarize

SVG = "{http://www.w3.org/2000/svg}"


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli.cli, args, standalone_mode=False)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, a search and a table of cells, as the commands keep them."""
    folder = tmp_path_factory.mktemp("stored")
    for name, run in (("a", synthetic.run()), ("b", synthetic.run(seed=2, tpot_s=0.06))):
        writer = RunWriter(folder / name, run.header)
        for record in run.records:
            writer.add(record)
        writer.close(run.header)
    (folder / "find").mkdir()
    levels = [msgspec.structs.replace(x, run_path=None) for x in found().levels]
    write_json(
        folder / "find" / "search.json", msgspec.structs.replace(found(), levels=tuple(levels))
    )
    (folder / "cells.csv").write_text(
        "model,gpu,tp,max_users,ttft_s,tpot_s,error_rate\nm,A100,4,450,1.2,0.08,0\n"
    )
    return folder


def test_a_report_writes_each_chart_under_a_name_that_tells(stored: Path) -> None:
    out = stored / "figures"
    told = invoke(
        "report", *(str(stored / name) for name in ("a", "find", "cells.csv")),
        "--html", str(stored / "r.html"), "--charts", str(out),
    )  # fmt: skip
    assert told.return_value == 0, told.exception
    names = {path.name for path in out.iterdir()}
    assert names >= {"run-ecdf-ttft.svg", "run-time-tpot.svg", "run-users.svg", "search.svg"}
    assert any(name.startswith("matrix-1-") and name.endswith(".svg") for name in names)
    for name in names:
        assert f"written: {out / name}  " in told.stdout


def test_a_comparison_and_a_plan_write_theirs(stored: Path) -> None:
    out = stored / "more"
    compared = invoke("compare", str(stored / "a"), str(stored / "b"), "--charts", str(out))
    assert "compare-changes.svg" in compared.stderr
    planned = invoke("plan", str(stored / "cells.csv"), "--users", "900", "--charts", str(out))
    assert planned.return_value == 0, planned.exception
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "compare-changes.svg", "compare-e2e.svg", "compare-tpot.svg", "compare-ttft.svg",
        "matrix-1-default.svg", "plan-1-m.svg",
    ]  # fmt: skip


def test_a_png_is_really_drawn(tmp_path: Path) -> None:
    run = synthetic.run(end_s=30)
    drawn = chart_files.report_charts(runs=[(run, summarize(run))], cells=CELLS)
    for written in chart_files.write_charts(tmp_path, drawn, form="png"):
        picture = image.imread(io.BytesIO(written.path.read_bytes()))
        high, wide, _ = picture.shape
        assert wide >= 2 * chart_files.SMALL_FILE_PX
        assert high > 200
        ground = picture[0, 0, :3]
        inked = np.abs(picture[:, :, :3] - ground).max(axis=2) > 0.05
        assert 0.005 < inked.mean() < 0.95, written.path.name
        # The margin is free on every side: nothing is cut off.
        edge = chart_files.MARGIN_PX
        for side in (inked[:edge], inked[-edge:], inked[:, :edge], inked[:, -edge:]):
            assert side.mean() < 0.02, written.path.name


def test_an_svg_stands_alone_and_runs_nothing(tmp_path: Path) -> None:
    run = synthetic.run(text=synthetic.HOSTILE, end_s=30)
    cell = msgspec.structs.replace(CELLS[0], gpu=synthetic.HOSTILE, scenario=synthetic.HOSTILE)
    drawn = chart_files.report_charts(
        runs=[(run, summarize(run))], cells=[cell], plan=plan([cell], Demand(100))
    )
    for written in chart_files.write_charts(tmp_path, drawn):
        assert written.path.parent == tmp_path
        text = written.path.read_text()
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg"
        assert not [e for e in root.iter() if e.tag == f"{SVG}script"]
        assert "var(--" not in text, "a colour of the page's"
        words = [e.text for e in root.iter(f"{SVG}text")]
        assert any(words)
        assert chart_files.svg(drawn[0]) == chart_files.svg(drawn[0])


def test_in_chinese_the_words_are_chinese_and_the_figures_the_same() -> None:
    run = synthetic.run(end_s=20)
    chart = chart_files.report_charts(runs=[(run, summarize(run))])[0]
    root = ElementTree.fromstring(chart_files.svg(chart, lang="zh"))
    words = [e.text or "" for e in root.iter(f"{SVG}text")]
    assert "首字时延 TTFT：不超过该值的请求占比" in words
    assert "50%" in words


def test_several_of_a_kind_have_names_of_their_own() -> None:
    pair = tuple((run, summarize(run)) for run in (synthetic.run(), synthetic.run(seed=3)))
    told = Compared(compare_runs(*pair), (), (pair[0], pair[1]))
    drawn = chart_files.report_charts(runs=pair, compared=[told, told])
    names = [chart_files.stem(chart) for chart in drawn]
    assert len(set(names)) == len(names)
    assert {"run1-load", "run2-load", "compare1-changes", "compare2-changes"} <= set(names)


def test_what_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        chart_files.write_charts(tmp_path, [])
    drawn = chart_files.report_charts(cells=CELLS)
    with pytest.raises(UsageError, match="--format pdf: give one of svg, png"):
        chart_files.write_charts(tmp_path, drawn, form="pdf")
    monkeypatch.setattr(font_manager, "get_font_names", lambda: ["DejaVu Sans"])
    chart_files._cjk.cache_clear()
    try:
        with pytest.raises(UsageError, match="font with Chinese characters"):
            chart_files.write_charts(tmp_path, drawn, form="png", lang="zh")
        assert chart_files.write_charts(tmp_path, drawn, lang="zh")
    finally:
        chart_files._cjk.cache_clear()


def test_a_folder_that_cannot_be_is_told_in_one_line(stored: Path) -> None:
    (stored / "file").write_text("")
    told = invoke("report", str(stored / "a"), "--charts", str(stored / "file" / "x"))
    assert isinstance(told.exception, UsageError)
    assert "cannot be written" in str(told.exception)

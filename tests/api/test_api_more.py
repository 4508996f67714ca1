"""The Python API beside measuring: other tools' results, audits, pages and charts."""

from __future__ import annotations

import asyncio
import csv
import sys
from pathlib import Path

import pytest
import written

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
import synthetic

from servecap import api
from servecap.errors import UsageError
from servecap.store import RunWriter


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder of a run."""
    run = synthetic.run(users=8, end_s=40)
    writer = RunWriter(tmp_path / "run", run.header)
    for record in run.records:
        writer.add(record)
    writer.close(run.header)
    return tmp_path / "run"


def table(path: Path, users: int) -> Path:
    path.write_text(
        "model,gpu,tp,scenario,max_users,ttft_s,tpot_s,requests_per_s,output_tokens_per_s\n"
        f"llama-13b,a100-40gb,4,chat,{users},1.0,0.05,20,2000\n"
    )
    return path


def test_other_tools_results_are_runs_and_join_a_comparison(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = written.files(tmp_path)
    (found,) = api.import_results(files["vllm.json"], out=tmp_path / "in", slo="ttft.p95<2s")
    assert found.summary.requests_ok == 118
    assert found.path == tmp_path / "in"
    assert api.load(found.path).summary.client["ttft"] == found.summary.client["ttft"]
    compared = api.compare(found, tmp_path / "in")
    assert "No difference shown" in str(compared)
    assert capfd.readouterr() == ("", "")


def test_other_tools_results_are_a_cell_and_join_a_plan(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written.files(tmp_path)["benchmarks.json"]
    cells = tmp_path / "cells.csv"
    found = api.import_cell(
        file,
        table=cells,
        gpu="a100-40gb",
        tp=2,
        model="llama-13b",
        slo="ttft.mean<3s,error_rate<9%",
    )
    assert found.path == cells
    with cells.open() as lines:
        assert [row["gpu"] for row in csv.DictReader(lines)] == ["a100-40gb"]
    users = found.cells[0].capacity.users if found.cells[0].capacity else 0
    assert users > 0
    assert api.plan(found, users=users, gpus_per_node=8).plan.models[0].model == "llama-13b"
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UsageError, match="give --gpu"):
        api.import_cell(file, table=cells)
    with pytest.raises(UsageError, match="import_cell"):
        api.import_results(file, cell=cells)


def test_a_table_and_a_run_are_held_against_themselves(kept: Path, tmp_path: Path) -> None:
    good = api.audit(table(tmp_path / "good.csv", 159))
    assert good.holds
    assert (good.cells, good.findings, good.runs) == (1, (), ())
    bad = api.audit(table(tmp_path / "bad.csv", 600), queue=250)
    assert not bad.holds
    assert "Should be" in str(bad)
    (audit,) = api.audit(kept).runs
    assert audit.identities
    assert api.audit(api.load(kept)).runs == (audit,)
    assert "holds" in str(api.audit(kept))


def test_a_page_and_charts_are_made_of_objects_and_folders(kept: Path, tmp_path: Path) -> None:
    found = api.load(kept)
    plan = api.plan(table(tmp_path / "cells.csv", 60), users=500)
    made = api.report(
        plan, api.compare(found, kept), kept, html=tmp_path / "r.html", charts=tmp_path / "charts"
    )
    assert made.html == tmp_path / "r.html"
    assert made.html.read_text(encoding="utf-8") == made.page
    names = {path.name for path in made.charts}
    assert {"plan-1-llama-13b.svg", "matrix-1-chat.svg", "compare-ttft.svg"} <= names
    assert "run-load.svg" in names
    assert all(path.is_file() for path in made.charts)
    assert str(made).count("written: ") == len(names) + 1
    assert '<iframe srcdoc="&lt;!doctype html&gt;' in made._repr_html_()
    assert api.report(found, lang="zh").page.count('lang="zh-Hans"') == 1


def test_all_of_it_works_inside_a_running_event_loop(kept: Path, tmp_path: Path) -> None:
    file = written.files(tmp_path)["vllm.json"]

    async def cell() -> tuple[int, bool, str]:
        (found,) = api.import_results(file, out=tmp_path / "in")
        compared = api.compare(found, kept)
        page = api.report(found, compared, charts=tmp_path / "charts").page
        return len(found.run.records), api.audit(kept).holds, page

    records, holds, page = asyncio.run(cell())
    assert records == 120
    assert holds == api.audit(kept).holds
    assert "<svg" in page


def test_what_cannot_be_shown_is_said_in_one_line(tmp_path: Path) -> None:
    plan = api.plan(table(tmp_path / "cells.csv", 60), users=500)
    with pytest.raises(UsageError, match="one plan at a time"):
        api.report(plan, plan)
    with pytest.raises(UsageError, match="does not exist"):
        api.report(tmp_path / "nothing")
    with pytest.raises(UsageError, match="nothing to report"):
        api.report()
    with pytest.raises(UsageError, match="no option 'html'"):
        api.plan(tmp_path / "cells.csv", users=10, html="x.html")
    with pytest.raises(UsageError, match="no option 'table'"):
        api.plan(tmp_path / "cells.csv", users=10, table="x.xlsx")

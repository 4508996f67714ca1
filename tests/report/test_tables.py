"""Matrices and plans as workbooks and Parquet: typed, marked, and without formulas."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from servecap.cell import Capacity, Cell
from servecap.cli.plan import command
from servecap.errors import UsageError
from servecap.matrix.files import read, to_json
from servecap.plan import Demand, Price, Supply, plan
from servecap.report import tables

BASE = Cell(
    model="llama-13b", gpu="a30", tp=4, scenario="chat", origin="measured", provenance="t.csv",
    capacity=Capacity(users=45, users_high=47, limited_by="ttft.mean<3s"), ttft_s=2.5,
    tpot_s=0.0625, requests_per_s=3.5, notes=("=1+1",),
)  # fmt: skip
EVIL = msgspec.structs.replace(
    BASE, model='=HYPERLINK("http://x")', gpu="a40", origin="predicted", provenance="@SUM(1)"
)
LONG = msgspec.structs.replace(BASE, scenario="docqa", capacity=Capacity(users=30, users_high=31))
CELLS = [BASE, EVIL, LONG]


def texts(path: Path) -> str:
    """All XML of a workbook."""
    with zipfile.ZipFile(path) as book:
        return "".join(book.read(name).decode() for name in book.namelist() if "xml" in name)


def test_a_matrix_becomes_a_workbook_of_numbers_without_formulas(tmp_path: Path) -> None:
    pytest.importorskip("xlsxwriter")
    path = tmp_path / "m.xlsx"
    tables.write_matrix(path, CELLS)
    xml = texts(path)
    assert "<f>" not in xml
    assert "<hyperlink" not in xml
    assert "<v>0.0625</v>" in xml
    assert "TPOT mean, s" in xml
    assert 'state="frozen"' in xml
    assert "FFF2CC" in xml  # the predicted row
    sheets = tables.matrix_sheets(CELLS)
    assert [sheet.name for sheet in sheets] == ["Cells", "Conclusions", "Caveats"]
    assert sheets[0].marked == {1}
    assert "30 in docqa" in str(sheets[1].rows)
    assert "=1+1" in str(sheets[2].rows)


def test_parquet_keeps_types_and_absent_figures(tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "m.parquet"
    tables.write_matrix(path, CELLS)
    rows = parquet.read_table(path).to_pylist()
    assert [row["max_users"] for row in rows] == [45, 45, 30]
    assert rows[0]["tpot_s"] == 0.0625
    assert rows[0]["error_rate"] is None
    assert rows[1]["origin"] == "predicted"


def test_other_endings_are_the_files_that_plan_reads(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    tables.write_matrix(path, [BASE, LONG])
    assert [cell.gpu for cell in read(path).cells] == ["a30", "a30"]
    with pytest.raises(UsageError, match=r"in one of .xlsx, .parquet, .csv, .json, .md"):
        tables.write_matrix(tmp_path / "m.doc", CELLS)
    with pytest.raises(UsageError, match=r"in one of \.xlsx, \.parquet$"):
        tables.write_plan(tmp_path / "m.csv", plan([BASE], Demand(10)))
    with pytest.raises(UsageError, match=r"cannot be written"):
        tables.write_matrix(tmp_path / "none" / "m.parquet", CELLS)


def test_a_plan_becomes_a_workbook(tmp_path: Path) -> None:
    pytest.importorskip("xlsxwriter")
    other = msgspec.structs.replace(BASE, gpu="a100", capacity=Capacity(users=400, users_high=401))
    prices = (Price("a30", 12.0, "node"), Price("a100", 30.0, "node"))
    found = plan(
        [BASE, other, msgspec.structs.replace(BASE, tp=2, origin="predicted")], Demand(830),
        Supply(prices=prices),
    )  # fmt: skip
    sheets = {sheet.name: sheet for sheet in tables.plan_sheets(found)}
    assert {"Answer", "Choices", "Mixed fleet", "Caveats"} <= set(sheets)
    heads = list(sheets["Choices"].columns)
    ranks = [row[heads.index("rank")] for row in sheets["Choices"].rows]
    assert ranks == [1, 2, 3]
    first = sheets["Choices"].rows[0]
    assert first[heads.index("GPU")] == found.models[0].gpus[0].gpu
    assert len(sheets["Choices"].marked) == 1
    assert any("coloured rows" in str(row) for row in sheets["Caveats"].rows)
    tables.write_plan(tmp_path / "p.xlsx", found)
    assert "<f>" not in texts(tmp_path / "p.xlsx")


def test_the_command_writes_what_is_asked_before_it_works(tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "m.json"
    source.write_text(to_json([BASE]))
    out = tmp_path / "p.parquet"
    args = [str(source), "--users", "900", "--table"]
    done = CliRunner().invoke(command, [*args, str(out)], standalone_mode=False)
    assert done.exception is None, done.exception
    assert f"written: {out}" in done.output
    (row,) = parquet.read_table(out).to_pylist()
    assert (row["nodes"], row["users_per_node"], row["usd_per_h"]) == (10, 90, None)
    wrong = CliRunner().invoke(command, [*args, "p.doc"], standalone_mode=False)
    assert isinstance(wrong.exception, UsageError)

"""Excel: what was written is read back by another library; no text is ever code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import synthetic
from click.testing import CliRunner

from servecap import cli
from servecap.errors import UsageError
from servecap.report import sheets
from servecap.report.exported import FIELDS, write_xlsx
from servecap.store import RunWriter
from servecap.summarize import summarize

needs_excel = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("xlsxwriter", "openpyxl"))), reason="extras missing"
)


def opened(path: Path) -> Any:
    reader: Any = importlib.import_module("openpyxl")
    return reader.load_workbook(path)


@needs_excel
def test_a_run_is_read_back_with_its_types(tmp_path: Path) -> None:
    run = synthetic.run(users=8, end_s=20)
    write_xlsx(tmp_path / "run.xlsx", run, summarize(run))
    book = opened(tmp_path / "run.xlsx")
    page = book["Requests"]
    heads = [cell.value for cell in page[1]]
    assert heads == [*(field.name for field in FIELDS), "in_window"]
    assert page.max_row == len(run.records) + 1
    at = heads.index("sent_s") + 1
    assert [page.cell(i + 2, at).value for i in range(len(run.records))] == pytest.approx(
        [r.sent_s for r in run.records]
    )
    assert {cell.data_type for cell in page["A"][1:]} == {"n"}
    assert any("Service level objective" in name for name in book.sheetnames)


@needs_excel
@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "{=1}", "http://evil", "\x1b[31m", "a" * 40_000]
)
def test_text_stays_text(tmp_path: Path, text: str) -> None:
    sheets.write_xlsx(tmp_path / "x.xlsx", [sheets.Sheet("s", [text], [[text]])])
    page = opened(tmp_path / "x.xlsx")["s"]
    for cell in (page["A1"], page["A2"]):
        assert cell.data_type == "s"
        assert cell.hyperlink is None
        assert "\x1b" not in cell.value


@needs_excel
def test_unknown_and_infinite_are_empty_and_names_are_allowed_ones(tmp_path: Path) -> None:
    rows: list[list[sheets.Value]] = [[None, float("inf"), True, 2]]
    made = [sheets.Sheet("a/b:c" * 9, ["w", "x", "y", "z"], rows)] * 2
    sheets.write_xlsx(tmp_path / "x.xlsx", [*made, sheets.Sheet("", ["a"], [])])
    book = opened(tmp_path / "x.xlsx")
    assert len(book.sheetnames) == 3
    assert all(0 < len(name) <= 31 for name in book.sheetnames)
    assert [c.value for c in book.worksheets[0][2]] == [None, None, True, 2]


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    with pytest.raises(UsageError, match=r"servecap\[excel\]"):
        sheets.write_xlsx(tmp_path / "x.xlsx", [])


@needs_excel
def test_the_command_writes_beside_the_run_and_says_where(tmp_path: Path) -> None:
    run = synthetic.run(users=4, end_s=12)
    writer = RunWriter(tmp_path / "run", run.header)
    for item in run.records:
        writer.add(item)
    writer.close(run.header)
    args = ["export", str(tmp_path / "run"), "--format", "xlsx"]
    done = CliRunner().invoke(cli.cli, args, standalone_mode=False)
    assert done.return_value == 0, done.exception
    assert "Requests" in opened(tmp_path / "run" / "run.xlsx").sheetnames
    args += ["--out", str(tmp_path / "none" / "x.xlsx")]
    error = CliRunner().invoke(cli.cli, args, standalone_mode=False).exception
    assert isinstance(error, UsageError)


@needs_excel
def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "MOST_ROWS", 1)
    with pytest.raises(UsageError, match="csv or parquet"):
        sheets.write_xlsx(tmp_path / "x.xlsx", [sheets.Sheet("s", ["a"], [[1], [2]])])

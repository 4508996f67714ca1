"""Exports: every request once, unknown stays empty, and nothing in them is code."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from servecap import cli
from servecap.errors import UsageError
from servecap.metrics import SUMMARY_FORMAT
from servecap.record import Counts, Outcome, Record, ServerTimings, Times, encode
from servecap.report.exported import CHUNKS, FIELDS, WINDOW, to_csv, to_openmetrics, write_parquet
from servecap.run import Header, Run, Status
from servecap.scenario import ClosedLoop, Scenario, Target
from servecap.store import RunWriter
from servecap.summarize import summarize

ROOT = Path(__file__).resolve().parents[2]
HEADER = Header(
    scenario=Scenario(load=ClosedLoop(users=2, queue=4)),
    target=Target(url="http://x", api="openai-chat", model='a"b\\c\n\x1b[0m'),
    source="measured",
    servecap_version="0",
    started_utc="2026-01-01T00:00:00+00:00",
    status=Status.COMPLETE,
    load_end_s=4.0,
)


def record(number: int, outcome: Outcome = Outcome.OK, error: str | None = None) -> Record:
    ok = outcome is Outcome.OK
    return Record(
        request_id=number,
        user=number % 2,
        planned_s=float(number),
        sent_s=number + 0.001,
        end_s=number + 1.5,
        outcome=outcome,
        first_token_s=number + 0.5 if ok else None,
        chunk_s=Times([number + 0.5, number + 1.0, number + 1.5] if ok else []),
        chunk_tokens=Counts([1, 1, 2] if ok else []),
        prompt_tokens=7,
        output_tokens=4 if ok else None,
        server=ServerTimings(origin="x", queue_s=0.25) if ok else None,
        error=error,
    )


RUN = Run(
    header=HEADER,
    records=[
        record(0),
        record(1, Outcome.HTTP_ERROR, '=HYPERLINK("http://evil")\x1b[31m\n,"x"'),
        record(2),
        record(3, Outcome.CENSORED),
    ],
)


def test_csv_has_a_row_for_each_request_and_no_made_up_value() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(RUN, summarize(RUN)))))
    assert [row["request_id"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["ttft_s"] == "0.500000"
    assert rows[0]["gap_max_s"] == "0.500000"
    assert rows[0]["server_queue_s"] == "0.250000"
    assert rows[1]["ttft_s"] == rows[1]["output_tokens"] == rows[1]["server_queue_s"] == ""
    assert [row["in_window"] for row in rows] == ["true", "true", "true", "false"]


def test_what_a_server_said_is_no_formula_and_no_escape_sequence() -> None:
    text = to_csv(RUN, summarize(RUN))
    assert "\x1b" not in text
    (error,) = [row["error"] for row in csv.DictReader(io.StringIO(text)) if row["error"]]
    assert error.startswith("'=HYPERLINK")


def test_openmetrics_is_read_by_a_parser_that_is_not_ours() -> None:
    summary = summarize(RUN)
    parse: Any = text_string_to_metric_families
    families = {f.name: f for f in parse(to_openmetrics(RUN, summary))}
    ttft = {s.labels.get("quantile", s.name): s for s in families["servecap_ttft_seconds"].samples}
    assert ttft["0.95"].value == pytest.approx(summary.client["ttft"].p95)
    assert ttft["servecap_ttft_seconds_count"].value == summary.client["ttft"].n
    assert ttft["0.5"].labels["model"].startswith('a"b\\c')
    assert families["servecap_error_ratio"].samples[0].value == pytest.approx(1 / 3)
    assert families["servecap_slo_verdict"].samples[0].value in (-1, 0, 1)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is an extra")
def test_parquet_holds_every_column_with_its_type_and_the_chunks(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    write_parquet(tmp_path / "x.parquet", RUN, summarize(RUN))
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.column_names == [field.name for field in (*FIELDS, WINDOW, *CHUNKS)]
    assert table["chunk_s"].to_pylist()[0] == [0.5, 1.0, 1.5]
    assert table["chunk_tokens"].to_pylist()[0] == [1, 1, 2]
    assert table["ttft_s"].to_pylist() == [0.5, None, 0.5, None]
    assert table["in_window"].to_pylist() == [True, True, True, False]
    header = msgspec.json.decode(table.schema.metadata[b"servecap.run"], type=Header)
    assert header == HEADER


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pip install"):
        write_parquet(tmp_path / "x.parquet", RUN, summarize(RUN))


def test_the_command_writes_to_stdout_and_to_a_file(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", HEADER)
    for item in RUN.records:
        writer.add(item)
    writer.close(HEADER)
    folder = str(tmp_path / "run")
    plain = CliRunner().invoke(cli.cli, ["export", folder], standalone_mode=False)
    assert plain.output.startswith("request_id,user,")
    out = tmp_path / "out.prom"
    args = ["export", folder, "--to", "openmetrics", "--out", str(out)]
    assert CliRunner().invoke(cli.cli, args, standalone_mode=False).return_value == 0
    assert out.read_text().endswith("# EOF\n")
    args[-1] = str(tmp_path / "none" / "x")
    error = CliRunner().invoke(cli.cli, args, standalone_mode=False).exception
    assert isinstance(error, UsageError)


def test_the_name_of_the_file_tells_its_format(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", HEADER)
    for item in RUN.records:
        writer.add(item)
    writer.close(HEADER)
    begins = {"a.csv": b"request_id,", "a.parquet": b"PAR1", "a.xlsx": b"PK", "a.prom": b"# TYPE",
              "A.JSON": b"{"}  # fmt: skip
    for name, begin in begins.items():
        args = ["export", str(tmp_path / "run"), "--out", str(tmp_path / name)]
        assert CliRunner().invoke(cli.cli, args, standalone_mode=False).return_value == 0
        assert (tmp_path / name).read_bytes().startswith(begin), name
    args[-1] = str(tmp_path / "a.parq")
    error = CliRunner().invoke(cli.cli, args, standalone_mode=False).exception
    assert isinstance(error, UsageError)
    assert "a.parq" in str(error)
    assert "--to" in str(error)


def test_every_column_is_documented() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w<>]+)`? \|", text, re.M))
    assert rows == {field.name: field.kind for field in (*FIELDS, WINDOW, *CHUNKS)}


def test_published_schemas_are_those_of_the_program() -> None:
    tool = ROOT / "tools" / "make_schemas.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_schemas_name_the_keys_that_are_written() -> None:
    for name, value in [
        ("record", json.loads(encode(RUN.records[0]))),
        ("summary", msgspec.to_builtins(summarize(RUN))),
        ("run", msgspec.to_builtins(HEADER)),
    ]:
        schema = json.loads((ROOT / "docs" / "schema" / f"{name}.json").read_text())
        known = schema["$defs"][schema["$ref"].rpartition("/")[2]]
        assert set(value) <= set(known["properties"])
        assert set(known.get("required", ())) <= set(value)


def test_a_summary_tells_its_format() -> None:
    summary = summarize(RUN)
    told = json.loads(msgspec.json.encode(summary))
    assert told["format"] == SUMMARY_FORMAT
    schema = json.loads((ROOT / "docs" / "schema" / "summary.json").read_text())
    assert schema["$defs"]["Summary"]["properties"]["format"]["default"] == SUMMARY_FORMAT

"""Runs on disk: written as they go, read back whole, told in one line when they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import record, run, scenario

from servecap import record as records
from servecap.errors import ServecapError, UsageError
from servecap.run import Header, Status
from servecap.store import HEADER, RECORDS, RunWriter, read_run, write_json

HEAD: Header = run([], scenario(), status=Status.PARTIAL).header


def written(folder: Path, n: int = 3) -> RunWriter:
    writer = RunWriter(folder, HEAD)
    for number in range(n):
        writer.add(record(number + 1.0, number=number))
    return writer


def test_run_is_readable_while_it_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    writer = RunWriter(folder, HEAD)
    assert read_run(folder).records == []
    for number in range(3):
        writer.add(record(number + 1.0, number=number))
        assert [r.request_id for r in read_run(folder).records] == list(range(number + 1))
    assert read_run(folder).header.status == "partial"
    writer.close(HEAD)
    writer.close(HEAD)
    assert read_run(folder).header == HEAD
    assert read_run(folder).path == str(folder)


def test_cut_off_last_line_is_left_out_wherever_it_is_cut(tmp_path: Path) -> None:
    written(tmp_path / "run")
    path = tmp_path / "run" / RECORDS
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert len(read_run(tmp_path / "run").records) == sum(end <= cut for end in ends)


@given(st.binary(max_size=80))
def test_damaged_line_is_named(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    folder = tmp_path_factory.mktemp("run")
    written(folder / "run", 1)
    path = folder / "run" / RECORDS
    path.write_bytes(path.read_bytes() + b"{" + junk.replace(b"\n", b"") + b"\n")
    with pytest.raises(UsageError, match="line 2 is damaged") as caught:
        read_run(folder / "run")
    assert "\n" not in str(caught.value)


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        read_run(tmp_path / "none")
    with pytest.raises(UsageError, match=HEADER):
        read_run(tmp_path)
    (tmp_path / HEADER).write_bytes(b"{}")
    (tmp_path / RECORDS).write_bytes(b"")
    for text in (b"{}", b"", b"\xff\xfe", b"[]"):
        (tmp_path / HEADER).write_bytes(text)
        with pytest.raises(UsageError, match="damaged"):
            read_run(tmp_path)


def test_second_run_in_one_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    written(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already"):
        RunWriter(tmp_path / "run", HEAD)
    assert len(read_run(tmp_path / "run").records) == 3


def test_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        RunWriter(tmp_path / "file" / "run", HEAD)


def test_disk_that_is_gone_is_one_line(tmp_path: Path) -> None:
    writer = written(tmp_path / "run")
    writer.close(HEAD)
    with pytest.raises(ServecapError, match="3 finished records are kept"):
        writer.add(record(9.0))


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", object())
    assert (tmp_path / "x.json").read_bytes() == b'{\n  "a": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_lines_of_records_hold_no_line_breaks() -> None:
    assert b"\n" not in records.encode(record(1.0))

"""A matrix as JSON, Markdown, CSV and folder."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from servecap.cell import Capacity, Cell
from servecap.errors import UsageError
from servecap.matrix.files import read, to_markdown, write
from servecap.matrix.journal import JOURNAL, Entry, append

CELL = Cell(
    model="llama|13b", gpu="A100", tp=4, scenario="chat", origin="predicted", provenance="engine",
    capacity=Capacity(users=450, users_high=460, confidence=0.95, limited_by="ttft.mean<3s"),
    gpu_memory_gb=40, ttft_s=2.82, tpot_s=0.069, error_rate=0.02, notes=("extrapolated",),
)  # fmt: skip
OTHER = msgspec.structs.replace(CELL, tp=8, capacity=None, invalid_reason="the client was slow")


@pytest.mark.parametrize("name", ["m.json", "m.csv"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [CELL, OTHER])
    assert read(tmp_path / name).cells == (CELL, OTHER)


def test_markdown_says_what_is_unknown() -> None:
    assert to_markdown([CELL, OTHER]).splitlines()[2:] == [
        "| llama\\|13b | A100 40 GB | 4 | chat | n/a | n/a | 450 (up to 460) | 2.82 | 69 | n/a "
        "| n/a | 2% | ttft.mean<3s | predicted |",
        "| llama\\|13b | A100 40 GB | 8 | chat | n/a | n/a | n/a | 2.82 | 69 | n/a | n/a | 2% "
        "| n/a | predicted |",
    ]


def test_an_ending_that_tells_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"end the name in \.csv, \.json or \.md"):
        write(tmp_path / "m.xlsx", [CELL])
    with pytest.raises(UsageError, match="cannot be written"):
        write(tmp_path / "no" / "m.csv", [CELL])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not a matrix in servecap's JSON"),
        ("[]", "is not a matrix in servecap's JSON"),
        ('{"cells": [], "more": 1}', "more"),
        ('{"cells": [], "servecap_matrix": 2}', "is version 2"),
        ('{"cells": [{"model": "m"}]}', "gpu"),
        ('{"cells": [CELL, CELL]}', "cells[1]: m on g, TP1, chat is there twice"),
        ('{"cells": [{"tp": 0, CELL_}]}', "cells[0].tp: 0 is not a whole number of at least 1"),
        ('{"cells": [{"ttft_s": -1, CELL_}]}', "cells[0].ttft_s: -1.0 is not greater than 0"),
        ('{"cells": [{"capacity": {"users": -1, "users_high": null}, CELL_}]}', "max_users: -1"),
    ],
)
def test_json_that_is_no_matrix_is_told(tmp_path: Path, text: str, told: str) -> None:
    fields = '"model": "m", "gpu": "g", "scenario": "chat", "origin": "measured", "provenance": "p"'
    rest = fields if '"tp"' in text else fields + ', "tp": 1'
    path = tmp_path / "m.json"
    path.write_text(text.replace("CELL_", rest).replace("CELL", "{" + rest + "}"))
    with pytest.raises(UsageError) as caught:
        read(path)
    assert told in str(caught.value)


def entry(key: str, place: str, cell: Cell | None = None, error: str | None = None) -> Entry:
    return Entry(
        key=key, place=place, name=place, at_utc="2026-11-01T00:00:00Z", cell=cell, error=error
    )


def test_a_folder_gives_the_last_word_on_each_place(tmp_path: Path) -> None:
    for line in (
        entry("a", "tp4", error="no port"),
        entry("b", "tp8", cell=OTHER),
        entry("a", "tp4", cell=CELL),
        entry("c", "tp2", error="log: out of memory"),
    ):
        append(tmp_path / JOURNAL, line)
    table = read(tmp_path)
    assert table.cells == (CELL, OTHER)
    assert table.warnings == (f"{tmp_path}: tp2 has no figures: log: out of memory",)
    assert read(tmp_path / JOURNAL) == table


def test_a_folder_without_figures_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no cells\.jsonl"):
        read(tmp_path)
    append(tmp_path / JOURNAL, entry("a", "tp4", error="no port"))
    with pytest.raises(UsageError, match=r"no cell has figures yet; .* no port"):
        read(tmp_path)


def test_a_line_cut_by_a_crash_is_skipped_and_overwritten(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    append(journal, entry("a", "tp4", cell=CELL))
    whole = journal.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        journal.write_bytes(whole + whole[:cut])
        assert read(tmp_path).cells == (CELL,)
        append(journal, entry("b", "tp8", cell=OTHER))
        assert read(tmp_path).cells == (CELL, OTHER)


def test_a_broken_line_in_the_middle_is_told_with_its_number(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    append(journal, entry("a", "tp4", cell=CELL))
    journal.write_bytes(b"{oops}\n" + journal.read_bytes())
    with pytest.raises(UsageError, match="line 1: is no entry"):
        read(tmp_path)

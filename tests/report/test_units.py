from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.report import units
from servecap.report.table import WIDTH, Table, lines, paragraph, text_column, wrap

UGLY = st.text(st.characters(), max_size=80)


@given(UGLY)
def test_clean_text_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    cleaned = units.clean(text)
    assert not any(unicodedata.category(char) in ("Zl", "Zp") for char in cleaned)
    assert not any(unicodedata.category(char)[0] == "C" for char in cleaned)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=80))
def test_clean_leaves_printable_text_alone(text: str) -> None:
    assert units.clean(text) == text


def test_clean_spells_escapes_out_and_cuts_what_is_long() -> None:
    assert units.clean("\x1b]0;x\x07 \u202eabc") == "\\x1b]0;x\\x07 \\u202eabc"
    assert units.clean("x" * 1000, most=20) == "x" * 17 + "..."
    assert len(units.clean("\x00" * 1000, most=50)) == 50


@pytest.mark.parametrize("value", [None, math.inf, -math.inf, math.nan])
def test_unknown_is_never_a_number(value: float | None) -> None:
    assert units.seconds(value) == units.count(value) == units.share(value) == "n/a"
    assert units.clock(value) == "n/a"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00 ms"), (3.2e-6, "3 us"), (0.00099, "0.99 ms"), (0.0125, "12.5 ms"),
        (0.25, "250 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (2.345, "2.35 s"),
        (123.45, "123.5 s"),
    ],
)  # fmt: skip
def test_a_time_gets_the_unit_that_suits_it(value: float, text: str) -> None:
    assert units.seconds(value) == text


@given(st.floats(0, 1))
def test_a_share_that_is_not_all_or_nothing_never_looks_so(value: float) -> None:
    text = units.share(value)
    assert (text == "0%") == (value == 0)
    assert (text == "100%") == (value == 1)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=400), st.integers(4))
def test_wrapping_loses_no_word_and_keeps_the_width(text: str, columns: int) -> None:
    columns = min(columns, 120)
    wrapped = wrap(text, columns)
    assert all(units.width(line) <= columns for line in wrapped)
    assert "".join("".join(wrapped).split()) == "".join(text.split())


@given(st.lists(st.tuples(UGLY, UGLY), min_size=1, max_size=5))
def test_a_table_of_facts_keeps_to_the_width(rows: list[tuple[str, str]]) -> None:
    cells = tuple((units.clean(a, 30), units.clean(b)) for a, b in rows)
    table = Table(title="Facts", columns=(text_column(""), text_column("")), rows=cells)
    assert all(units.width(line) <= WIDTH for line in lines(table))


def test_wide_characters_take_two_columns() -> None:
    assert units.width("模型 a") == 6
    assert paragraph("模" * 60) == ["模" * 50, "模" * 10]

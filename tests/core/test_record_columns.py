"""Columns are what each record says of itself, and parts share them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import msgspec
import pytest
from made import record

from servecap.columns import Columns, present
from servecap.record import Outcome, Record, Times


def mixed() -> list[Record]:
    """All kinds of ends, with and without chunks, tokens and retries."""
    found = []
    for i, outcome in enumerate([*Outcome] * 3):
        one = record(10.0 + i, e2e_s=1.0 + i / 7, outcome=outcome, user=i % 4, number=i)
        if i % 3 == 0:
            one = msgspec.structs.replace(one, chunk_s=Times(), first_token_s=None)
        if i % 4 == 0:
            one = msgspec.structs.replace(one, output_tokens=None, attempt=2, first_planned_s=0.5)
        found.append(one)
    return found


OTHERS: dict[str, Callable[[Record], object]] = {
    "ended": lambda r: r.outcome not in (Outcome.CENSORED, Outcome.CANCELLED),
    "chunks": lambda r: len(r.chunk_s),
    "gap_max_s": lambda r: max(r.gaps_s(), default=None),
}
NAMES = [name for name, made in vars(Columns).items() if isinstance(made, cached_property)]


@pytest.mark.parametrize("name", NAMES)
def test_a_column_is_what_each_record_says(name: str) -> None:
    records = mixed()
    wanted = [OTHERS[name](r) if name in OTHERS else getattr(r, name) for r in records]
    told = Columns(records)
    chosen = told.ok & (told.end_s > 12.0)
    for part, of in (
        (told, wanted),
        (told.at(chosen), [x for x, yes in zip(wanted, chosen, strict=True) if yes]),
        (told.at(slice(3, 9)).at(slice(2, None)), wanted[5:9]),
    ):
        column = getattr(part, name).tolist()
        assert [None if math.isnan(x) else x for x in column] == of


def test_there_are_columns_of_nothing() -> None:
    empty = Columns([])
    assert len(empty.by_end()) == len(empty.once_each()) == 0
    assert all(len(getattr(empty, name)) == 0 for name in NAMES)


def test_by_end_is_the_order_in_which_they_ended() -> None:
    records = mixed()
    assert Columns(records).by_end().records == records
    assert Columns(records[::-1]).by_end().records == records


def test_what_is_unknown_is_left_out_of_a_copy() -> None:
    told = Columns(mixed())
    some = present(told.ttft_s)
    assert some.tolist() == [r.ttft_s for r in told.records if r.ttft_s is not None]
    some[:] = 0.0
    assert present(told.ttft_s).all(), "the column is as it was"

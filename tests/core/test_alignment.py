"""The offset of another machine's clock: never further off than the error that is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.alignment import SPAN_S, Alignment

ways_s = st.floats(0.0, 0.2)


@given(
    offset_s=st.floats(-1e5, 1e5),
    pings=st.lists(st.tuples(st.floats(0, 5), ways_s, ways_s), min_size=1, max_size=20),
)
def test_truth_is_within_the_error(
    offset_s: float, pings: list[tuple[float, float, float]]
) -> None:
    """Whatever the two ways take, and however unlike they are."""
    alignment = Alignment()
    for sent_s, there_s, back_s in pings:
        alignment.note(sent_s, sent_s + there_s + offset_s, sent_s + there_s + back_s)
    found = alignment.start()
    assert abs(found.offset_s - offset_s) <= found.error_s + 1e-9
    assert found.error_s == pytest.approx(min(there + back for _, there, back in pings) / 2)


def test_drift_is_told_by_the_last_pings_and_unknown_without_any() -> None:
    alignment = Alignment()
    with pytest.raises(ValueError, match="no ping"):
        alignment.start()
    alignment.note(0.0, 100.001, 0.002)
    alignment.start()
    assert alignment.drift() is None
    rate = 50e-6  # seconds a second: a poor crystal
    for second in range(1, 101):
        there_s = second + 0.001 + 100 + rate * second
        alignment.note(second, there_s, second + 0.002)
    drift = alignment.drift()
    assert drift is not None
    assert drift.error_s == pytest.approx(0.002)
    assert 100 * rate - SPAN_S * rate <= drift.offset_s <= 100 * rate

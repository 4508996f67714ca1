"""What the heads of responses tell."""

from __future__ import annotations

import pytest

from servecap.wire.http import retry_after_s

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("told", "date", "wanted"),
    [
        ("0", None, 0.0),
        ("120", None, 120.0),
        ("Wed, 21 Oct 2026 07:29:30 GMT", DATE, 90.0),
        ("Wed, 21 Oct 2026 07:00:00 GMT", DATE, 0.0),  # it is over already
        ("Wed, 21 Oct 2026 07:29:30 GMT", None, None),  # whose clock would it be held against?
        ("Wed, 21 Oct 2026 07:29:30 -0000", DATE, None),  # without a zone
        ("Wed, 21 Oct 2026 07:29:30 GMT", "yesterday", None),
        ("soon", DATE, None),
        ("", DATE, None),
        ("-5", None, None),
        ("1.5", None, None),
        ("²", None, None),
        ("9" * 400, None, 999_999_999.0),
        ("Wed, 99 Oct 99999 07:29:30 GMT", DATE, None),
    ],
)
def test_retry_after(told: str, date: str | None, wanted: float | None) -> None:
    headers = {"retry-after": told} | ({} if date is None else {"date": date})
    assert retry_after_s(headers) == wanted


def test_nothing_said() -> None:
    assert retry_after_s({"date": DATE}) is None

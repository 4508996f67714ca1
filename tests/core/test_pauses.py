"""Gaps of many answers at once are those that each record tells of itself."""

from __future__ import annotations

import math
import random

from servecap import pauses
from servecap.record import Outcome, Record, Times


def answers(lengths: list[int]) -> list[Record]:
    rng = random.Random(3)
    made = []
    for number, length in enumerate(lengths):
        times = sorted(rng.uniform(0, 9) for _ in range(length))
        made.append(
            Record(
                request_id=number, user=0, planned_s=0.0, sent_s=0.0, end_s=9.0,
                outcome=Outcome.OK, chunk_s=Times(times),
            )
        )  # fmt: skip
    return made


def test_gaps_are_those_of_each_record_with_none_across_answers() -> None:
    for lengths in ([], [0], [1, 1], [5], [2, 0, 1, 7, 2], [3] * 9000):
        records = answers(lengths)
        assert pauses.gaps_s(records).tolist() == [gap for r in records for gap in r.gaps_s()]
        longest = [None if math.isnan(x) else x for x in pauses.longest_gaps_s(records).tolist()]
        assert longest == [max(r.gaps_s(), default=None) for r in records]

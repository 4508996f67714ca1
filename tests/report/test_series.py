from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from servecap.columns import Columns
from servecap.record import Counts, Outcome, Record, Times
from servecap.report import series
from servecap.stats import describe

MOMENTS = st.floats(0, 100)
SPANS = st.lists(st.tuples(MOMENTS, st.floats(0, 30)), max_size=20)


def record(user: int, planned_s: float, times: list[float], end_s: float, **more: object) -> Record:
    fields: dict[str, object] = {
        "request_id": 0, "user": user, "planned_s": planned_s, "sent_s": planned_s,
        "end_s": end_s, "outcome": Outcome.OK, "first_token_s": times[0] if times else None,
        "chunk_s": Times(times),
    }  # fmt: skip
    return Record(**(fields | more))  # type: ignore[arg-type]


@given(MOMENTS, st.floats(0.01, 5000), st.integers(1, 300))
def test_bins_are_round_few_and_cover_the_span(start_s: float, length_s: float, most: int) -> None:
    edges = series.bin_edges(start_s, start_s + length_s, most)
    width = float(edges[1] - edges[0])
    assert edges[0] <= start_s + 1e-6 * width
    assert edges[-1] >= start_s + length_s - 1e-6 * width
    assert len(edges) - 1 <= most + 1
    mantissa = width / 10 ** math.floor(math.log10(width) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3


@given(SPANS)
def test_mean_level_is_the_time_that_intervals_cover(spans: list[tuple[float, float]]) -> None:
    edges = np.linspace(0, 130, 27)
    starts = np.array([s for s, _ in spans])
    ends = np.array([s + d for s, d in spans])
    level = series.mean_level(starts, ends, edges)
    for i in range(len(edges) - 1):
        low, high = edges[i], edges[i + 1]
        covered = sum(
            max(0.0, min(e, high) - max(s, low)) for s, e in zip(starts, ends, strict=True)
        )
        assert level[i] == pytest.approx(covered / (high - low), abs=1e-6)


@given(st.lists(st.lists(st.floats(0, 9.99), min_size=1, max_size=9), min_size=1, max_size=9))
def test_no_token_is_lost_or_counted_twice(streams: list[list[float]]) -> None:
    records = []
    expected = 0.0
    for i, times in enumerate(streams):
        times = sorted(times)
        # The server's count differs from the chunks', is missing, or the chunks tell nothing.
        told = [None, 3 * len(times), 5][i % 3]
        chunks = Counts([2] * len(times)) if i % 2 else Counts()
        records.append(record(i, 0.0, times, times[-1], output_tokens=told, chunk_tokens=chunks))
        expected += told if told is not None else len(times) * (2 if i % 2 else 1)
    edges = series.bin_edges(0.0, 10.0)
    (rate,) = series.output_tokens_per_s(records, edges)
    assert float((rate * np.diff(edges)).sum()) == pytest.approx(expected)


def test_tokens_are_put_where_they_arrived() -> None:
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    streamed = record(0, 0.0, [0.5, 1.5], 1.5, output_tokens=6, chunk_tokens=Counts([1, 2]))
    at_once = record(1, 0.0, [], 2.5, output_tokens=7)
    failed = record(2, 0.0, [], 2.5, output_tokens=7, outcome=Outcome.TIMEOUT)
    (rate,) = series.output_tokens_per_s([streamed, at_once, failed], edges)
    assert rate.tolist() == [2.0, 4.0, 7.0]


def test_the_last_moment_belongs_to_the_last_bin() -> None:
    edges = np.array([0.0, 1.0, 2.0])
    done = record(0, 0.0, [2.0], 2.0, output_tokens=1)
    assert series.output_tokens_per_s([done], edges)[0].tolist() == [0.0, 1.0]


@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=900), st.integers(0, 50))
def test_ecdf_rises_to_the_share_that_succeeded(values: list[float], failed: int) -> None:
    x, share = series.ecdf(np.array(values), failed)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(share) > 0).all()
    assert (x[0], x[-1]) == (min(values), max(values))
    assert share[-1] == pytest.approx(len(values) / (len(values) + failed))
    assert len(x) <= 450
    middle = len(x) // 2
    assert sum(v <= x[middle] for v in values) >= round(share[middle] * (len(values) + failed))


def test_bands_are_the_percentiles_of_each_bin() -> None:
    rng = np.random.default_rng(1)
    at, values = rng.uniform(0, 10, 500), rng.exponential(1, 500)
    edges = np.array([0.0, 5.0, 10.0, 15.0])
    spread = series.bands(at, values, edges)
    told = describe(values[at < 5])
    assert told is not None
    assert (spread.median[0], spread.high[0], spread.top[0]) == (told.p50, told.p90, told.max)
    assert spread.count.tolist() == [(at < 5).sum(), (at >= 5).sum(), 0]
    assert math.isnan(spread.median[2])


def test_running_mean_ends_at_the_mean() -> None:
    values = np.array([1.0, 2.0, 6.0])
    assert series.running_mean(values).tolist() == [1.0, 1.5, 3.0]


def test_phases_of_a_user_follow_each_other() -> None:
    run = synthetic.run(users=8, end_s=40, error_share=0.2)
    phases = series.phases(run.records)
    assert phases.users == tuple(range(8))
    for row in range(8):
        mine = sorted(
            s for part in (phases.waiting, phases.streaming, phases.thinking) for s in part
            if s[2] == row
        )  # fmt: skip
        for (_, end_s, _), (start_s, _, _) in pairwise(mine):
            assert start_s == pytest.approx(end_s)  # no gap, no overlap
    failures = sum(not r.ok and r.outcome is not Outcome.CENSORED for r in run.records)
    assert len(phases.failed) == failures > 0


def test_phases_are_cut_at_one_time_for_all() -> None:
    run = synthetic.run(users=30, end_s=200)
    phases = series.phases(run.records, users=10, most=150)
    parts = [*phases.waiting, *phases.streaming, *phases.thinking]
    assert len(parts) <= 150 + 10
    assert phases.end_s < 200
    last = [max(end_s for _, end_s, row in parts if row == i) for i in range(10)]
    assert last == pytest.approx([phases.end_s] * 10)


def test_users_stay_until_the_end_unless_they_leave() -> None:
    edges = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    told = Columns(
        [record(0, 0.0, [0.5], 1.0), record(1, 1.0, [1.5], 3.0), record(0, 1.5, [1.6], 2.0)]
    )
    assert series.users_present(told, edges).tolist() == [1, 2, 1, 0]
    assert series.users_present(told, edges, stay_s=4.0).tolist() == [1, 2, 2, 2]


def test_errors_are_counted_by_kind_most_frequent_first() -> None:
    records = [record(0, 0.0, [], t) for t in (0.1, 1.5, 1.6)]
    kinds = ["http_503", "timeout", "timeout"]
    assert series.error_kinds(kinds) == ["timeout", "http_503"]
    counts = series.errors_per_bin(records, kinds, np.array([0.0, 1.0, 2.0]))
    assert [c.tolist() for c in counts] == [[0, 2], [1, 0]]

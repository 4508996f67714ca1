"""Comparisons: noise is not called a change, a change is, and what is unknown stays unknown."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.cell import Capacity
from servecap.compare import (
    ERRORS,
    METRICS,
    RATES,
    Change,
    compare_capacities,
    compare_runs,
    parse_metrics,
)
from servecap.differing import asked_differently
from servecap.errors import UsageError
from servecap.metrics import Summary
from servecap.record import Outcome, Record, Times
from servecap.run import Header, Run, Status
from servecap.scenario import ClosedLoop, Load, OpenLoop, Scenario, StopRule, Target
from servecap.summarize import summarize

Pair = tuple[Run, Summary]


def made(
    ttft_s: Sequence[float], *, failed: Sequence[int] = (), users: int = 4, every_s: float = 0.1
) -> Pair:
    """A run whose requests end *every_s* after each other with the given TTFTs."""
    found = []
    for i, ttft in enumerate(ttft_s):
        end_s = (i + 1) * every_s
        first_s = end_s - 1.0
        found.append(
            Record(
                request_id=i,
                user=i % users,
                planned_s=first_s - ttft,
                sent_s=first_s - ttft,
                end_s=end_s,
                outcome=Outcome.TIMEOUT if i in failed else Outcome.OK,
                first_token_s=first_s,
                chunk_s=Times([first_s, end_s]),
                prompt_tokens=5,
                output_tokens=11,
            )
        )
    header = Header(
        scenario=Scenario(load=ClosedLoop(users=users, queue=len(found)), stop=StopRule()),
        target=Target(url="http://x", api="openai-chat"),
        source="measured",
        servecap_version="0",
        started_utc="2026-01-01T00:00:00+00:00",
        status=Status.COMPLETE,
    )
    run = Run(header=header, records=found)
    return run, summarize(run)


def drawn(seed: int, *, count: int = 400, scale: float = 1.0, sticky: float = 0.0) -> list[float]:
    """Latencies around 0.2 s; with *sticky* each resembles the one before."""
    rng = random.Random(seed)
    level, found = 0.0, []
    for _ in range(count):
        level = sticky * level + math.sqrt(1 - sticky**2) * rng.gauss(0, 1)
        found.append(0.2 * scale * math.exp(0.3 * level))
    return found


def row(before: Pair, after: Pair, metric: str, confidence: float = 0.95) -> Change:
    found = compare_runs(before, after, metrics=(metric,), confidence=confidence)
    (change,) = found.changes
    return change


def test_a_run_against_itself_shows_no_difference_at_all() -> None:
    one = made(drawn(1))
    found = compare_runs(one, one)
    assert [c.metric for c in found.changes] == list(METRICS)
    assert {c.outcome for c in found.changes} == {"no difference shown"}
    assert {c.change for c in found.changes} == {0.0}


@pytest.mark.parametrize("sticky", [0.0, 0.6])
@pytest.mark.parametrize("metric", ["ttft.mean", "ttft.p50", "ttft.p95"])
def test_noise_is_called_a_change_about_as_rarely_as_promised(metric: str, sticky: float) -> None:
    false = sum(
        row(
            made(drawn(2 * i, sticky=sticky)), made(drawn(2 * i + 1, sticky=sticky)), metric
        ).outcome
        != "no difference shown"
        for i in range(60)
    )
    assert false <= 8  # 3 are expected; P(more than 8) = 0.4% if the promise is just kept


def test_one_table_errs_as_rarely_as_one_row() -> None:
    false = sum(
        any(
            c.outcome in ("better", "worse")
            for c in compare_runs(made(drawn(2 * i)), made(drawn(2 * i + 1))).changes
        )
        for i in range(40)
    )
    assert false <= 6


@pytest.mark.parametrize("metric", ["ttft.mean", "ttft.p50", "ttft.p95"])
def test_a_change_of_a_third_is_seen_and_lies_in_its_interval(metric: str) -> None:
    slower = row(made(drawn(1)), made(drawn(2, scale=4 / 3)), metric)
    assert slower.outcome == "worse"
    assert slower.low is not None
    assert slower.high is not None
    assert slower.low < 1 / 3 < slower.high
    assert row(made(drawn(2, scale=4 / 3)), made(drawn(1)), metric).outcome == "better"


def test_intervals_of_rows_that_resemble_their_neighbours_are_wider() -> None:
    def width(sticky: float) -> float:
        found = row(made(drawn(1, sticky=sticky)), made(drawn(2, sticky=sticky)), "ttft.mean")
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    assert width(0.9) > 2 * width(0.0)


@given(st.floats(0.01, 100.0))
def test_the_unit_of_time_does_not_matter(factor: float) -> None:
    a, b = drawn(1, count=64), drawn(2, count=64)
    plain = row(made(a), made(b), "ttft.p50")
    scaled = row(made([v * factor for v in a]), made([v * factor for v in b]), "ttft.p50")
    assert plain.change == pytest.approx(scaled.change, abs=1e-6)
    assert plain.low == pytest.approx(scaled.low, abs=1e-6)
    assert plain.outcome == scaled.outcome


def test_failures_are_infinitely_slow_in_percentiles_and_a_rate_of_their_own() -> None:
    values = drawn(1, count=200)
    whole, broken = made(values), made(values, failed=range(0, 200, 5))
    errors = row(whole, broken, ERRORS)
    assert errors.outcome == "worse"
    assert errors.change == pytest.approx(0.2)
    assert errors.low is not None
    assert 0 < errors.low < 0.2
    assert row(whole, broken, "ttft.p95").outcome == "unknown"
    assert row(whole, broken, "ttft.p50").change > 0  # type: ignore[operator]


def test_no_failure_in_either_is_no_difference() -> None:
    found = row(made(drawn(1)), made(drawn(2)), ERRORS)
    assert (found.change, found.outcome) == (0.0, "no difference shown")
    assert found.high is not None
    assert 0 < found.high < 0.02


@pytest.mark.parametrize("rate", RATES)
def test_rates_are_better_when_higher(rate: str) -> None:
    slow, fast = made(drawn(1), every_s=0.2), made(drawn(1), every_s=0.1)
    assert row(slow, fast, rate).outcome == "better"
    assert row(fast, slow, rate).outcome == "worse"
    assert row(fast, slow, rate).change == pytest.approx(-0.5, abs=0.05)


def test_too_few_requests_bound_nothing() -> None:
    found = row(made([0.1] * 10), made([10.0] * 10), "ttft.mean")
    assert found.outcome == "no difference shown"
    assert found.high == math.inf
    assert "too few" in found.note


def test_a_percentile_beyond_the_sample_has_no_upper_end() -> None:
    found = row(made(drawn(1, count=60)), made(drawn(2, count=60)), "ttft.p99")
    assert found.high == math.inf
    assert found.outcome == "no difference shown"


def test_figures_that_neither_run_has_are_left_out() -> None:
    found = compare_runs(made(drawn(1)), made(drawn(2)), metrics=("queue.mean", "qps"))
    assert [c.metric for c in found.changes] == ["qps"]


def test_what_was_asked_differently_is_told() -> None:
    found = compare_runs(made(drawn(1)), made(drawn(1), users=8))
    assert any(item.startswith("load: ") and "users=8" in item for item in found.differences)
    assert any("classic" in item for item in found.differences)


def test_only_those_parts_of_what_was_asked_are_told_that_differ() -> None:
    load = ClosedLoop(users=4)
    first, other = (Scenario(load=load, stop=StopRule(duration_s=s)) for s in (60.0, 90.0))
    assert asked_differently(first, other) == ("stop: duration_s=60.0 -> duration_s=90.0",)
    assert asked_differently(first, Scenario(load=load)) == ("stop: duration_s=60.0 -> n/a",)


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (ClosedLoop(users=4), False),
        (ClosedLoop(users=4, queue=9), True),
        (OpenLoop(rate_rps=2.0), False),
        (OpenLoop(rate_rps=2.0, arrivals="trace"), True),
    ],
)
def test_runs_that_cannot_settle_are_named(load: Load, told: bool) -> None:
    run, summary = made(drawn(1))
    header = msgspec.structs.replace(
        run.header, scenario=msgspec.structs.replace(run.scenario, load=load)
    )
    other = (Run(header=header, records=run.records), summary)
    found = compare_runs(other, other, metrics=("qps",)).differences
    assert any("not stationary" in item for item in found) == told


def capacity(users: int, high: int | None) -> Capacity:
    return Capacity(users=users, users_high=high, confidence=0.95)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ((20, 24), (25, 28), "better"),
        ((20, 24), (24, 28), "no difference shown"),
        ((20, 24), (10, 19), "worse"),
        ((20, None), (10, 19), "worse"),
        ((20, None), (100, 110), "no difference shown"),  # it may have carried a thousand
        ((20, 24), (100, None), "better"),
        ((0, 0), (5, 6), "better"),
        ((0, 3), (2, 6), "no difference shown"),
        ((0, 0), (0, 0), "no difference shown"),
    ],
)
def test_capacities_differ_where_their_intervals_do(
    before: tuple[int, int | None], after: tuple[int, int | None], outcome: str
) -> None:
    found = compare_capacities(capacity(*before), capacity(*after))
    assert found.changes[0].outcome == outcome


def test_metrics_are_read_and_refused_by_name() -> None:
    assert parse_metrics("") == METRICS
    assert parse_metrics("gap.p90,qps,qps") == ("gap.p90", "qps")
    for bad in ("ttft", "ttft.p96", "latency.mean", "qps.mean"):
        with pytest.raises(UsageError, match="cannot be compared"):
            parse_metrics(bad)

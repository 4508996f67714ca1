"""Limits held against synthetic records whose truth is known."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from made import record, records, scenario

from servecap import verdict
from servecap.columns import Columns
from servecap.metrics import LimitCheck, Verdict
from servecap.record import Outcome, ServerTimings
from servecap.slo import parse

PASS, FAIL, UNSURE = Verdict.PASS, Verdict.FAIL, Verdict.UNSURE


def check(slo: str, values: list[float], *, failed: list[int] | None = None) -> LimitCheck:
    return verdict.check(parse(slo).limits[0], Columns(records(values, failed=failed or [])))


def spread(mean: float, n: int, *, deviation: float = 0.3, seed: int = 0) -> list[float]:
    random = np.random.default_rng(seed)
    found: list[float] = (mean + deviation * random.uniform(-1, 1, n)).tolist()
    return found


@pytest.mark.parametrize(
    ("mean", "wanted"), [(0.7, PASS), (0.95, PASS), (1.0, UNSURE), (1.05, FAIL), (1.3, FAIL)]
)
def test_mean_far_below_at_and_above_the_limit(mean: float, wanted: Verdict) -> None:
    found = check("ttft.mean<1s", spread(mean, 500, seed=1))
    assert found.verdict is wanted
    assert found.low_s is not None
    assert found.high_s is not None
    assert found.value_s is not None
    assert found.low_s < found.value_s < found.high_s
    assert (found.requests_needed is not None) == (wanted is UNSURE)


def test_mean_needs_requests_in_proportion_to_the_squared_distance() -> None:
    near = check("ttft.mean<1.011s", spread(1.0, 200, deviation=0.5, seed=1))
    far = check("ttft.mean<1.031s", spread(1.0, 200, deviation=0.5, seed=1))
    assert near.verdict is far.verdict is UNSURE
    assert near.requests_needed is not None
    assert far.requests_needed is not None
    assert near.requests_needed > far.requests_needed > 0


def test_requests_needed_for_a_mean_are_enough() -> None:
    """Of runs left unsure, most are settled by twice the requests they were said to need."""
    unsure = settled = 0
    for seed in range(60):
        values = spread(1.0, 20_000, deviation=0.5, seed=seed)
        first = check("ttft.mean<1.03s", values[:200])
        if first.verdict is UNSURE and first.requests_needed is not None:
            unsure += 1
            more = check("ttft.mean<1.03s", values[: 200 + 2 * first.requests_needed])
            settled += more.verdict is not UNSURE
    assert unsure > 30
    assert settled / unsure > 0.6


def test_few_requests_are_unsure_and_say_how_many_more() -> None:
    found = check("ttft.mean<1s", spread(0.5, 20))
    assert (found.verdict, found.requests_needed) == (UNSURE, 12)
    assert found.low_s is None
    assert verdict.check(parse("ttft.mean<1s").limits[0], Columns([])).verdict is UNSURE


@pytest.mark.parametrize(
    ("n", "over", "wanted", "needed"),
    [
        (368, 0, PASS, None),
        (367, 0, UNSURE, 1),
        (555, 1, PASS, None),
        (400, 1, UNSURE, 155),
        (1000, 10, UNSURE, None),  # at the limit: more requests would not settle it
        (300, 10, FAIL, None),
        (500, 500, FAIL, None),
    ],
)
def test_percentile_against_the_exact_binomial(
    n: int, over: int, wanted: Verdict, needed: int | None
) -> None:
    values = [2.0] * over + [0.5] * (n - over)
    found = check("ttft.p99<1s", values)
    assert found.verdict is wanted
    assert found.requests_needed == needed
    assert found.attainment_share == pytest.approx(1 - over / n)


def test_failures_count_as_infinitely_slow_in_percentiles_and_as_misses() -> None:
    found = check("ttft.p95<1s", [0.5] * 200, failed=range(0, 200, 5))  # type: ignore[arg-type]
    assert found.verdict is FAIL
    assert found.value_s == math.inf
    assert found.attainment_share == pytest.approx(0.8)
    mean = check("ttft.mean<1s", [0.5] * 200, failed=range(0, 200, 5))  # type: ignore[arg-type]
    assert mean.verdict is PASS, "failures have the error limit beside a mean"
    assert mean.attainment_share == pytest.approx(0.8)


def test_max_is_about_what_was_seen() -> None:
    assert check("ttft.max<1s", [0.5] * 10).verdict is PASS
    assert check("ttft.max<1s", [0.5] * 9 + [1.1]).verdict is FAIL
    assert check("ttft.max<1s", [0.5] * 10, failed=[3]).verdict is FAIL


@pytest.mark.parametrize(
    ("requests", "failed", "wanted"),
    [
        (0, 0, UNSURE), (58, 0, UNSURE), (59, 0, PASS), (92, 1, UNSURE), (93, 1, PASS),
        (100, 5, UNSURE), (100, 12, FAIL), (20, 20, FAIL),
    ],
)  # fmt: skip
def test_error_limit_of_five_percent(requests: int, failed: int, wanted: Verdict) -> None:
    slo = parse("ttft.mean<1s")
    found, needed, said = verdict.check_errors(slo, requests, failed)
    assert found is wanted
    assert said
    if (requests, failed) == (58, 0):
        assert needed == 1


def test_error_limits_of_nothing_and_of_everything() -> None:
    none, every = parse("ttft<1s,error_rate<0"), parse("ttft<1s,error_rate<100%")
    assert verdict.check_errors(none, 10, 0)[0] is PASS
    assert verdict.check_errors(none, 10_000, 1)[0] is FAIL
    assert verdict.check_errors(every, 10, 10)[0] is PASS


def test_overall() -> None:
    assert verdict.overall([]) is PASS
    assert verdict.overall([PASS, UNSURE]) is UNSURE
    assert verdict.overall([PASS, UNSURE, FAIL]) is FAIL


def test_server_timings_decide_where_they_are_asked_for() -> None:
    """The client saw 0.2 s, the server tells of 2 s in its queue."""
    told = ServerTimings(origin="x", queue_s=1.5, prefill_s=0.5, inference_s=1.0, tpot_s=0.05)
    found = [record(10 + i / 10, server=told) for i in range(100)]
    slo = "ttft.mean<1s,tpot.mean<60ms"
    by_client = verdict.check_all(scenario(slo), Columns(found))
    by_server = verdict.check_all(scenario(slo, timings="server"), Columns(found))
    assert [c.verdict for c in by_client] == [PASS, FAIL]
    assert [c.verdict for c in by_server] == [FAIL, PASS]
    assert by_server[0].value_s == pytest.approx(2.0)


def test_figure_that_no_request_has_is_unsure_and_says_why() -> None:
    plain = [record(10 + i, ttft_s=None) for i in range(50)]
    found = verdict.check(parse("ttft.mean<1s").limits[0], Columns(plain))
    assert (found.verdict, found.value_s) == (UNSURE, None)
    assert "stream" in found.reason


def test_gap_limit_is_about_the_longest_pause_of_each_answer() -> None:
    found = [record(10 + i, e2e_s=3.0, ttft_s=1.0) for i in range(50)]
    assert verdict.check(parse("gap.mean<1s").limits[0], Columns(found)).value_s == pytest.approx(
        2.0
    )


def test_timeouts_leave_the_mean_but_not_the_error_rate() -> None:
    found = [record(10 + i / 10, outcome=Outcome.TIMEOUT, ttft_s=None) for i in range(50)]
    limit = parse("ttft.mean<1s").limits[0]
    assert verdict.check(limit, Columns(found)).verdict is UNSURE
    assert verdict.check_errors(parse("ttft<1s"), 50, 50)[0] is FAIL


@pytest.mark.parametrize("limit", ["ttft.p90<1s", "ttft.mean<1s", "ttft.max<1s"])
def test_retries_that_succeed_make_no_verdict_better(limit: str) -> None:
    """Eleven of a hundred are refused; that all of them do well in the end changes nothing."""
    plain = records(spread(0.5, 100), failed=range(0, 100, 9))
    again = [
        msgspec.structs.replace(r, outcome=Outcome.OK, attempt=2, first_planned_s=r.planned_s)
        for r in plain
        if not r.ok
    ]
    for asked in (verdict.check(parse(limit).limits[0], Columns(plain + again)),):
        alone = verdict.check(parse(limit).limits[0], Columns(plain))
        assert asked.attainment_share == alone.attainment_share
        assert asked.verdict is alone.verdict
        if ".mean" not in limit:
            assert asked == alone


def test_the_mean_holds_a_retry_with_all_that_its_user_waited() -> None:
    plain = records([0.5] * 99)
    last = plain[-1]
    late = msgspec.structs.replace(last, attempt=2, first_planned_s=last.planned_s - 50.0)
    found = verdict.check(parse("ttft.mean<0.9s").limits[0], Columns([*plain, late]))
    assert found.value_s == pytest.approx((0.5 * 99 + 50.5) / 100)

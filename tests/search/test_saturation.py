"""What levels tell of the rate of answers, and how long a queue near it must be watched."""

from __future__ import annotations

import math

import msgspec
import pytest

from servecap.metrics import Flow, FlowState
from servecap.search.evidence import Mean, of_share, of_values
from servecap.search.saturation import HOLDS, service_of
from servecap.slo import Limit


def seen(answered: float, state: FlowState, error: float = 0.01) -> Flow:
    return Flow(
        state=state, start_s=10, end_s=110, arrived_rps=answered * 1.3, answered_rps=answered,
        answered_error=error, answers=10_000, grew_by=0, failed_share=0.0,
    )  # fmt: skip


def test_levels_that_agree_are_averaged_by_their_precision() -> None:
    found = service_of([seen(20, "growing"), seen(20.3, "growing", 0.03)], 1.0)
    assert found is not None
    assert found.rate_rps == pytest.approx(20.03, abs=0.05)
    assert 0.008 < found.error < 0.012
    assert not found.contradicted
    assert found.dispersion == pytest.approx(1 + (10_000 * 0.01**2 + 10_000 * 0.03**2) / 2)


def test_a_queue_that_never_grew_gives_a_lower_bound_only() -> None:
    found = service_of([seen(8, "settled"), seen(12, "settled")], 1.0)
    assert found is not None
    assert (found.rate_rps, found.least_rps) == (None, 12)
    assert found.correlation_s(11.9) == 0
    assert found.reach_rps(60) == math.inf
    assert service_of([], 1.0) is None


def test_more_answered_below_than_above_contradicts() -> None:
    found = service_of([seen(20, "growing"), seen(20, "growing"), seen(24, "settled")], 1.0)
    assert found is not None
    assert found.contradicted
    assert found.error > 0.02


def test_rates_that_fall_from_level_to_level_contradict() -> None:
    found = service_of([seen(x, "growing") for x in (20, 18, 16)], 1.0)
    assert found is not None
    assert found.contradicted


def test_the_queue_remembers_the_longer_the_nearer_to_the_rate_of_answers() -> None:
    found = service_of([seen(20, "growing", 0.001)], 1.0)
    assert found is not None
    at = [found.correlation_s(rate) for rate in (10, 16, 18, 19)]
    assert at == sorted(at)
    assert at[2] == pytest.approx(found.dispersion / 20 / 0.1**2, rel=0.25)
    assert found.correlation_s(20.0) == math.inf
    reach = found.reach_rps(600)
    assert HOLDS * found.correlation_s(reach) == pytest.approx(600, rel=1e-6)


def test_a_window_of_few_memories_tells_no_more_than_so_many_requests() -> None:
    limit = Limit("ttft", "mean", 2.0)
    mean = of_values(limit, [1.0 + 0.1 * math.sin(i) for i in range(400)])
    assert isinstance(mean, Mean)
    mean = msgspec.structs.replace(mean, spread=0.8)
    assert mean.worth_at_most(4.0).error == pytest.approx(0.4)
    assert mean.worth_at_most(1e9).error == mean.error
    share = of_share("x", [False] * 400, 0.05)
    assert share.worth_at_most(5.0).worth == 5.0
    assert share.worth_at_most(5.0).value > share.value
    assert share.worth_at_most(500.0) == share

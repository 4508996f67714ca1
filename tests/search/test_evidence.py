"""Margins: what a level tells of a limit, and when several levels prove it."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, fmean, median, pstdev

import pytest

from servecap import slo, stats
from servecap.record import Outcome, Record, Times, TokenSource
from servecap.run import Header, Run, Status
from servecap.scenario import ClosedLoop, Scenario, Target
from servecap.search.evidence import (
    Mean,
    Percentile,
    Share,
    at_least,
    least_requests,
    margins,
    of_share,
    of_values,
    proven,
)
from servecap.slo import Limit

MEAN, P95 = Limit("ttft", "mean", 2.0), Limit("ttft", "p95", 2.0)


def test_a_mean_at_its_limit_has_margin_0_and_twice_it_has_log_2() -> None:
    for factor in (1.0, 2.0):
        values = [factor * (2.0 + 0.1 * math.sin(i)) for i in range(400)]
        found = of_values(MEAN, values)
        assert found is not None
        assert found.value == pytest.approx(math.log(factor), abs=0.01)


def test_a_margin_needs_values() -> None:
    assert of_values(MEAN, [1.0] * 20) is None
    assert of_values(P95, []) is None


def test_failures_count_as_over_a_percentile_and_not_in_a_mean() -> None:
    values = [1.0 + i % 3 / 10 for i in range(90)] + [math.inf] * 10
    share = of_values(P95, values)
    assert isinstance(share, Share)
    assert (share.over, share.requests) == (10, 100)
    mean = of_values(MEAN, values)
    assert mean is not None
    assert mean.value < 0


def test_a_percentile_tells_how_far_off_its_limit_is_though_no_request_is_over_it() -> None:
    rng = random.Random(2)
    found = of_values(P95, [0.2 * rng.lognormvariate(0, 0.5) for _ in range(60)])
    assert isinstance(found, Percentile)
    assert found.over == 0
    assert found.value == pytest.approx(math.log(0.1) + 1.645 * 0.5, abs=3 * found.error)
    assert found.error < 0.3


@pytest.mark.parametrize(("name", "count"), [("p90", 100), ("p95", 400), ("p99", 300)])
def test_the_error_of_a_percentile_is_mostly_what_it_scatters_by(name: str, count: int) -> None:
    rng, limit = random.Random(4), Limit("ttft", name, 2.0)
    values = [[rng.lognormvariate(0, 0.5) for _ in range(count)] for _ in range(150)]
    found = [m for v in values if (m := of_values(limit, v)) is not None]
    true = 0.5 * NormalDist().inv_cdf(limit.quantile or 0) - math.log(2.0)
    scatter = math.sqrt(fmean((m.value - true) ** 2 for m in found))
    assert fmean(m.value for m in found) == pytest.approx(true, abs=0.3 * scatter)
    assert 0.9 * scatter < median(m.error for m in found) < 1.5 * scatter


def test_a_percentile_above_which_only_failures_lie_tells_their_share_alone() -> None:
    found = of_values(P95, [1.0 + i / 100 for i in range(60)] + [math.inf] * 40)
    assert type(found) is Share
    assert found.value > 0


def test_what_was_left_out_as_warm_up_is_part_of_the_error() -> None:
    def run(slower: float) -> Run:
        asked = Scenario(
            load=ClosedLoop(users=20, users_before=20, think_s=(0.0, 0.0)),
            slo=slo.parse("ttft.mean<2s"),
        )
        records = [
            _record(i, 0.1 * i, (slower if i < 150 else 1.0) * (1.0 + i % 7 / 20))
            for i in range(600)
        ]
        header = Header(
            scenario=asked, target=Target(url="x", api="x"), source="simulated",
            servecap_version="0", started_utc="2026-01-01T00:00:00+00:00",
            status=Status.COMPLETE, load_end_s=62.0,
        )  # fmt: skip
        return Run(header=header, records=records)

    (steady, *_), (stepped, *_) = margins(run(1.0)), margins(run(1.6))
    assert steady.warm_up < 0.02
    assert stepped.value == pytest.approx(steady.value, abs=0.02)
    assert 0.05 < stepped.warm_up <= stepped.error


def _record(number: int, planned_s: float, ttft_s: float) -> Record:
    first_s = planned_s + ttft_s
    return Record(
        request_id=number, user=number % 20, planned_s=planned_s, sent_s=planned_s,
        end_s=first_s + 0.5, outcome=Outcome.OK, first_token_s=first_s,
        chunk_s=Times([first_s, first_s + 0.5]), prompt_tokens=9, output_tokens=2,
        token_source=TokenSource.SERVER,
    )  # fmt: skip


def test_the_share_at_its_limit_has_margin_0_on_average() -> None:
    rng = random.Random(1)
    found = [of_share("x", [rng.random() < 0.05 for _ in range(1000)], 0.05) for _ in range(200)]
    assert fmean(m.value for m in found) == pytest.approx(0, abs=0.03)
    told = fmean(m.error for m in found)
    assert told == pytest.approx(pstdev([m.value for m in found]), rel=0.25)


def test_correlated_requests_are_worth_fewer() -> None:
    waves = [(i // 50) % 2 == 0 and i % 5 == 0 for i in range(1000)]
    shuffled = sorted(waves, key=lambda _: random.Random(3).random())
    random.Random(3).shuffle(shuffled)
    in_waves, apart = of_share("x", waves, 0.05), of_share("x", shuffled, 0.05)
    assert in_waves.worth < 0.8 * apart.worth
    assert in_waves.error > apart.error


def test_where_nothing_may_be_over_only_the_sign_is_told() -> None:
    assert of_share("x", [False] * 50, 0.0).value < 0
    assert of_share("x", [False] * 49 + [True], 0.0).value > 0


def test_proof_of_a_share_is_the_exact_binomial() -> None:
    needed = stats.requests_needed(0, quantile=0.95, confidence=0.999)
    enough, short = (of_share("x", [False] * n, 0.05) for n in (needed, needed - 1))
    assert proven([enough], broken=False, risk=0.001)
    assert not proven([short], broken=False, risk=0.001)
    assert proven([short, short], broken=False, risk=0.001), "levels add up"
    assert proven([of_share("x", [True] * 60, 0.05)], broken=True, risk=0.001)


def test_proof_of_a_mean_weighs_levels_by_their_precision() -> None:
    far = Mean(limit="x", value=-0.3, error=0.1, requests=100)
    assert proven([far], broken=False, risk=0.01)
    assert not proven([far], broken=False, risk=1e-4)
    assert proven([far, far], broken=False, risk=1e-4)
    assert not proven([far], broken=True, risk=0.5)


def test_a_level_given_up_tells_a_lower_bound_with_room() -> None:
    early = at_least(Mean(limit="x", value=0.4, error=0.02, requests=50))
    assert early.value >= 1
    assert early.error >= 0.25


def test_percentiles_need_more_requests_than_means() -> None:
    assert least_requests([MEAN]) == 60
    assert least_requests([MEAN, Limit("ttft", "p99", 1.0)]) == 299


def test_normal_scores_agree_with_the_normal_distribution() -> None:
    found = of_share("x", [i % 10 == 0 for i in range(100_000)], 0.05)
    wanted = NormalDist().inv_cdf(0.10) - NormalDist().inv_cdf(0.05)
    assert found.value == pytest.approx(wanted, abs=0.01)

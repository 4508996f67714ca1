"""What makes a run INVALID, and what does not."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from made import record, run, scenario

from servecap.metrics import Summary
from servecap.record import Outcome, Record, TokenSource
from servecap.run import Health, Run
from servecap.scenario import ClosedLoop, Scenario
from servecap.summarize import summarize

USERS, CYCLE_S, END_S = 8, 2.0, 200.0
STEADY = scenario("ttft.mean<5s", load=ClosedLoop(users=USERS, think_s=(1.0, 1.0)))


def steady() -> list[Record]:
    """Eight users, 1 s of response, 1 s of thinking, for 200 s."""
    return [
        record(
            user * CYCLE_S / USERS + cycle * CYCLE_S + 1.0, user=user, number=cycle * USERS + user
        )
        for cycle in range(int(END_S / CYCLE_S) - 1)
        for user in range(USERS)
    ]


def judged(
    found: list[Record], asked: Scenario = STEADY, *, health: Health | None = None
) -> Summary:
    made: Run = run(found, asked, end_s=END_S)
    if health is not None:
        made = msgspec.structs.replace(
            made, header=msgspec.structs.replace(made.header, health=health)
        )
    return summarize(made)


def changed(**fields: object) -> Callable[[Record], Record]:
    return lambda r: msgspec.structs.replace(r, **fields)


def test_steady_run_is_valid() -> None:
    summary = judged(steady())
    assert summary.invalid_reasons == ()
    assert summary.warnings == ()
    assert summary.qps == pytest.approx(USERS / CYCLE_S, rel=0.02)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: msgspec.structs.replace(r, sent_s=r.planned_s + 0.05), "50 ms late"),
        (changed(cached_tokens=4), "prefix cache"),
        (changed(exact_output=True, asked_output_tokens=50), "shorter than asked"),
        (lambda r: msgspec.structs.replace(r, user=r.user % 5), "only 5 of 8 users"),
    ],
)
def test_records_that_make_a_run_invalid(change: Callable[[Record], Record], said: str) -> None:
    summary = judged([change(r) for r in steady()])
    assert not summary.valid
    assert any(said in reason for reason in summary.invalid_reasons), summary.invalid_reasons
    assert all("\n" not in reason for reason in summary.invalid_reasons)


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (Health(loop_delay_p99_s=0.08), "80 ms late"),
        (Health(cpu_share=0.97), "97% of a core"),
        (Health(loop_delay_p99_s=0.01, cpu_share=0.5), None),
    ],
)
def test_client_that_could_not_keep_up(health: Health, said: str | None) -> None:
    reasons = judged(steady(), health=health).invalid_reasons
    assert (reasons == ()) == (said is None)
    if said is not None:
        assert said in reasons[0]


def test_half_of_the_load_missing_breaks_littles_law() -> None:
    reasons = judged([r for r in steady() if r.request_id % 16 < 8]).invalid_reasons
    assert any("Little's law" in reason for reason in reasons)


def test_server_timings_that_nobody_sent() -> None:
    asked = msgspec.structs.replace(STEADY, timings="server")
    reasons = judged(steady(), asked).invalid_reasons
    assert any("--timings server" in reason for reason in reasons)


def test_classic_run_that_was_cut_off_is_invalid() -> None:
    asked = scenario("ttft.mean<5s", load=ClosedLoop(users=8, queue=100))
    assert judged(steady()[:100], asked).valid
    reasons = judged(steady()[:60], asked).invalid_reasons
    assert any("only 60 of the 100 requests" in reason for reason in reasons)
    each = scenario("ttft.mean<5s", load=ClosedLoop(users=8, each=3))
    assert judged(steady()[:24], each).valid
    assert not judged(steady()[:23], each).valid


def test_nothing_in_the_window_is_told() -> None:
    censored = [changed(outcome=Outcome.CENSORED)(r) for r in steady()[:8]]
    (reason,) = judged(censored).invalid_reasons
    assert "8 were still running" in reason


def test_estimates_are_a_warning() -> None:
    summary = judged([changed(token_source=TokenSource.ESTIMATE)(r) for r in steady()])
    assert summary.valid
    assert any("estimates" in warning for warning in summary.warnings)


def test_dead_server_is_a_failure_and_not_an_invalid_run() -> None:
    dead = [record(i / 10 + 0.1, e2e_s=0.1, ttft_s=None, outcome=Outcome.HTTP_ERROR, user=i % 3)
            for i in range(20)]  # fmt: skip
    summary = judged(dead)
    assert (summary.verdict, summary.valid, summary.error_rate) == ("fail", True, 1.0)

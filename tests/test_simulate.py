"""Simulated runs: the same users and rules as measured ones, in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from servecap import rand
from servecap.engine.spec import EngineSpec
from servecap.errors import UsageError
from servecap.record import Message, Outcome, Record, Request
from servecap.run import Run
from servecap.scenario import ClosedLoop, Load, OpenLoop, Scenario, StopRule, Timeouts
from servecap.simulate import idle_response_s, simulate
from servecap.summarize import summarize

SPEC = EngineSpec(model="llama-13b", gpu="a100-40gb", tp=4)
NARROW = EngineSpec(model="llama-13b", gpu="a100-40gb", tp=4, max_running=1)


def requests(
    *, prompt: int | None = 200, answer: int = 100, exact: bool = True
) -> Iterator[Request]:
    lengths = rand.stream(0, "test")
    number = 0
    while True:
        yield Request(
            request_id=number,
            messages=(Message("user", "one two three"),),
            prompt_tokens=prompt,
            max_output_tokens=lengths.randint(answer // 2, answer) if exact else 4 * answer,
            exact_output=exact,
        )
        number += 1


def scenario(load: Load, **more: object) -> Scenario:
    return Scenario(load=load, **more)  # type: ignore[arg-type]


def outcomes(run: Run) -> Counter[Outcome]:
    return Counter(record.outcome for record in run.records)


def same(a: Record, b: Record) -> bool:
    return a == b and list(a.chunk_s) == list(b.chunk_s)


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
@pytest.mark.parametrize("users", [1, 30, 200])
def test_a_closed_loop_keeps_the_laws_that_every_run_is_audited_by(users: int, engine: str) -> None:
    spec = EngineSpec(
        model="llama-13b", gpu="a100-40gb", tp=4, engine="tgi" if engine == "tgi" else "vllm"
    )
    asked = scenario(ClosedLoop(users=users), stop=StopRule(requests=150))
    run = simulate(asked, spec, requests())
    assert run.header.source == "simulated"
    summary = summarize(run)
    assert summary.invalid_reasons == ()  # Little's law and stationarity are among them
    assert summary.error_rate == 0
    assert summary.requests >= 150
    assert summary.token_sources == {"server": summary.requests}
    assert summary.client["ttft"].mean == pytest.approx(summary.server["ttft"].mean)
    assert summary.client["tpot"].mean == pytest.approx(summary.server["tpot"].mean)


def test_latencies_rise_and_throughput_saturates_with_users() -> None:
    stop = StopRule(requests=400)
    few, many, crowd = (
        summarize(simulate(scenario(ClosedLoop(users=n), stop=stop), SPEC, requests()))
        for n in (5, 100, 800)
    )
    assert few.client["tpot"].mean < many.client["tpot"].mean < crowd.client["tpot"].mean
    assert few.client["ttft"].mean < many.client["ttft"].mean < crowd.client["ttft"].mean
    assert few.qps < many.qps < crowd.qps < 8 * many.qps


def test_the_same_seed_gives_the_same_records() -> None:
    asked = scenario(ClosedLoop(users=20), seed=4)
    first, again = (simulate(asked, SPEC, requests()).records for _ in range(2))
    assert len(first) == len(again)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    other = simulate(scenario(ClosedLoop(users=20), seed=5), SPEC, requests()).records
    assert [r.end_s for r in other[:50]] != [r.end_s for r in first[:50]]


def test_a_record_is_consistent_in_itself() -> None:
    run = simulate(scenario(ClosedLoop(users=30)), SPEC, requests())
    done = [r for r in run.records if r.ok]
    for record in done:
        assert record.server is not None
        assert record.ttft_s == pytest.approx(record.server.ttft_s)
        assert record.output_tokens == record.asked_output_tokens == len(record.chunk_s)
        assert list(record.chunk_s) == sorted(record.chunk_s)
        assert record.chunk_s[-1] == record.end_s
        assert record.lag_s == 0
        assert record.finish_reason == "length"
    assert [r.end_s for r in done] == sorted(r.end_s for r in done)


def test_the_classic_queue_sends_that_many_requests_and_no_more() -> None:
    run = simulate(scenario(ClosedLoop(users=40, queue=250)), SPEC, requests())
    assert outcomes(run) == {Outcome.OK: 250}
    assert run.header.stop_reason == "every request was sent and answered"
    assert run.header.load_end_s is not None
    # Users who think when the queue runs dry look once more, and find nothing.
    late_s = run.header.load_end_s - max(r.end_s for r in run.records)
    assert 0 <= late_s <= 3


def test_each_user_may_send_a_fixed_number() -> None:
    run = simulate(scenario(ClosedLoop(users=7, each=3)), SPEC, requests())
    assert Counter(r.user for r in run.records) == dict.fromkeys(range(7), 3)


def test_a_given_duration_ends_the_run_and_censors_what_is_in_flight() -> None:
    asked = scenario(ClosedLoop(users=50), stop=StopRule(duration_s=10))
    run = simulate(asked, SPEC, requests())
    assert run.header.load_end_s == pytest.approx(10)
    found = outcomes(run)
    assert set(found) == {Outcome.OK, Outcome.CENSORED}
    assert 0 < found[Outcome.CENSORED] <= 50
    assert max(r.end_s for r in run.records) == run.header.load_end_s


def test_arrivals_at_a_constant_rate_are_all_served_on_an_idle_engine() -> None:
    asked = scenario(OpenLoop(rate_rps=2, arrivals="constant"), stop=StopRule(duration_s=60))
    run = simulate(asked, SPEC, requests())
    assert [r.planned_s for r in sorted(run.records, key=lambda r: r.planned_s)] == [
        n / 2 for n in range(120)
    ]
    assert summarize(run).qps == pytest.approx(2, rel=0.05)


def test_a_bound_on_requests_in_flight_turns_the_others_away() -> None:
    asked = scenario(
        OpenLoop(rate_rps=50, arrivals="constant", max_in_flight=5), stop=StopRule(duration_s=20)
    )
    run = simulate(asked, NARROW, requests())
    found = outcomes(run)
    assert found[Outcome.REFUSED] > 500
    assert found[Outcome.CENSORED] <= 5
    assert "5 requests were in flight already" in str(
        next(r.error for r in run.records if r.outcome is Outcome.REFUSED)
    )


def test_users_give_up_after_their_timeouts() -> None:
    asked = scenario(
        ClosedLoop(users=30),
        stop=StopRule(duration_s=60),
        timeouts=Timeouts(first_token_s=2.0, total_s=600),
    )
    run = simulate(asked, NARROW, requests())
    lost = [r for r in run.records if r.outcome is Outcome.TIMEOUT]
    assert lost
    for record in lost:
        assert record.error == "no first token within 2 s"
        assert record.first_token_s is None
        assert 2.0 < record.end_s - record.sent_s <= 2.2 + 1e-9
    assert outcomes(run)[Outcome.OK] > 20  # the place went on being used


def test_what_can_never_be_served_is_an_error_and_time_goes_on() -> None:
    asked = scenario(ClosedLoop(users=3, think_s=(0.0, 0.0)), stop=StopRule(duration_s=1))
    run = simulate(asked, SPEC, requests(prompt=3000))
    assert set(outcomes(run)) == {Outcome.HTTP_ERROR}
    assert run.records[0].status == 400
    assert "more than the model's context of 2048" in str(run.records[0].error)
    assert run.header.load_end_s == pytest.approx(0.2)  # the first look at the stop rule
    assert "requests succeeded" in str(run.header.stop_reason)


def test_natural_answers_and_uncounted_prompts_follow_the_emulators_rules() -> None:
    asked = scenario(ClosedLoop(users=20), stop=StopRule(requests=400))
    run = simulate(asked, SPEC, requests(prompt=None, exact=False))
    done = [r for r in run.records if r.ok]
    assert {r.prompt_tokens for r in done} == {3}
    assert {r.finish_reason for r in done} == {"stop", "length"}
    lengths = [r.output_tokens or 0 for r in done]
    assert max(lengths) == 400
    assert 150 < sum(lengths) / len(lengths) < 210  # 200 before the cut at 400


def test_an_idle_response_is_prefill_and_decode_of_the_mean_lengths() -> None:
    head = [next(requests(prompt=200, answer=2))] * 3
    two = idle_response_s(SPEC, head)
    run = simulate(scenario(ClosedLoop(users=1, each=1)), SPEC, iter(head))
    assert run.records[0].e2e_s == pytest.approx(two)
    assert idle_response_s(SPEC, []) == 0


def test_an_engine_that_cannot_be_built_is_a_usage_error() -> None:
    spec = EngineSpec(model="llama-65b", gpu="a30")
    with pytest.raises(UsageError, match="does not fit"):
        simulate(scenario(ClosedLoop(users=1)), spec, requests())

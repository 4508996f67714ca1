from __future__ import annotations

import math
import unicodedata
from statistics import fmean

import msgspec
import pytest
import synthetic

from servecap import steady
from servecap.columns import Columns
from servecap.metrics import Flow, FlowState, LimitCheck, Summary, Verdict
from servecap.record import TokenSource
from servecap.report import language, units, words
from servecap.report.text import summary_text
from servecap.run import Run, Status
from servecap.scenario import OpenLoop, WorkloadSpec
from servecap.slo import Limit
from servecap.summarize import summarize


def told(run: Run, **changes: object) -> str:
    """The run's report, with fields of its summary replaced."""
    return summary_text(run, msgspec.structs.replace(summarize(run), **changes))


def row(text: str, name: str) -> list[str]:
    """The figures of the first line that begins with *name*."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return line.strip().removeprefix(name).split()


def test_the_verdict_comes_first_with_a_sentence_to_quote() -> None:
    run = synthetic.run(error_share=0, end_s=90)
    lines = summary_text(run, summarize(run)).splitlines()
    assert lines[0] == "VALID, PASS"
    quote = " ".join(lines[2:5])
    assert quote.startswith("At 64 users (think 1 to 3 s), llama-13b keeps ttft.mean<3s")
    assert "TTFT mean 1" in quote
    assert "QPS" in quote


def test_a_broken_limit_is_named() -> None:
    text = told(synthetic.run(error_share=0, tpot_s=0.2, end_s=120))
    assert text.startswith("VALID, FAIL")
    assert "llama-13b breaks tpot.mean<100ms:" in text
    assert row(text, "TPOT mean < 100 ms")[0] == "FAIL"
    assert row(text, "TTFT mean < 3 s")[0] == "PASS"


def test_too_many_errors_are_a_broken_limit_too() -> None:
    text = told(synthetic.run(error_share=0.4, end_s=90))
    assert "breaks error_rate<5%" in " ".join(text.split())
    assert row(text, "error rate < 5%")[0] == "FAIL"
    kinds = next(line for line in text.splitlines() if line.strip().startswith("error_rate"))
    assert "broken_stream" in kinds
    assert "http_503" in kinds
    assert "refused" in kinds


def test_unsure_says_how_many_more_requests_it_takes() -> None:
    check = LimitCheck(
        limit=Limit("ttft", "p99", 1.0), verdict=Verdict.UNSURE, value_s=0.9, low_s=0.8,
        high_s=math.inf, attainment_share=0.99, requests_needed=1200,
    )  # fmt: skip
    run = synthetic.run(error_share=0, slo="ttft.p99<1s")
    text = told(run, checks=(check,), verdict=Verdict.UNSURE, requests=300, requests_ok=300)
    flat = " ".join(text.split())
    assert "it is undecided whether llama-13b keeps ttft.p99<1s" in flat
    assert "measure about 1,200 more requests (--requests 1500)" in flat
    assert "800 ms or more" in text  # nothing bounds it from above: no infinity is printed


def test_invalid_gives_its_reasons_and_no_figure_to_quote() -> None:
    reason = "the client was the bottleneck: use another machine"
    text = told(synthetic.run(error_share=0), invalid_reasons=(reason,))
    assert text.startswith("INVALID\n")
    assert f"Reason: {reason}" in text
    assert "PASS" not in text.split("Service level objective")[0]


def test_every_metric_is_there_by_both_clocks() -> None:
    run = synthetic.run(server=True, timings="both", error_share=0)
    text = told(run)
    lines = text.splitlines()
    for name in ("TTFT (first_token_latency)", "TPOT (avg_token_latency)", "E2E (response_time)"):
        clocks = [line.split(")")[1].split()[0] for line in lines if line.strip().startswith(name)]
        assert clocks == ["client", "server"], name
    for name in (
        "ITL (gap", "prompt tokens", "output tokens", "queue time", "prefill time",
        "users (concurrency_users)", "requests in flight", "benchmark_time",
        "QPS (throughput_request_rate)", "TPS (throughput_token_rate)", "goodput", "error_rate",
        "measured window", "send lag", "loop delay", "CPU",
    ):  # fmt: skip
        assert any(line.strip().startswith(name) for line in lines), name


def test_figures_are_the_summary_s_own() -> None:
    run = synthetic.run(error_share=0)
    summary = summarize(run)
    cells = row(summary_text(run, summary), "TTFT (first_token_latency)")
    ttft = summary.client["ttft"]
    values = [getattr(ttft, name) for name in ("mean", "p50", "p90", "p95", "p99", "max")]
    assert cells == ["client", "ms", *(f"{v * 1e3:,.0f}" for v in values)]


def test_simulated_is_never_shown_as_measured() -> None:
    text = told(synthetic.run(source="simulated", error_share=0, end_s=90))
    assert text.splitlines()[0] == "VALID, PASS (simulated)"
    assert "Simulated: predicted by the engine model, not measured." in " ".join(text.split())
    assert "loop delay  n/a (simulated: there is no client)" in text


def test_nothing_measured_is_not_a_zero() -> None:
    run = msgspec.structs.replace(synthetic.run(), records=[])
    text = told(run)
    assert text.startswith("INVALID\n")
    assert "(no request succeeded)" in text
    for name in ("error_rate", "QPS (throughput_request_rate)", "requests in flight"):
        if name == "error_rate" or summarize(run).window.start_s == summarize(run).window.end_s:
            assert row(text, name)[0] == "n/a", name


def test_a_percentile_among_failures_says_why_it_is_unknown() -> None:
    text = told(synthetic.run(error_share=0.3, end_s=90, slo="ttft.p99<3s"))
    assert row(text, "TTFT p99 < 3 s")[1] == "n/a"
    assert "a failed request counts as infinitely slow" in " ".join(text.split())
    assert "inf" not in text.replace("infinitely", "")


def test_estimates_and_interruption_are_marked() -> None:
    run = synthetic.run(
        token_source=TokenSource.ESTIMATE, status=Status.INTERRUPTED, error_share=0,
        streamed=False, timings="server", server=True,
    )  # fmt: skip
    text = told(run)
    assert "ESTIMATES" in text
    assert "The run is interrupted" in text
    assert "judged by the server's clock (--timings server)" in text
    assert "TTFT, TPOT and ITL by the client's clock: n/a" in text


def test_open_loop_tells_the_rate_asked() -> None:
    run = synthetic.run(load=OpenLoop(rate_rps=12.5), users=50, error_share=0, end_s=90)
    text = told(run)
    assert "At 12.5 requests/s (poisson arrivals)" in text
    assert "open loop, 12.5 requests/s asked" in text
    of_sessions = synthetic.run(load=OpenLoop(rate_rps=12.5, think_s=(1.0, 3.0)), end_s=90)
    text = told(of_sessions)
    assert "open loop, 12.5 sessions/s asked" in text
    assert "sessions/s" in next(line for line in text.splitlines() if "scheduled" in line)


@pytest.mark.parametrize("text", [synthetic.HOSTILE, "模型" * 60, "x" * 500, "\ud800"])
def test_foreign_text_neither_escapes_nor_breaks_the_width(text: str) -> None:
    report = told(synthetic.run(text=text, server=True, timings="both"))
    assert not any(unicodedata.category(char)[0] == "C" for char in report if char != "\n")
    assert max(map(units.width, report.splitlines())) <= 100


@pytest.mark.parametrize(
    ("state", "english", "chinese"),
    [
        ("settled", "the queue settles: ", "队列趋于稳定："),
        ("growing", "the queue grows without bound: ", "队列无限增长："),
        ("unclear", "whether the queue settles is unclear: ", "队列是否趋于稳定尚不明确："),
    ],
)
def test_open_loop_tells_what_came_and_what_was_answered(
    state: FlowState, english: str, chinese: str
) -> None:
    run = synthetic.run(load=OpenLoop(rate_rps=20), error_share=0)
    found = Flow(
        state=state, start_s=1, end_s=60, arrived_rps=20.5, answered_rps=18.5,
        answered_error=0.01, answers=1000, grew_by=40, failed_share=0.0,
    )  # fmt: skip
    summary = msgspec.structs.replace(
        summarize(run), flow=found, scheduled_rps=20.0, achieved_rps=20.0
    )
    text = summary_text(run, summary)
    assert english + "20.5 requests/s came, 18.5 answered (±2.0%)" in " ".join(text.split())
    assert words.flow(found).startswith(english)
    assert language.say(words.flow(found), "zh").startswith(chinese + "每秒到达 20.5 个请求")


def test_summary_type_has_no_figure_that_the_report_forgets() -> None:
    shown = {
        "window", "users", "rate_rps", "in_flight_mean", "in_flight_max", "benchmark_time_s",
        "requests", "requests_ok", "requests_censored", "errors", "error_rate", "qps",
        "output_tps", "total_tps", "goodput_rps", "client", "server", "token_sources", "checks",
        "verdict", "scheduled_rps", "achieved_rps", "rate_of", "parts", "not_sent", "retries",
        "retries_ok", "stability", "telemetry", "invalid_reasons", "warnings", "flow",
    }  # fmt: skip
    assert set(Summary.__struct_fields__) - {"format"} == shown


def mixed() -> Run:
    """A run whose every third request is a long one of the second workload, and some fail."""
    run = synthetic.run(end_s=60)
    spec = WorkloadSpec(source="mix:70%chat-en,30%docs/long.jsonl")
    scenario = msgspec.structs.replace(run.scenario, workload=spec)
    records = [
        msgspec.structs.replace(
            r, part=int(r.request_id % 3 == 0), prompt_tokens=3000 if r.request_id % 3 == 0 else 50
        )
        for r in run.records
    ]
    header = msgspec.structs.replace(run.header, scenario=scenario)
    return msgspec.structs.replace(run, header=header, records=records)


def test_mix_tells_the_figures_of_each_part() -> None:
    run = mixed()
    summary = summarize(run)
    chat, docs = summary.parts
    assert (chat.name, chat.share) == ("chat-en", 0.7)
    assert docs.name == "docs/long.jsonl"
    assert docs.share == pytest.approx(0.3)
    assert chat.requests + docs.requests == summary.requests
    assert chat.requests_ok + docs.requests_ok == summary.requests_ok
    assert chat.qps + docs.qps == pytest.approx(summary.qps)
    failed = sum((p.error_rate or 0.0) * p.requests for p in summary.parts)
    assert failed == pytest.approx(summary.error_rate * summary.requests)
    inside = steady.counted(Columns(run.records), summary.window)
    own = [r for r in inside.records if r.ok and r.part == 1]
    assert docs.client["ttft"].mean == pytest.approx(fmean(r.ttft_s or 0.0 for r in own))
    assert docs.client["prompt_tokens"].max == docs.client["prompt_tokens"].min == 3000
    assert set(docs.client) == {
        "ttft", "ttft_sent", "tpot", "e2e", "prompt_tokens", "output_tokens"
    }  # fmt: skip
    text = told(run)
    assert "Parts of the mix" in text
    assert len([line for line in text.splitlines() if "docs/long.jsonl" in line]) >= 4
    assert max(map(units.width, text.splitlines())) <= 100


def test_part_without_a_request_has_no_figures() -> None:
    run = mixed()
    kept = [r for r in run.records if r.part == 0]
    _, docs = summarize(msgspec.structs.replace(run, records=kept)).parts
    assert (docs.requests, docs.error_rate, docs.client) == (0, None, {})
    assert "n/a" in next(
        line
        for line in told(msgspec.structs.replace(run, records=kept)).splitlines()
        if "docs/long" in line
    )

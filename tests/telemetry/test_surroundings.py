"""What is seen around a run becomes figures, and reasons where it matters."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from made import record, run, scenario

from servecap.metrics import Summary
from servecap.run import Run
from servecap.sample import Histogram, Sample, Source
from servecap.scenario import OpenLoop, StopRule
from servecap.summarize import summarize

ASKED = scenario(load=OpenLoop(rate_rps=4), stop=StopRule(duration_s=60))


def seen(
    source: Source = "server",
    ttft_s: float = 0.2,
    per_s: float = 4.0,
    **values: Callable[[float], float] | float,
) -> list[Sample]:
    """A look every second; values may depend on the time."""
    return [
        Sample(
            at_s=float(at),
            source=source,
            took_s=0.01,
            values={k: v(at) if callable(v) else v for k, v in values.items()},
            histograms={}
            if source != "server"
            else {"ttft": Histogram((0.1, 1.0), (0, at * per_s, at * per_s), at * per_s * ttft_s)},
        )
        for at in range(61)
    ]


def told(samples: list[Sample]) -> Summary:
    records = [record(i / 4, number=i) for i in range(4, 240)]
    made: Run = run(records, ASKED, end_s=60.0)
    return summarize(msgspec.structs.replace(made, telemetry=tuple(samples)))


def test_gauges_and_counters() -> None:
    found = told(seen(running=lambda at: at % 2, preemptions=lambda at: 10 + 2 * at)).telemetry
    assert found is not None
    running, preempted = found.readings["server.running"], found.readings["server.preemptions"]
    assert running.mean == pytest.approx(0.5, abs=0.02)
    assert (running.low, running.high) == (0, 1)
    assert preempted.per_s == pytest.approx(2.0)
    assert found.server["ttft"].mean_s == pytest.approx(0.2)
    assert (found.server["ttft"].p95_low_s, found.server["ttft"].p95_high_s) == (0.1, 1.0)


def test_a_server_that_was_started_anew_has_no_sum() -> None:
    found = told(seen(preemptions=lambda at: 100 - at)).telemetry
    assert found is not None
    assert "server.preemptions" not in found.readings


def test_nothing_is_said_of_a_server_that_is_well() -> None:
    summary = told(seen(running=1.0, kv_used_share=0.5, preemptions=3.0))
    assert summary.valid, summary.invalid_reasons
    assert summary.warnings == ()


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (seen(kv_used_share=0.99, waiting=4.0), "KV cache was full (up to 99%); 4.0 requests"),
        (seen(preemptions=lambda at: at), "preempted 5"),
        (seen("gpu", throttled_share=0.5), "throttled 50% of the time"),
        (seen("client", cpu_share=0.99), "client's machine was busy to 99%"),
        (seen(ttft_s=0.1), "by the client's clock 200 ms: the rest is network"),
        (seen(ttft_s=0.4), "only 200 ms: the server counts something else"),
    ],
)
def test_limits_are_warned_of(samples: list[Sample], said: str) -> None:
    summary = told(samples)
    assert summary.valid, summary.invalid_reasons
    assert any(said in warning for warning in summary.warnings), summary.warnings


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (
            seen(prefix_hit_tokens=lambda at: 5 * at, prefix_asked_tokens=lambda at: 10 * at),
            "counts 50% of the prompt tokens as found in its prefix cache",
        ),
        (seen(per_s=8.0), "others use it, too"),
    ],
)
def test_another_load_than_ours_is_invalid(samples: list[Sample], said: str) -> None:
    summary = told(samples)
    assert any(said in reason for reason in summary.invalid_reasons), summary


def test_slow_metrics_are_data() -> None:
    slow = [msgspec.structs.replace(s, took_s=4.0) for s in seen(running=1.0)]
    slow[30] = Sample(at_s=30.0, source="server", took_s=10.0, error="timed out")
    summary = told(slow)
    assert any("1 of" in w and "the slowest took 10.0 s" in w for w in summary.warnings)


def test_growth_of_the_servers_memory_is_measured() -> None:
    course = told(seen(rss_bytes=lambda at: 1e9 + 1e7 * at)).stability
    assert course is not None
    assert course.drifts["server_rss"].change_share == pytest.approx(0.44, abs=0.05)
    assert course.drifts["server_rss"].significant


def test_a_run_that_nobody_looked_at() -> None:
    assert told([]).telemetry is None

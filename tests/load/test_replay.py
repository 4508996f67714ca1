"""Traces played to their end: every row that can be sent is in the run, at its time."""

from __future__ import annotations

from pathlib import Path

import pytest
from playback import play

from servecap.engine.spec import EngineSpec
from servecap.load import feed_for
from servecap.run import Run
from servecap.scenario import OpenLoop, Replay, Scenario, StopRule, WorkloadSpec
from servecap.simulate import simulate
from servecap.summarize import summarize
from servecap.workload import source

SAMPLES = Path(__file__).parents[1] / "workload/traces"
SHARED = Path(__file__).resolve().parents[2] / "../shared/data/datasets"
ENGINE = EngineSpec(model="llama-3.1-8b", gpu="h100", tp=1)


def replayed(file: Path, **scale: float) -> tuple[source.Workload, Run]:
    spec = WorkloadSpec(source=str(file), replay=Replay(**scale))
    workload = source.load(spec)
    assert workload.player is not None
    load = OpenLoop(rate_rps=workload.player.rate_rps(0), arrivals="trace")
    scenario = Scenario(load=load, workload=spec, stop=StopRule(max_duration_s=1e7))
    return workload, simulate(scenario, ENGINE, workload.requests(0))


@pytest.mark.parametrize("name", ["azure2023.csv", "azure2024.csv", "burstgpt1.csv",
                                  "burstgpt2.csv", "bailian.jsonl", "plain.csv"])  # fmt: skip
def test_every_row_is_sent_at_its_time(name: str) -> None:
    workload, run = replayed(SAMPLES / name, time_scale=0.5)
    assert workload.player is not None
    rows = workload.player.trace.rows
    records = sorted(run.records, key=lambda r: r.request_id)
    assert [r.planned_s for r in records] == [row.due_s * 2 for row in rows]
    assert [r.output_tokens for r in records] == [row.out_tokens for row in rows]
    assert [(r.session, r.turn) for r in records] == [(row.session, row.turn) for row in rows]
    assert run.header.stop_reason == "every request was sent and answered"


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("trace_burstgpt1_first400.csv", 383),
        ("trace_azure2024_conv_excerpt10.csv", 10),
        pytest.param("trace_mooncake_conversation_first2500.jsonl", 2500, marks=pytest.mark.slow),
        pytest.param("trace_azure2023_code.csv", 8819, marks=pytest.mark.slow),
        pytest.param("trace_azure2023_conv.csv", 19366, marks=pytest.mark.slow),
    ],
)
def test_real_traces_are_played_to_their_end(name: str, rows: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the shared data sets are not here")
    slower = 0.2 if "mooncake" in name else 1.0  # 41,000 prompt tokens/s are too many for one GPU
    _, run = replayed(SHARED / name, time_scale=slower)
    assert len(run.records) == rows
    assert all(r.ok for r in run.records)
    summary = summarize(run)
    assert summary.scheduled_rps == pytest.approx(summary.rate_rps, rel=0.01)


def test_rates_are_over_the_time_in_which_the_trace_sends(tmp_path: Path) -> None:
    """And not over the minutes that its last answers may take."""
    file = tmp_path / "trace.csv"
    file.write_text("timestamp,in,out\n" + "".join(f"{0.1 * i!r},50,2000\n" for i in range(101)))
    _, run = replayed(file)
    summary = summarize(run)
    assert summary.window.end_s > 20
    assert summary.rate_rps == pytest.approx(10.1)
    assert summary.scheduled_rps == pytest.approx(10.1)
    assert summary.achieved_rps == pytest.approx(10.1, rel=0.01)


def test_sends_do_not_wait_for_answers() -> None:
    workload = source.load(WorkloadSpec(source=str(SAMPLES / "azure2023.csv"), replay=Replay()))
    scenario = Scenario(load=OpenLoop(rate_rps=1, arrivals="trace"))
    feed = feed_for(scenario, workload.requests(0), response_guess_s=1)
    arrivals, records = play(feed, lambda _: 1000.0)
    assert len(arrivals) == len(records) == 6
    assert max(a.planned_s for a in arrivals) < min(r.end_s for r in records)
    assert feed.finished

"""No coordinated omission: a server that stalls for a second shows in every open load shape."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from drive import for_s, measured
from scripted import Call, serving

from servecap.load import OpenArrivals
from servecap.record import Arrival, Request
from servecap.run import Run
from servecap.scenario import ClosedLoop, OpenLoop, Replay, Scenario, WorkloadSpec
from servecap.schedule import Day, Ramp, Steps
from servecap.summarize import summarize

FREEZE_AT_S, FREEZE_S, RUN_S, RATE = 0.6, 1.0, 2.4, 60.0
FIXED = WorkloadSpec(source="fixed:8/2")


class Freezing:
    """Answers at once, but for a second in which it only listens."""

    def __init__(self, at_s: float = FREEZE_AT_S) -> None:
        self.at_s = at_s
        self.start_s: float | None = None
        self.came_s: list[float] = []

    async def reply(self, call: Call) -> None:
        now_s = time.monotonic()
        self.start_s = self.start_s or now_s
        self.came_s.append(now_s - self.start_s)
        if self.at_s <= now_s - self.start_s < self.at_s + FREEZE_S:
            await asyncio.sleep(self.start_s + self.at_s + FREEZE_S - now_s)
        await call.answer()

    @property
    def during(self) -> int:
        return sum(self.at_s <= t < self.at_s + FREEZE_S for t in self.came_s)


def frozen_run(
    load: OpenLoop | ClosedLoop, workload: WorkloadSpec = FIXED, *, later_s: float = 0.0
) -> tuple[Run, Freezing]:
    freezing = Freezing(FREEZE_AT_S + later_s)
    stop = for_s(RUN_S + later_s)
    scenario = Scenario(load=load, workload=workload, stop=stop, seed=5)
    with serving(freezing.reply) as server:
        return measured(server.url, scenario), freezing


def shown(run: Run, freezing: Freezing) -> None:
    """The stall is in the p99, and requests went on being sent meanwhile."""
    summary = summarize(run)
    start_s = min(r.sent_s for r in run.records) + freezing.at_s
    planned = sum(start_s <= r.planned_s < start_s + FREEZE_S for r in run.records)
    assert planned >= 10
    assert summary.client["ttft"].p99 > 0.8 * FREEZE_S
    assert summary.error_rate == 0
    assert freezing.during > 0.5 * planned
    late = [r for r in run.records if r.ok and r.ttft_s is not None and r.ttft_s > 0.3]
    assert len(late) > 0.3 * planned, "all but those that came at the stall's end waited so long"


SHAPES = {
    "constant": OpenLoop(rate_rps=RATE, arrivals="constant"),
    "poisson": OpenLoop(rate_rps=RATE),
    "gamma": OpenLoop(rate_rps=RATE, arrivals="gamma", cv=2.0),
    "ramp": OpenLoop(rate_rps=RATE / 2, schedule=Ramp(1.5 * RATE, RUN_S)),
    "steps": OpenLoop(rate_rps=RATE, schedule=Steps((RATE, RATE / 2, 2 * RATE), RUN_S / 3)),
    "day": OpenLoop(rate_rps=RATE, schedule=Day((2, 1, 3, 2), RUN_S)),
}


@pytest.mark.parametrize(
    "shape",
    [
        "gamma",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("constant", "poisson")),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("ramp", "steps", "day")),
    ],
)
def test_stall_shows_in_every_open_shape(shape: str) -> None:
    run, freezing = frozen_run(SHAPES[shape])
    shown(run, freezing)


def test_stall_shows_where_sessions_arrive() -> None:
    """Users come all the same; those who are waiting send no next turn meanwhile."""
    load = OpenLoop(rate_rps=RATE / 2, think_s=(0.05, 0.1))
    run, freezing = frozen_run(load, WorkloadSpec(source="sessions:3x8/2"), later_s=1.0)
    shown(run, freezing)
    ends = {(r.user, r.turn): r.end_s for r in run.records}
    starts = sorted(r.planned_s for r in run.records if r.turn == 0)
    assert starts == pytest.approx([a.planned_s for a in planned_without_server(load, len(starts))])
    for r in run.records:
        if r.turn:
            assert 0.05 <= r.planned_s - ends[r.user, r.turn - 1] <= 0.1


def planned_without_server(load: OpenLoop, number: int) -> list[Arrival]:
    feed = OpenArrivals(load, (Request(request_id=i, messages=()) for i in range(number)), seed=5)
    return feed.take(60.0)


def test_stall_shows_in_a_replayed_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    rows = [f"{i / RATE * 10!r},8,2" for i in range(int(RUN_S * RATE * 2))]
    file.write_text("timestamp,in,out\n" + "\n".join(rows) + "\n")
    run, freezing = frozen_run(
        OpenLoop(rate_rps=RATE, arrivals="trace"),
        WorkloadSpec(source=str(file), replay=Replay(time_scale=10)),
    )
    shown(run, freezing)
    planned = sorted(r.planned_s for r in run.records)
    assert planned == pytest.approx([i / RATE for i in range(len(planned))])


def test_ceiling_fails_arrivals_and_delays_none() -> None:
    load = OpenLoop(rate_rps=RATE, arrivals="constant", max_in_flight=5)
    run, freezing = frozen_run(load)
    summary = summarize(run)
    assert summary.not_sent > 0.5 * RATE * FREEZE_S
    assert summary.errors["refused"] > 0
    assert summary.achieved_rps is not None
    assert summary.scheduled_rps is not None
    assert summary.achieved_rps < summary.scheduled_rps
    assert freezing.during < 10
    assert run.header.load_end_s is not None
    assert len(run.records) == pytest.approx(run.header.load_end_s * RATE, rel=0.1)
    assert [r.request_id for r in sorted(run.records, key=lambda r: r.planned_s)] == list(
        range(len(run.records))
    ), "every arrival is in the run"


def test_impatient_users_give_up_and_count_as_failed() -> None:
    load = ClosedLoop(users=3, think_s=(0.01, 0.02), queue=200)
    base = Scenario(load=load, workload=FIXED)
    patience = msgspec.structs.replace(base.timeouts, first_token_s=0.3)
    freezing = Freezing()
    with serving(freezing.reply) as server:
        run = measured(server.url, msgspec.structs.replace(base, timeouts=patience))
    gave_up = [r for r in run.records if r.outcome == "timeout"]
    assert len(gave_up) >= 3
    assert all("no first token" in (r.error or "") for r in gave_up)
    assert all(r.end_s - r.planned_s >= 0.3 for r in gave_up)
    assert summarize(run).errors["timeout"] == len(gave_up)

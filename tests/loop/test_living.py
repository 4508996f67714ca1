"""One load through several levels at a scripted server: nothing is lost, nothing starts anew."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import made
import msgspec
import pytest
from drive import WORKLOAD
from scripted import Call, serving

from servecap.errors import DiskError, UsageError
from servecap.level import Between, Level
from servecap.measure import Driver
from servecap.probe import TargetSpec, open_bench
from servecap.record import Outcome, decode
from servecap.run import Run, Status
from servecap.scenario import ClosedLoop, OpenLoop, Scenario, StopRule
from servecap.store import LATER, read_run
from servecap.summarize import summarize

ASKED = Scenario(
    load=ClosedLoop(users=1, think_s=(0.05, 0.15)), workload=WORKLOAD, stop=StopRule(requests=30)
)


def users(count: int) -> Scenario:
    load = ClosedLoop(users=count, think_s=(0.05, 0.15))
    return msgspec.structs.replace(ASKED, load=load)


def doubts(run: Run) -> list[str]:
    """Why the run is INVALID; but client and server share this process, and a busy machine."""
    return [x for x in summarize(run).invalid_reasons if not x.startswith("client_limited")]


def constant(rate_rps: float) -> OpenLoop:
    return OpenLoop(rate_rps=rate_rps, arrivals="constant")


async def fixed(call: Call) -> None:
    await call.answer(first_s=0.1)


def test_levels_go_on_from_each_other_and_keep_every_request(tmp_path: Path) -> None:
    with serving(fixed) as server:
        bench = open_bench(TargetSpec(url=server.url), WORKLOAD, ASKED.timeouts)
        before = len(server.asked)
        with bench.levels(0, ASKED.timeouts) as level:
            runs = [
                level(users(n), tmp_path / f"{place}", None)
                for place, n in enumerate((6, 18, 18, 9))
            ]
        asked = len(server.asked) - before
    loads = [run.scenario.load for run in runs]
    assert [x.users_before for x in loads if isinstance(x, ClosedLoop)] == [None, 6, 18, 18]
    for run, count in zip(runs, (6, 18, 18, 9), strict=True):
        summary = summarize(run)
        assert doubts(run) == []
        assert summary.requests >= 30
        cycle_s = summary.client["e2e"].mean + 0.1
        assert summary.qps == pytest.approx(count / cycle_s, rel=0.15), "so many users, no more"
        assert summary.in_flight_max <= count
        assert [r.request_id for r in read_run(Path(run.path or "")).records] == [
            r.request_id for r in run.records
        ]
    ended = Counter(r.request_id for run in runs for r in run.records if r.ok)
    open_at_end = {
        r.request_id for run in runs for r in run.records if r.outcome is Outcome.CENSORED
    }
    assert set(ended.values()) == {1}, "each answer is in one level only"
    known = set(ended) | open_at_end
    assert known == set(range(len(known))), "and none that was sent before the last end is missing"
    assert len(known) <= asked
    assert open_at_end - set(ended) <= {r.request_id for r in runs[-1].records}, "what was cut off"


def test_a_request_that_spans_a_change_is_open_in_one_level_and_ends_in_the_next(
    tmp_path: Path,
) -> None:
    with serving(fixed) as server:
        bench = open_bench(TargetSpec(url=server.url), WORKLOAD, ASKED.timeouts)
        with bench.levels(0, ASKED.timeouts) as level:
            first, second = (level(users(8), tmp_path / name, None) for name in "ab")
    cut = {r.request_id: r for r in first.records if r.outcome is Outcome.CENSORED}
    over = {r.request_id: r for r in second.records if r.planned_s < 0}
    assert cut
    assert cut.keys() <= over.keys()
    end_s = first.header.load_end_s
    assert end_s is not None
    for number, record in cut.items():
        assert record.end_s == pytest.approx(end_s)
        assert over[number].ok
        assert over[number].e2e_s >= 0.1
        assert over[number].planned_s == pytest.approx(record.planned_s - end_s, abs=0.25)
    assert summarize(first).in_flight_mean == pytest.approx(4, rel=0.25)


def test_rates_go_on_from_each_other(tmp_path: Path) -> None:
    with serving(fixed) as server:
        bench = open_bench(TargetSpec(url=server.url), WORKLOAD, ASKED.timeouts)
        with bench.levels(0, ASKED.timeouts) as level:
            runs = [
                level(
                    msgspec.structs.replace(ASKED, load=constant(rate)),
                    tmp_path / f"{rate}", None,
                )
                for rate in (30.0, 90.0)
            ]  # fmt: skip
    for run, rate in zip(runs, (30, 90), strict=True):
        summary = summarize(run)
        assert doubts(run) == []
        assert summary.scheduled_rps == pytest.approx(rate, rel=0.1)


def test_ctrl_c_ends_a_level_and_keeps_it(tmp_path: Path) -> None:
    pressed: list[int] = []

    async def interrupted(call: Call) -> None:
        # Once: several calls may see that so many were asked, and a second Ctrl-C is another thing.
        if len(call.server.asked) >= 36 and not pressed:
            pressed.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        await call.answer(first_s=0.05)

    kept: list[Run] = []
    with serving(interrupted) as server:
        bench = open_bench(TargetSpec(url=server.url), WORKLOAD, ASKED.timeouts)
        with bench.levels(0, ASKED.timeouts) as level:
            endless = msgspec.structs.replace(users(6), stop=StopRule(requests=300))
            kept.append(level(endless, tmp_path / "a", None))
    (run,) = kept
    assert run.header.status is Status.INTERRUPTED
    assert "Ctrl-C" in (run.header.stop_reason or "")
    stored = read_run(tmp_path / "a")
    assert stored.header.status is Status.INTERRUPTED
    assert len(stored.records) == len(run.records) > 20


def test_a_level_that_cannot_be_stored_ends_nothing_else(tmp_path: Path) -> None:
    with serving(fixed) as server:
        bench = open_bench(TargetSpec(url=server.url), WORKLOAD, ASKED.timeouts)
        with bench.levels(0, ASKED.timeouts) as level:
            level(users(4), tmp_path / "a", None)
            with pytest.raises(UsageError, match="holds a run already"):
                level(users(4), tmp_path / "a", None)
            again = level(users(5), tmp_path / "b", None)
    assert doubts(again) == []


def test_a_disk_that_gets_full_between_two_levels_stops_the_search(tmp_path: Path) -> None:
    """What ends there has a file of its own; here a folder has that name."""
    ended = threading.Semaphore(0)

    async def told(call: Call) -> None:
        await call.answer(first_s=0.1)
        ended.release()

    def through_levels() -> None:
        for place in itertools.count():
            folder = tmp_path / f"{place}"
            (folder / LATER).mkdir(parents=True)
            level(users(6), folder, None)
            while ended.acquire(blocking=False):
                pass  # those of the level, or the one that found no room already
            ended.acquire(timeout=1)  # else the next level may begin before anything came

    with serving(told) as server:
        bench = open_bench(TargetSpec(url=server.url), WORKLOAD, ASKED.timeouts)
        with bench.levels(0, ASKED.timeouts) as level:
            with pytest.raises(DiskError, match="the search was stopped"):
                through_levels()
            assert doubts(level(users(6), tmp_path / "anew", None)) == []
    assert read_run(tmp_path / "0").header.status is Status.COMPLETE


def test_a_disk_that_gets_full_just_after_a_level_leaves_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The level is over, but nobody has woken up yet to take its run."""
    settle = Driver._settle

    def then_full(driver: Driver, level: Level) -> None:
        settle(driver, level)
        driver._record(made.record(1.0, number=1000))

    (tmp_path / "0" / LATER).mkdir(parents=True)  # a folder where the file would be
    with serving(fixed) as server:
        bench = open_bench(TargetSpec(url=server.url), WORKLOAD, ASKED.timeouts)
        with bench.levels(0, ASKED.timeouts) as level:
            monkeypatch.setattr(Driver, "_settle", then_full)
            assert level(users(6), tmp_path / "0", None).header.status is Status.COMPLETE
            with pytest.raises(DiskError, match="the search was stopped"):
                level(users(6), tmp_path / "1", None)
    assert read_run(tmp_path / "0").header.status is Status.COMPLETE


def test_what_the_next_level_cannot_store_stays_where_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int, __: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    header = made.run([], made.scenario(), status=Status.PARTIAL).header
    loop = asyncio.new_event_loop()
    last, following = (Level(header, tmp_path / name, loop.create_future()) for name in "ab")
    loop.close()
    between = Between(last)
    for number in range(3):
        between.add(made.record(number + 1.0, number=number))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskError, match="0 finished records"):
            between.into(following)
    between.close()
    lines = (tmp_path / "a" / LATER).read_bytes().splitlines()
    assert [decode(line).request_id for line in lines] == [0, 1, 2]

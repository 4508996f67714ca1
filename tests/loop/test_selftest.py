"""The client's ceiling: measured in short, kept, and told of in runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from drive import for_s, measured
from scripted import Call, serving

from servecap import __version__, selftest
from servecap.errors import ServecapError
from servecap.record import Outcome, Record, Times
from servecap.scenario import ClosedLoop, Scenario
from servecap.selftest import Level, SelfTest, Together


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_event_is_seen_and_none_before_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "LEVELS", ((4, 50), (16, 50)))
    monkeypatch.setattr(selftest, "_LEVEL_S", 0.3)
    monkeypatch.setattr(selftest, "_REQUESTS_S", 0.2)
    found = selftest.run()
    assert [level.streams for level in found.levels] == [4, 16]
    for level in found.levels:
        assert -0.001 < level.delay_p50_s <= level.delay_p99_s
        assert level.cpu_share > 0
        assert 0 < level.events_per_s <= 1.3 * level.asked_per_s
    assert found.events_per_core_s > 0
    assert found.requests_per_s > 0


def test_several_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "LEVELS", ((4, 50),))
    monkeypatch.setattr(selftest, "_LEVEL_S", 0.3)
    monkeypatch.setattr(selftest, "_REQUESTS_S", 0.2)
    found = selftest.run(2)
    both = found.together
    assert both is not None
    assert both.workers == 2
    assert both.events_per_s > 0
    assert both.requests_per_s > 0
    assert both.delay_p99_s > -0.001
    assert selftest.run(1).together is None


def test_a_load_process_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(selftest, "_one_of", broken)
    with pytest.raises(ServecapError, match="a load process failed"):
        selftest._together(2, LEVEL)


LEVEL = Level(
    streams=4,
    asked_per_s=200.0,
    events_per_s=200.0,
    cpu_share=0.1,
    delay_p50_s=0.0,
    delay_p99_s=0.0,
    kept_up=True,
)
FOUND = SelfTest(
    when_utc="2026-01-01T00:00:00+00:00",
    version=__version__,
    machine=selftest.machine(),
    events_per_core_s=1000.0,
    requests_per_s=10.0,
    levels=(),
    shared_cores=False,
)


def test_run_says_how_near_to_its_ceiling_the_client_was() -> None:
    async def prompt(call: Call) -> None:
        await call.answer()

    asked = Scenario(load=ClosedLoop(users=2, think_s=(0.0, 0.1)), stop=for_s(0.4))
    asked = msgspec.structs.replace(
        asked, workload=msgspec.structs.replace(asked.workload, source="fixed:8/2")
    )
    with serving(prompt) as server:
        silent = measured(server.url, asked)
        selftest.keep(FOUND)
        told = measured(server.url, asked)
    assert not any("self-test" in note for note in silent.header.notes)
    (note,) = (note for note in told.header.notes if "self-test" in note)
    assert "of what 1 process can take" in note


def test_several_processes_are_held_against_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "kept", lambda: FOUND)
    record = Record(
        request_id=0, user=0, planned_s=0.0, sent_s=0.0, end_s=1.0, outcome=Outcome.OK,
        chunk_s=Times([0.5] * 99),
    )  # fmt: skip
    one = selftest.nearness([record] * 4, 1.0, 1)  # 396 of 1000 events, 4 of 10 requests
    assert one is not None
    assert "80% of what 1 process can" in one
    two = selftest.nearness([record] * 4, 1.0, 2)
    assert two is not None
    assert "40% of what 2 processes can take here by the last self-test of one" in two
    both = Together(workers=2, events_per_s=1500.0, requests_per_s=15.0, delay_p99_s=0.0)
    monkeypatch.setattr(selftest, "kept", lambda: msgspec.structs.replace(FOUND, together=both))
    measured = selftest.nearness([record] * 4, 1.0, 2)
    assert measured is not None
    assert measured.endswith("53% of what 2 processes can take here by the last self-test")


def test_self_test_of_another_machine_or_version_says_nothing_here() -> None:
    for other in ({"machine": "elsewhere"}, {"version": "0"}):
        selftest.keep(msgspec.structs.replace(FOUND, **other))
        assert selftest.kept() is None
    selftest.keep(FOUND)
    assert selftest.kept() == FOUND
    selftest.cache_path().write_bytes(b"{")
    assert selftest.kept() is None


def test_levels_rise() -> None:
    """The ceiling is taken from the last level that the server kept up with."""
    rates = [streams * rate for streams, rate in selftest.LEVELS]
    assert rates == sorted(rates)

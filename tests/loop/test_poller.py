"""Which sockets are ready, and when a time has come: with Linux's own means and without them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import uvloop
from drive import WORKLOAD, ask, measured
from scripted import Call, serving

from servecap.record import Outcome
from servecap.scenario import ClosedLoop, Scenario
from servecap.wire import poller
from servecap.wire.poller import Alarm


@pytest.fixture(params=["native", "portable"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "portable":
        monkeypatch.setattr(poller, "sys", SimpleNamespace(platform="other"))
        monkeypatch.setattr(poller, "_timer_fd", lambda: None)
    return name


@pytest.mark.usefixtures("means")
def test_whole_run() -> None:
    async def prompt(call: Call) -> None:
        await call.answer()

    load = ClosedLoop(users=6, think_s=(0.0, 0.02), queue=40)
    with serving(prompt) as server:
        run = measured(server.url, Scenario(load=load, workload=WORKLOAD))
    assert sorted(r.request_id for r in run.records) == list(range(40))
    assert Counter(r.outcome for r in run.records) == {Outcome.OK: 40}
    assert all(r.lag_s >= 0 for r in run.records), "never early"


@pytest.mark.usefixtures("means")
def test_requests_larger_than_a_sockets_buffer_go_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel does not take at once waits until it does."""
    import drive

    from servecap.record import Message, Request

    text = "x" * 12_000_000
    big = Request(request_id=0, messages=(Message("user", text),), max_output_tokens=2)
    monkeypatch.setattr(drive, "requests", lambda: iter([big]))
    with serving() as server:
        (record,) = ask(server.url)
        assert len(server.asked[0]) > len(text)
    assert record.outcome is Outcome.OK


def test_alarm_rings_once_and_not_early(means: str) -> None:
    rung: list[float] = []

    async def talk() -> float:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def ring() -> None:
            rung.append(time.monotonic())
            done.set_result(None)

        alarm = Alarm(loop, ring)
        alarm.set(time.monotonic() + 60)  # replaced by the next
        at_s = time.monotonic() + 0.02
        alarm.set(at_s)
        await asyncio.wait_for(done, 30)
        alarm.close()
        return at_s

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        at_s = runner.run(talk())
    assert len(rung) == 1
    assert rung[0] >= at_s - (1e-6 if means == "native" else 0.002)


@pytest.mark.usefixtures("means")
def test_alarm_for_what_has_passed_rings_at_once() -> None:
    async def talk() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        alarm = Alarm(loop, lambda: done.set_result(None))
        alarm.set(-5.0)
        await asyncio.wait_for(done, 30)
        alarm.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk())


@pytest.mark.usefixtures("means")
def test_what_is_put_off_is_done_in_order() -> None:
    """More than fits into one turn goes on in the next, though no socket is ready any more."""
    done: list[int] = []
    slow_s = 0.0002

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        found = poller.Poller(loop)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        over = loop.create_future()

        def work(number: int) -> None:
            until_s = time.monotonic() + slow_s
            while time.monotonic() < until_s:
                pass
            done.append(number)
            if number == 19:
                over.set_result(None)

        class Reader:
            def readable(self) -> None:
                ours.recv(1)
                for number in range(20):
                    found.put_off(partial(work, number))
                assert not done, "not before the sockets were served"

        found.reads(ours.fileno(), Reader())
        theirs.send(b"x")
        await asyncio.wait_for(over, 30)
        found.forget(ours.fileno())
        found.close()
        ours.close()
        theirs.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk())
    assert done == list(range(20))

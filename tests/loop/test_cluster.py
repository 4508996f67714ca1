"""Load from the nodes of a Ray cluster: a real one on loopback, and a worker that falls silent."""

from __future__ import annotations

import math
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import psutil
import pytest
from drive import WORKLOAD, for_s, requests
from scripted import Call, serving

from servecap.engine.spec import EngineSpec
from servecap.errors import UsageError
from servecap.measure import Progress, measure
from servecap.pipe import Bye, End, Ping, Pipe, Pong, Ready, Send, Start
from servecap.plan.rehearsal import rehearse
from servecap.plan.router import Traffic
from servecap.predict.harness import Lengths
from servecap.preflight import Prepared
from servecap.probe import TargetSpec, open_bench
from servecap.record import Outcome
from servecap.run import Health, Run, Status
from servecap.scenario import ClosedLoop, OpenLoop, Scenario
from servecap.slo import parse
from servecap.store import read_run
from servecap.summarize import summarize
from servecap.workers import Link, Workers

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
# Ray reads it when it is imported: its processes then listen on loopback only.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
STORE_BYTES = 80 * 2**20  # of objects, each node: as few as Ray takes


def prepared(url: str) -> Prepared:
    return open_bench(
        TargetSpec(url=url), WORKLOAD, Scenario(load=ClosedLoop(users=1)).timeouts
    ).prepared


def run_on(
    url: str,
    load: ClosedLoop | OpenLoop,
    out: Path,
    *,
    ray: str | None,
    duration_s: float = 60.0,
    on_progress: Any = None,
) -> Run:
    """Two load processes, on the nodes of a cluster or beside us."""
    return measure(
        Scenario(load=load, workload=WORKLOAD, stop=for_s(duration_s)),
        prepared(url),
        requests(),
        response_guess_s=0.05,
        out=out,
        on_progress=on_progress,
        workers=2,
        ray=ray,
    )


class TwoNodes:
    """A head that works for nobody, and two nodes with a CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        common: dict[str, Any] = {
            "node_ip_address": "127.0.0.1",
            "object_store_memory": STORE_BYTES,
        }
        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **common},
        )
        self._nodes = [self._cluster.add_node(num_cpus=1, **common) for _ in range(2)]
        self._cluster.wait_for_nodes()
        self.address: str = self._cluster.address

    def kill_one(self) -> None:
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def shutdown(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    cluster = TwoNodes()
    try:
        yield cluster
    finally:
        cluster.shutdown()


def actors() -> list[psutil.Process]:
    """The load processes that Ray has started below this one."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "LoadActor" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def same_mean(one: list[float], other: list[float]) -> bool:
    """Whether the means lie within 4 standard errors of each other, and a millisecond."""
    error_s = math.sqrt(variance(one) / len(one) + variance(other) / len(other))
    return abs(fmean(one) - fmean(other)) <= 4 * error_s + 0.001


@needs_ray
@pytest.mark.slow
def test_two_nodes_are_as_two_processes_until_one_dies(nodes: TwoNodes, tmp_path: Path) -> None:
    draw = random.Random(1)

    async def uneven(call: Call) -> None:
        await call.answer(first_s=draw.uniform(0.05, 0.15))

    load = ClosedLoop(users=10, think_s=(0.02, 0.06))
    with serving(uneven) as server:
        far = run_on(server.url, load, tmp_path / "far", ray=nodes.address, duration_s=5)
        near = run_on(server.url, load, tmp_path / "near", ray=None, duration_s=5)
        assert_same(far, near)
        rate = OpenLoop(rate_rps=60.0, arrivals="constant")
        sent = run_on(server.url, rate, tmp_path / "rate", ray=nodes.address, duration_s=2)
        planned = sorted(r.planned_s for r in sent.records)
        assert planned == pytest.approx([i / 60 for i in range(len(planned))])
        assert 115 <= len(planned) <= 121
        lost = killed_in_the_middle(server.url, load, nodes, tmp_path / "lost")
    assert_lost(lost, tmp_path / "lost")
    psutil.wait_procs(actors(), timeout=10)
    assert actors() == [], "no load process is left behind"


@needs_ray
@pytest.mark.slow
def test_a_plan_is_rehearsed_on_two_nodes_as_it_is_here(nodes: TwoNodes) -> None:
    fleet = Traffic(
        spec=EngineSpec(model="llama-13b", gpu="a100-40gb", tp=2),
        instances=2,
        users=8,
        lengths=Lengths(prompt_tokens=200, output_tokens=40),
        think_s=(0.5, 1.5),
        cycle_s=2.0,
    )
    slo = parse("ttft.mean<3s")
    seen: list[int] = []
    (here,) = rehearse([fleet], slo, workers=1)
    (there,) = rehearse(
        [fleet], slo, ray=nodes.address, watch=lambda done, _total: seen.append(done)
    )
    assert len(there.runs) > 1
    assert [run.mean("ttft") for run in there.runs] == [run.mean("ttft") for run in here.runs]
    assert seen == list(range(1, len(there.runs) + 1)), "it was the cluster that played them"


def assert_same(far: Run, near: Run) -> None:
    one, other = summarize(far), summarize(near)
    assert not [why for why in one.invalid_reasons if "client" in why]
    assert same_mean(
        [r.ttft_s or 0.0 for r in far.records if r.ok],
        [r.ttft_s or 0.0 for r in near.records if r.ok],
    )
    assert same_mean(
        [r.e2e_s for r in far.records if r.ok], [r.e2e_s for r in near.records if r.ok]
    )
    assert one.qps == pytest.approx(other.qps, rel=0.1)
    assert far.header.health.processes == 2
    assert len({r.request_id for r in far.records}) == len(far.records)
    clocks = far.header.health.nodes
    assert len(clocks) == 2
    for clock in clocks:  # one machine: the true offset is 0
        assert abs(clock.offset_s) <= clock.error_s < 0.02
        assert clock.drift_s is not None
        assert clock.drift_error_s is not None
        assert abs(clock.drift_s) <= clock.drift_error_s


def killed_in_the_middle(url: str, load: ClosedLoop, nodes: TwoNodes, out: Path) -> Run:
    killers: list[threading.Thread] = []

    def on_progress(progress: Progress) -> None:
        if not killers and progress.ended >= 20:
            killers.append(threading.Thread(target=nodes.kill_one))
            killers[0].start()

    try:
        return run_on(url, load, out, ray=nodes.address, on_progress=on_progress)
    finally:
        for killer in killers:
            killer.join()


def assert_lost(run: Run, out: Path) -> None:
    failure = run.header.health.failure
    assert failure is not None
    assert "on node 127.0.0.1" in failure
    assert "5 of 10 users were lost with it" in failure
    assert run.header.status is Status.PARTIAL
    assert sum(r.ok for r in run.records) >= 20
    assert {r.outcome for r in run.records if r.error == failure} <= {Outcome.CANCELLED}
    assert len({r.request_id for r in run.records}) == len(run.records)
    assert [r.request_id for r in read_run(out).records] == [r.request_id for r in run.records]
    assert [clock.lost for clock in run.header.health.nodes].count(True) == 1
    assert any(failure in reason for reason in summarize(run).invalid_reasons)


@needs_ray
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://somewhere:10001", "on a node of the cluster"),
        ("local", "on a node of the cluster"),
        ("somewhere", "auto, or HOST:PORT"),
        ("127.0.0.1:99999", "auto, or HOST:PORT"),
        ("127.0.0.1:1", "no Ray cluster answers there"),
    ],
)
def test_what_cannot_be_joined(address: str, says: str, tmp_path: Path) -> None:
    async def prompt(call: Call) -> None:
        await call.answer()

    with serving(prompt) as server, pytest.raises(UsageError, match=says) as caught:
        run_on(server.url, ClosedLoop(users=1), tmp_path / "run", ray=address)
    assert "\n" not in str(caught.value)


class FarWorker(threading.Thread):
    """The other side of a link, played: its clock is off, and it may stop answering."""

    def __init__(self, sock: socket.socket, *, ahead_s: float, answers: int) -> None:
        super().__init__(daemon=True)
        self._pipe = Pipe(sock)
        self._ahead_s = ahead_s
        self._answers = answers
        self.start_s: float | None = None

    def run(self) -> None:
        self._pipe.send(Ready())
        for message in self._pipe.wait_for(time.monotonic() + 30):
            match message:
                case Ping(sent_s) if self._answers:
                    self._answers -= 1
                    self._pipe.send(Pong(sent_s, time.monotonic() + self._ahead_s))
                case Start(start_s):
                    self.start_s = start_s
                case Send() | Ping():
                    pass
                case End():
                    self._pipe.send(Bye(Health()))


def far_crew(ahead_s: float, answers: int) -> tuple[Workers, FarWorker]:
    ours, theirs = socket.socketpair()
    worker = FarWorker(theirs, ahead_s=ahead_s, answers=answers)
    worker.start()
    link = Link(Pipe(ours), fate=lambda: "is gone", stop=worker.join, node="far")
    return Workers([link]), worker


def test_worker_is_told_the_start_on_its_own_clock_and_silence_is_its_loss(tmp_path: Path) -> None:
    async def prompt(call: Call) -> None:
        await call.answer()

    crew, worker = far_crew(ahead_s=1000.0, answers=50)
    with serving(prompt) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("servecap.measure.forked", lambda *_: crew)
        patch.setattr("servecap.workers.SILENT_PINGS", 3)
        begun_s = time.monotonic()
        run = run_on(
            server.url, ClosedLoop(users=3, think_s=(0.0, 0.0)), tmp_path / "run", ray=None
        )
    assert worker.start_s is not None
    assert 999.9 < worker.start_s - begun_s < 1005
    (clock,) = run.header.health.nodes
    assert abs(clock.offset_s - 1000) <= clock.error_s
    assert clock.drift_s is None
    assert clock.lost
    assert "3 of 3 users were lost" in (run.header.health.failure or "")
    assert {r.outcome for r in run.records} == {Outcome.CANCELLED}
    assert len(run.records) >= 1


def test_worker_that_never_answers_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servecap.workers._START_LIMIT_S", 0.2)
    with pytest.raises(RuntimeError, match="load process 1 did not start"):
        far_crew(ahead_s=0.0, answers=0)

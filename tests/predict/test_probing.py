"""The probe plan: which runs, within which time, what of them is believed, what they tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from servecap import slo as slos
from servecap.engine import fast
from servecap.engine.spec import EngineSpec
from servecap.errors import InvalidRun, UsageError
from servecap.metrics import Summary
from servecap.predict import calibrate, probing, profile
from servecap.predict.figures import Case, capacity
from servecap.predict.harness import Harness, Lengths
from servecap.predict.place import Tuning, place
from servecap.predict.probing import Level, Probed
from servecap.record import Record
from servecap.run import Run, Status
from servecap.scenario import Scenario, WorkloadSpec
from servecap.simulate import simulate
from servecap.workload import source

needs_numba = pytest.mark.skipif(
    not fast.COMPILED, reason="numba is not installed: without it these take minutes"
)
SERVER = EngineSpec(model="llama2-7b", gpu="a100-40gb", max_running=8)
# What the user believes of the same server: a device that nobody knows, wrongly described.
SHEET = """\
name: Wonder-1
memory_gib: 40
memory: hbm
bandwidth_gb_per_s: 700
fp16_tflops: 900
"""


def unfronted(tuning: Tuning) -> Tuning:
    """As simulated servers are: with no front end."""
    return msgspec.structs.replace(tuning, host=msgspec.structs.replace(tuning.host, front_s=0.0))


def taken_for(folder: Path) -> EngineSpec:
    (folder / "wonder.yaml").write_text(SHEET)
    return EngineSpec(model="llama2-7b", gpu=str(folder / "wonder.yaml"))


def as_it_is(run: Run, folder: Path) -> Run:  # noqa: ARG001 - of whatever level
    return run


class Server:
    """Answers scenarios in virtual time; its clock is the sum of the runs.

    *seen_as*: what becomes of a level's run before the probes see it.
    """

    def __init__(self, seen_as: Callable[[Run, Path], Run] = as_it_is) -> None:
        self.seen_as = seen_as
        self.now_s = 0.0
        self.seen: list[Scenario] = []

    def measure(self, scenario: Scenario, folder: Path) -> Run:
        self.seen.append(scenario)
        requests = source.load(scenario.workload).requests(scenario.seed)
        run = simulate(scenario, SERVER, requests)
        self.now_s += run.header.load_end_s or 0.0
        return self.seen_as(run, folder)

    def probed(
        self, spec: EngineSpec, levels: list[Level], budget_s: float
    ) -> tuple[Probed, list[tuple[Level, Summary | None, str | None]]]:
        told: list[tuple[Level, Summary | None, str | None]] = []
        found = probing.probe(
            self.measure,
            spec,
            levels,
            Path("nowhere"),
            budget_s=budget_s,
            now=lambda: self.now_s,
            on_level=lambda *words: told.append(words),
        )
        return found, told


def test_the_plan_covers_prompts_batches_and_a_long_context() -> None:
    levels = probing.plan(12, 2000)
    assert [x.prompt_tokens for x in levels if x.purpose == "prefill"] == [32, 128, 512, 1000]
    assert [x.users for x in levels if x.purpose == "decode"] == [1, 2, 4, 8, 12]
    assert [(x.users, x.prompt_tokens) for x in levels if x.purpose == "context"] == [(4, 1000)]
    assert [x.users for x in probing.plan(1, 64)] == [1, 1]


def test_prompts_are_asked_for_in_the_servers_own_tokens() -> None:
    level = Level(purpose="decode", users=2, prompt_tokens=300, answers=(32, 64))
    assert level.workload(3.0) == "mix:50.0000%fixed:100/32,50.0000%fixed:100/64"
    assert len(list(zip(range(3), source.load(_of(level)).requests(0), strict=False))) == 3


def _of(level: Level) -> WorkloadSpec:
    return WorkloadSpec(source=level.workload(1.0))


@needs_numba
def test_probes_tell_a_server_that_the_data_sheet_gets_wrong(tmp_path: Path) -> None:
    """The limit of running requests, step times, and so the capacity of a load never run."""
    server, believed = Server(), taken_for(tmp_path)
    found, told = server.probed(believed, probing.plan(32, 4096), 600.0)
    assert found.max_running == 8
    assert [level.users for level, _, _ in told if level.purpose == "decode"] == [1, 2, 4, 8, 16]
    assert found.skipped == ()
    assert server.now_s < 120
    fitted = calibrate.fit(found.rows, profile.prior("vllm"), name="wonder").profile
    old, harness = profile.prior("vllm"), Harness(max_running=8)
    asked = Lengths(prompt_tokens=200, output_tokens=100)
    real = Case(place=place("llama2-7b", "a100-40gb", 1), lengths=asked, harness=harness)
    model = msgspec.structs.replace(real, place=place("llama2-7b", believed.gpu, 1))
    device, wonder = real.place.gpu, model.place.gpu
    for users in (1, 4, 9):
        truth = real.figures(unfronted(old.tuning(device)), users, seeds=4)
        naive = model.figures(old.tuning(wonder), users, seeds=4)
        predicted = model.figures(fitted.tuning(wonder), users, seeds=4)
        assert naive.tpot_s > 1.5 * truth.tpot_s
        assert predicted.tpot_s == pytest.approx(truth.tpot_s, rel=0.03)
        assert predicted.ttft_s == pytest.approx(truth.ttft_s, rel=0.15)
    slo = slos.parse("ttft.mean<300ms")
    most, _ = capacity(real, old.tuning(device), slo, seeds=4)
    assert capacity(model, fitted.tuning(wonder), slo, seeds=4)[0] == pytest.approx(most, rel=0.06)


def test_the_time_is_kept_and_what_was_not_begun_is_told(tmp_path: Path) -> None:
    server = Server()
    levels = probing.plan(8, 4096)
    found, told = server.probed(taken_for(tmp_path), levels, 12.0)
    assert server.now_s <= 12.5
    assert len(told) == len(levels)
    assert len(found.rows) + len(found.skipped) == len(levels)
    left = [s.stop.max_duration_s for s in server.seen]
    assert max(left) <= 2 * 12 / len(levels) * 1.5


def test_runs_that_cannot_be_believed_are_no_rows(tmp_path: Path) -> None:
    """Requests that are too long fail; nothing is left where all do."""
    server = Server()
    good = Level(purpose="prefill", users=1, prompt_tokens=32, answers=(8,))
    long = msgspec.structs.replace(good, prompt_tokens=30_000)
    found, _ = server.probed(taken_for(tmp_path), [good, long], 60.0)
    assert [row.users for row in found.rows] == [1]
    assert [name for name, _ in found.skipped] == ["prefill-1-users-30000-tokens"]
    with pytest.raises(InvalidRun, match="no level could be believed"):
        server.probed(taken_for(tmp_path), [long], 60.0)


def ended(run: Run, status: Status) -> Run:
    return msgspec.structs.replace(run, header=msgspec.structs.replace(run.header, status=status))


def test_a_sweep_that_cannot_be_believed_twice_is_not_driven_further(tmp_path: Path) -> None:
    """Each level of several users fails: the third is not begun, the long context is."""
    server = Server(lambda run, at: ended(run, Status.PARTIAL) if "decode" in at.name else run)
    found, told = server.probed(taken_for(tmp_path), probing.plan(8, 256), 60.0)
    assert [level.users for level, _, _ in told if level.purpose == "decode"] == [1, 2]
    assert told[-1][0].purpose == "context"
    assert found.max_running is None


@needs_numba
def test_late_first_tokens_are_no_limit_where_the_rate_goes_on_rising(tmp_path: Path) -> None:
    """On a busy machine two users' prompts took three times as long; the server has 8 places."""

    def late(record: Record) -> Record:
        first_s = record.planned_s + 0.6 * (record.end_s - record.planned_s)
        return msgspec.structs.replace(record, first_token_s=first_s)

    def two_late(run: Run, folder: Path) -> Run:
        if "decode-2-" not in folder.name:
            return run
        return msgspec.structs.replace(run, records=[late(r) for r in run.records])

    found, _ = Server(two_late).probed(taken_for(tmp_path), probing.plan(32, 4096), 600.0)
    assert found.max_running == 8


def test_an_interrupted_run_ends_the_probes(tmp_path: Path) -> None:
    server = Server(lambda run, _: ended(run, Status.INTERRUPTED))
    with pytest.raises(KeyboardInterrupt):
        server.probed(taken_for(tmp_path), probing.plan(1, 64), 10.0)


def test_names_that_are_not_known_are_told() -> None:
    with pytest.raises(UsageError, match="wonder"):
        Server().probed(EngineSpec(model="wonder", gpu="a30"), probing.plan(1, 64), 10.0)

"""Stored runs as rows to calibrate with: what each tells, and which are left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from servecap import rand
from servecap.cli import cli
from servecap.engine import fast
from servecap.engine.spec import EngineSpec
from servecap.errors import UsageError
from servecap.predict import calibrate, profile, runs
from servecap.record import Message, Request
from servecap.run import Run
from servecap.scenario import ClosedLoop, Load, OpenLoop, Scenario, StopRule
from servecap.simulate import simulate
from servecap.store import RECORDS, RunWriter
from servecap.summarize import summarize

pytestmark = pytest.mark.skipif(
    not fast.COMPILED, reason="numba is not installed: without it these take minutes"
)
SPEC = EngineSpec(model="llama-13b", gpu="a100-40gb", tp=4)


def requests() -> Iterator[Request]:
    lengths = rand.stream(0, "runs")
    number = 0
    while True:
        yield Request(
            request_id=number,
            messages=(Message("user", "one two three"),),
            prompt_tokens=lengths.randint(100, 400),
            max_output_tokens=lengths.randint(50, 150),
            exact_output=True,
        )
        number += 1


def a_run(load: Load, spec: EngineSpec = SPEC) -> Run:
    return simulate(Scenario(load=load, stop=StopRule(requests=400)), spec, requests())


def store(run: Run, folder: Path) -> Path:
    writer = RunWriter(folder, run.header)
    for record in run.records:
        writer.add(record)
    writer.close(run.header)
    return folder


@pytest.mark.parametrize("users", [4, 60])
def test_a_run_is_the_row_that_the_same_model_predicts(users: int, tmp_path: Path) -> None:
    """With the parameters that made it, the run's own lengths give the run's own figures."""
    store(a_run(ClosedLoop(users=users)), tmp_path / "run")
    (row,) = runs.measured([tmp_path], SPEC).rows
    assert row.users == users
    assert 240 < row.case.lengths.prompt_tokens < 260
    assert 95 < row.case.lengths.output_tokens < 105
    assert row.case.harness.queue is None
    same = calibrate.predicted(row, profile.prior("vllm"))
    assert row.tpot_s == pytest.approx(same["tpot_s"], rel=0.05)
    assert row.requests_per_s == pytest.approx(same["requests_per_s"], rel=0.08)


def test_the_level_that_a_search_named_is_a_capacity(tmp_path: Path) -> None:
    for users in (10, 40):
        store(a_run(ClosedLoop(users=users)), tmp_path / f"0-users-{users}")
    capacity = {"users": 40, "users_high": 42}
    (tmp_path / runs.SEARCH).write_text(json.dumps({"capacity": capacity, "levels": []}))
    small, large = runs.measured([tmp_path], SPEC).rows
    assert small.slo is None
    assert large.slo is not None
    (tmp_path / runs.SEARCH).write_text("{}")
    with pytest.raises(UsageError, match=r"search\.json' is damaged"):
        runs.measured([tmp_path], SPEC)


def test_runs_that_the_model_could_not_do_are_left_out_with_the_reason(tmp_path: Path) -> None:
    store(a_run(ClosedLoop(users=5)), tmp_path / "good")
    store(a_run(OpenLoop(rate_rps=2.0)), tmp_path / "open")
    cached = a_run(ClosedLoop(users=5))
    kept = [msgspec.structs.replace(r, cached_tokens=90) for r in cached.records]
    store(msgspec.structs.replace(cached, records=kept), tmp_path / "cached")
    found = runs.measured([tmp_path], SPEC)
    assert [row.label for row in found.rows] == [str(tmp_path / "good")]
    said = {Path(folder).name: why for folder, why in found.skipped}
    assert "closed loop" in said["open"]
    assert "prefix cache" in said["cached"]
    (tmp_path / "good" / RECORDS).write_bytes(b"")
    with pytest.raises(UsageError, match="no run can be calibrated with"):
        runs.measured([tmp_path / "good"], SPEC)


def with_cached(run: Run, tokens: list[int]) -> Run:
    """The run, whose prompts were found in the server's cache in part, in turn."""
    kept = [
        msgspec.structs.replace(r, cached_tokens=tokens[k % len(tokens)])
        for k, r in enumerate(run.records)
    ]
    return msgspec.structs.replace(run, records=kept)


def test_a_chat_template_that_is_kept_is_no_hit_and_no_part_of_the_prompt(tmp_path: Path) -> None:
    """It is computed once; who came first, or fell out of the cache, computed it again."""
    run = a_run(ClosedLoop(users=5))
    folders = {"plain": [0], "template": [30], "not-all": [30, 30, 0]}
    for name, cached in folders.items():
        store(with_cached(run, cached), tmp_path / name)
    lengths = {
        name: runs.measured([tmp_path / name], SPEC).rows[0].case.lengths for name in folders
    }
    prompt = lengths["plain"].prompt_tokens
    assert lengths["template"].prompt_tokens == pytest.approx(prompt - 30)
    assert lengths["not-all"].prompt_tokens == pytest.approx(prompt - 20, abs=0.2)
    assert lengths["template"].output_tokens == lengths["plain"].output_tokens


@pytest.mark.parametrize("cached", [[80], [10, 50], [30, 30, 30, 30, 90]])
def test_what_differs_or_is_long_is_no_template(cached: list[int], tmp_path: Path) -> None:
    store(with_cached(a_run(ClosedLoop(users=5)), cached), tmp_path / "run")
    with pytest.raises(UsageError, match="prefix cache"):
        runs.measured([tmp_path / "run"], SPEC)


def test_a_profile_of_runs_predicts_loads_that_were_not_run(tmp_path: Path) -> None:
    """The server reads memory by a third faster than the data sheet that it is taken for."""
    quick = EngineSpec(model="llama-13b", gpu="a100-80gb")
    taken_for = EngineSpec(model="llama-13b", gpu="a100-40gb")
    folders = [
        str(store(a_run(ClosedLoop(users=n), quick), tmp_path / f"r{n}")) for n in (1, 8, 24)
    ]
    kept = tmp_path / "p.json"
    given = ["--model", "llama-13b", "--gpu", "a100-40gb", "--out", str(kept)]
    done = CliRunner().invoke(cli, ["calibrate", *folders, *given])
    assert done.exit_code == 0, done.output
    assert "fitting the vllm engine to 3 cells and runs" in done.output
    fitted = profile.load(kept)
    assert fitted.validity.users_max == 24
    assert fitted.validity.gpus == ("A100-40GB-SXM",)
    run = a_run(ClosedLoop(users=16), quick)
    (row,) = runs.measured([store(run, tmp_path / "later")], taken_for).rows
    truth = summarize(run).client["tpot"].mean
    before = calibrate.predicted(row, profile.prior("vllm"))["tpot_s"]
    assert before > 1.15 * truth
    assert calibrate.predicted(row, fitted)["tpot_s"] == pytest.approx(truth, rel=0.08)


def test_what_a_run_does_not_know_is_asked_for(tmp_path: Path) -> None:
    folder = str(store(a_run(ClosedLoop(users=2)), tmp_path / "run"))
    done = CliRunner().invoke(cli, ["calibrate", folder, "--out", str(tmp_path / "p.json")])
    assert isinstance(done.exception, UsageError)
    assert "give --gpu" in str(done.exception)

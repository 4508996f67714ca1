"""Cells without a server: the same figures as `servecap predict`, with their doubt."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from servecap.cell import Cell
from servecap.cli import cli
from servecap.engine import fast
from servecap.engine.spec import EngineSpec
from servecap.matrix import predicted
from servecap.matrix.document import parse
from servecap.matrix.job import Predict
from servecap.matrix.spec import from_document

pytestmark = pytest.mark.skipif(
    not fast.COMPILED, reason="numba is not installed: without it these take minutes"
)


def cell(*, gpu: str = "a30", tp: int = 4, how: str = "{}", settings: str = "") -> Cell:
    text = (
        f"cells: [{{model: llama-13b, gpu: {gpu}, tp: {tp}, scenario: chat-en, predict: {how}, "
        f"settings: {{{settings}}}}}]"
    )
    (job,) = from_document(parse(text, name="t.yaml"), Path()).jobs
    assert isinstance(job.source, Predict)
    return predicted.cell_of(job, job.source)


@pytest.mark.parametrize(
    "engine",
    ["vllm", "vllm-2025", "vllm-2024", "vllm-2023", "tgi", "sglang", "llama.cpp", "static"],
)
def test_matrix_and_predict_give_the_same_figures(engine: str) -> None:
    arguments = ["--model", "llama-13b", "--gpu", "a30", "--tp", "4", "--engine", engine, "--json"]
    done = CliRunner().invoke(cli, ["predict", "--scenario", "chat-en", *arguments])
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.stdout)["cells"]
    found = cell(how=f"{{engine: {engine}}}")
    assert found.capacity is not None
    assert found.capacity.users == told["max_users"]["value"]
    assert found.capacity.users_low == int(told["max_users"]["low"])
    assert found.capacity.limited_by == told["limited_by"]
    for name in ("ttft_s", "tpot_s", "requests_per_s", "output_tokens_per_s"):
        assert getattr(found, name) == told[name]["value"]
    assert found.notes[0] == f"what binds: {told['binds']}"
    assert "80% interval" in found.notes[1]
    assert found.origin == "predicted"


def test_the_engine_that_it_was_predicted_on_stays_with_the_cell() -> None:
    found = cell(how="{engine: sglang, max_running: 64}")
    assert found.modelled is not None
    spec = msgspec.convert(found.modelled.engine, EngineSpec)
    assert (spec.engine, spec.max_running, spec.tp) == ("sglang", 64, 4)
    kept = msgspec.json.decode(msgspec.json.encode(found), type=Cell)
    assert kept == found


def test_the_search_ends_where_the_spec_says() -> None:
    found = cell(settings="max_users: 20")
    assert found.capacity is not None
    assert found.capacity.users == 20
    assert any("ended at 20 users" in note for note in found.notes)


def test_other_prompts_and_think_times_change_the_answer() -> None:
    usual, long, idle = cell(), cell(settings='workload: "fixed:900/200"'), cell(
        settings="think_s: [20, 40]"
    )  # fmt: skip
    assert long.avg_context_tokens == pytest.approx(1100)
    users = [c.capacity.users for c in (long, usual, idle) if c.capacity is not None]
    assert users == sorted(users)
    assert len(set(users)) == 3


def test_a_cell_that_serves_nobody_tells_no_figures() -> None:
    found = cell(settings='slo: "ttft.mean<1us"')
    assert found.capacity is not None
    assert (found.capacity.users, found.capacity.users_high, found.ttft_s) == (0, None, None)
    assert "not even one user" in found.notes[0]

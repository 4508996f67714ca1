"""Cells that need not be measured, for a measured sibling is surely better."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from servecap.cell import Capacity, Cell
from servecap.cli import cli
from servecap.engine import fast
from servecap.matrix import dominated as module
from servecap.matrix.document import parse
from servecap.matrix.dominated import dominated
from servecap.matrix.files import read
from servecap.matrix.fill import Event, fill, survey
from servecap.matrix.job import CellJob
from servecap.matrix.spec import Spec, from_document

CELLS = """
cells:
  - {model: llama-13b, gpu: a30, tp: [2, 4], scenario: chat-en, url: "http://h:1"}
"""
WITH = "skip_dominated: true" + CELLS
PREDICTED = "  - {model: llama-13b, gpu: a30, tp: 2, scenario: chat-en, predict: {}}\n"


def spec(text: str = WITH) -> Spec:
    return from_document(parse(text, name="t.yaml"), Path())


def job(tp: int = 4) -> CellJob:
    return next(job for job in spec().jobs if job.tp == tp)


def cell(of: CellJob, users: int, **changes: object) -> Cell:
    base = Cell(
        model=of.model, gpu=of.gpu, tp=of.tp, scenario=of.scenario_name, origin="measured",
        provenance="fake", slo=str(of.scenario.slo),
        capacity=Capacity(users=users, users_high=users + 2),
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def guess(of: CellJob, high: int | None, users: int = 20) -> Cell:
    capacity = Capacity(users=users, users_low=1, users_high=high, confidence=0.8)
    return cell(of, users, origin="predicted", capacity=capacity, notes=("of the model",))


@pytest.fixture
def thirty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prediction is of 30 users at most."""
    monkeypatch.setattr(module, "_predicted", lambda asked: guess(asked, 30))


@pytest.mark.usefixtures("thirty")
def test_a_cell_is_dominated_by_users_of_a_node_at_the_high_end_of_its_interval() -> None:
    sibling = cell(job(2), 16)  # 64 users on a node; 30 users at TP4 are 60
    found = dominated(job(4), [sibling])
    assert found is not None
    assert "at most 60 users (high end of the 80% interval predicted), and 64" in found.reason
    assert found.cell is not None
    assert found.cell.origin == "predicted"
    assert found.cell.notes == (found.reason, "of the model")
    assert dominated(job(4), [cell(job(2), 15)]) is None


@pytest.mark.usefixtures("thirty")
def test_only_measured_siblings_of_the_same_place_and_slo_count() -> None:
    for other in (
        {"origin": "predicted"}, {"gpu": "a40"}, {"model": "llama-7b"}, {"scenario": "docqa"},
        {"slo": None}, {"slo": "ttft.mean<1s"}, {"interconnect": "pcie"}, {"gpu_memory_gb": 24.0},
        {"invalid_reason": "the client was the bottleneck"}, {"capacity": None}, {"tp": 4},
    ):  # fmt: skip
        assert dominated(job(4), [cell(job(2), 500, **other)]) is None, other


def test_what_cannot_be_predicted_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    best = [cell(job(2), 500)]
    monkeypatch.setattr(module, "_predicted", lambda asked: guess(asked, None, 0))
    assert dominated(job(4), best) is None
    monkeypatch.setattr(module, "_predicted", lambda _: None)
    assert dominated(job(4), best) is None


def test_a_model_that_nobody_knows_is_not_dominated() -> None:
    strange = msgspec.structs.replace(job(4), model="nonesuch")
    assert dominated(strange, [cell(job(2), 500, model="nonesuch")]) is None


@pytest.mark.skipif(not fast.COMPILED, reason="without numba this takes minutes")
def test_the_engine_model_decides() -> None:
    assert dominated(job(2), [cell(job(4), 2000)]) is not None
    assert dominated(job(2), [cell(job(4), 100)]) is None


class Fleet:
    """Servers of many users; notes which were measured."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, asked: CellJob, url: str, folder: Path) -> Cell:  # noqa: ARG002
        self.asked.append(asked.tp)
        return cell(asked, 100)


@contextmanager
def endpoint(_job: CellJob, _folder: Path) -> Iterator[str]:
    yield "http://h:1"


@pytest.mark.usefixtures("thirty")
def test_a_fill_skips_what_its_first_cells_dominate_and_measures_it_without_the_flag(
    tmp_path: Path,
) -> None:
    events: list[Event] = []
    find = Fleet()
    cells = fill(spec(), tmp_path, find, on_event=events.append, endpoint=endpoint)
    assert find.asked == [2]
    assert [(c.tp, c.origin) for c in cells] == [(2, "measured"), (4, "predicted")]
    assert [e.kind for e in events] == ["started", "landed", "skipped"]
    assert [t.state for t in survey(spec(), tmp_path)] == ["done", "skipped"]
    size = (tmp_path / "cells.jsonl").stat().st_size
    fill(spec(), tmp_path, find, endpoint=endpoint)
    assert (find.asked, (tmp_path / "cells.jsonl").stat().st_size) == ([2], size)
    assert "not measured" in read(tmp_path).cells[1].notes[0]

    plain = spec(CELLS)
    assert [(t.state, t.note) for t in survey(plain, tmp_path)] == [
        ("done", ""), ("new", "skipped before"),
    ]  # fmt: skip
    cells = fill(plain, tmp_path, find, endpoint=endpoint)
    assert find.asked == [2, 4]
    assert {c.origin for c in cells} == {"measured"}
    assert [t.state for t in survey(spec(), tmp_path)] == ["done", "done"]


@pytest.mark.usefixtures("thirty")
def test_a_prediction_of_the_same_place_stays_alone(tmp_path: Path) -> None:
    both = spec(WITH.replace("tp: [2, 4]", "tp: [4, 2]") + PREDICTED)

    def find(asked: CellJob, url: str, folder: Path) -> Cell:  # noqa: ARG001
        return guess(asked, 3) if asked.origin == "predicted" else cell(asked, 100)

    (tmp_path / "m").mkdir()
    cells = fill(both, tmp_path / "m", find, endpoint=endpoint)
    places = [(c.tp, c.origin) for c in cells]
    assert len(places) == len(set(places))
    again = survey(both, tmp_path / "m")
    assert {t.state for t in again} <= {"done", "skipped"}


@pytest.mark.usefixtures("thirty")
def test_a_dry_run_says_what_is_skipped_and_why(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(WITH)
    fill(spec(), tmp_path / "m", Fleet(), endpoint=endpoint)
    done = CliRunner().invoke(cli, ["matrix", str(path), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "skipped   llama-13b on a30, TP4, chat-en  (not measured: a node of 8" in done.output

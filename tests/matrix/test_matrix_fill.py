"""Filling a matrix: what is run, what is kept, and what an interruption costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from servecap.cell import Capacity, Cell
from servecap.errors import EndpointError, UsageError
from servecap.matrix.document import parse
from servecap.matrix.files import read
from servecap.matrix.fill import Event, fill, survey
from servecap.matrix.job import CellJob
from servecap.matrix.journal import JOURNAL
from servecap.matrix.spec import Spec, from_document

TEXT = """
defaults: {workload: "fixed:8/4", seed: SEED}
cells:
  - {model: m, gpu: [a30, a40], tp: [1, 2], url: "http://h:1"}
"""


def spec(text: str = TEXT, seed: int = 0, folder: Path = Path()) -> Spec:
    return from_document(parse(text.replace("SEED", str(seed)), name="t.yaml"), folder)


class Find:
    """Answers with 10 users per GPU and notes what it was asked; some cells fail."""

    def __init__(self, *failing: str, stop_at: str = "") -> None:
        self.asked: list[str] = []
        self.failing = failing
        self.stop_at = stop_at

    def __call__(self, job: CellJob, url: str, folder: Path) -> Cell:
        self.asked.append(job.name)
        assert url == "http://h:1"
        assert folder.is_dir()
        if job.name == self.stop_at:
            raise KeyboardInterrupt
        if job.name in self.failing:
            raise EndpointError("the server went away")
        return Cell(
            model=job.model, gpu=job.gpu, tp=job.tp, scenario=job.scenario_name, origin=job.origin,
            provenance="fake", capacity=Capacity(users=10 * job.tp, users_high=None),
        )  # fmt: skip


NAMES = [f"m on {gpu}, TP{tp}, fixed:8/4" for gpu in ("a30", "a40") for tp in (1, 2)]


RUN = [NAMES[0], NAMES[2], NAMES[1], NAMES[3]]  # every GPU once before any twice


def test_every_cell_is_run_once_and_reported(tmp_path: Path) -> None:
    events: list[Event] = []
    find = Find()
    cells = fill(spec(), tmp_path / "new" / "m", find, on_event=events.append)
    assert find.asked == RUN
    assert [(c.gpu, c.tp) for c in cells] == [("a30", 1), ("a30", 2), ("a40", 1), ("a40", 2)]
    assert [(e.kind, e.index, e.total) for e in events[:3]] == [
        ("started", 1, 4), ("landed", 1, 4), ("started", 2, 4),
    ]  # fmt: skip
    assert sorted(map(str, read(tmp_path / "new" / "m").cells)) == sorted(map(str, cells))
    again = Find()
    assert fill(spec(), tmp_path / "new" / "m", again) == cells
    assert again.asked == []


def test_a_failed_cell_is_recorded_and_tried_again(tmp_path: Path) -> None:
    cells = fill(spec(), tmp_path, Find(NAMES[1]))
    assert [(c.gpu, c.tp) for c in cells] == [("a30", 1), ("a40", 1), ("a40", 2)]
    (todo,) = [item for item in survey(spec(), tmp_path) if item.state != "done"]
    assert (todo.job.name, todo.state, todo.note) == (NAMES[1], "failed", "the server went away")
    again = Find()
    assert len(fill(spec(), tmp_path, again)) == 4
    assert again.asked == [NAMES[1]]


def test_an_interrupted_fill_keeps_what_had_landed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(spec(), tmp_path, Find(stop_at=RUN[2]))
    assert len(read(tmp_path).cells) == 2
    again = Find()
    fill(spec(), tmp_path, again)
    assert again.asked == RUN[2:]


@pytest.mark.parametrize("cut", [1, 50])
def test_a_killed_fill_loses_only_the_torn_line(tmp_path: Path, cut: int) -> None:
    fill(spec(), tmp_path, Find())
    data = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(data[:-cut])
    again = Find()
    assert len(fill(spec(), tmp_path, again)) == 4
    assert again.asked == NAMES[3:]


def test_changed_settings_run_a_cell_again_and_old_ones_come_back_free(tmp_path: Path) -> None:
    fill(spec(seed=0), tmp_path, Find())
    assert {item.state for item in survey(spec(seed=1), tmp_path)} == {"changed"}
    changed = Find()
    fill(spec(seed=1), tmp_path, changed)
    assert changed.asked == RUN
    back = Find()
    assert len(fill(spec(seed=0), tmp_path, back)) == 4
    assert back.asked == []


def test_after_a_failure_under_new_settings_the_old_figures_do_not_stand(tmp_path: Path) -> None:
    fill(spec(seed=0), tmp_path, Find())
    cells = fill(spec(seed=1), tmp_path, Find(NAMES[0]))
    assert len(cells) == len(read(tmp_path).cells) == 3
    assert "has no figures: the server went away" in read(tmp_path).warnings[0]


def test_a_cell_that_the_spec_has_dropped_no_longer_counts(tmp_path: Path) -> None:
    fill(spec(), tmp_path, Find())
    fewer = TEXT.replace("[a30, a40]", "[a40]")
    assert len(fill(spec(fewer), tmp_path, Find())) == 2
    assert [cell.gpu for cell in read(tmp_path).cells] == ["a40", "a40"]
    assert read(tmp_path).warnings == ()
    back = Find()
    fill(spec(), tmp_path, back)
    assert (len(read(tmp_path).cells), back.asked) == (4, [])


def test_only_some_cells_can_be_run(tmp_path: Path) -> None:
    for only, names in (
        (["gpu=A40", "tp=1"], [NAMES[2]]),
        (["tp=2"], [NAMES[1], NAMES[3]]),
        (["gpu=a30", "gpu=a4*"], RUN),
    ):
        assert [item.job.name for item in survey(spec(), tmp_path, only=only)] == names
    find = Find()
    assert len(fill(spec(), tmp_path, find, only=["gpu=a40"])) == 2
    assert find.asked == NAMES[2:]


@pytest.mark.parametrize(
    ("only", "told"),
    [
        ("a40", "--only 'a40' cannot be read: write KEY=PATTERN"),
        ("card=a40", "with a key of model, gpu, tp, scenario"),
        ("gpu=", "cannot be read"),
        ("gpu=h100", "--only gpu=h100: no cell fits; the spec has m on a30, TP1"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_told(tmp_path: Path, only: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        fill(spec(), tmp_path, Find(), only=[only])
    assert told in str(caught.value)


def test_imported_cells_land_beside_the_measured_ones(tmp_path: Path) -> None:
    table = tmp_path / "old.csv"
    table.write_text("model,gpu,tp,scenario,max_users\nm,v100,1,fixed:8/4,5\n")
    text = TEXT + "  - import: old.csv\n"
    out = tmp_path / "out"
    assert len(fill(spec(text, folder=tmp_path), out, Find())) == 5
    entries = len((out / JOURNAL).read_bytes().splitlines())
    fill(spec(text, folder=tmp_path), out, Find())
    assert len((out / JOURNAL).read_bytes().splitlines()) == entries
    table.write_text("model,gpu,tp,scenario,max_users\nm,v100,1,fixed:8/4,6\n")
    fill(spec(text, folder=tmp_path), out, Find())
    (imported,) = [cell for cell in read(out).cells if cell.gpu == "v100"]
    assert imported.capacity == Capacity(users=6, users_high=None)


def test_a_workload_that_cannot_be_read_stops_it_before_the_first_cell(tmp_path: Path) -> None:
    text = TEXT.replace("tp: [1, 2],", "tp: 1,") + (
        "  - {model: m, gpu: v100, tp: 1, url: 'http://h:1', settings: {workload: no.jsonl}}\n"
    )
    find = Find()
    with pytest.raises(UsageError, match=r"no\.jsonl"):
        fill(spec(text), tmp_path, find)
    assert find.asked == []


def test_two_fills_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    class Second(Find):
        def __call__(self, job: CellJob, url: str, folder: Path) -> Cell:
            with pytest.raises(UsageError, match="another servecap is filling"):
                fill(spec(), tmp_path, Find())
            return super().__call__(job, url, folder)

    assert len(fill(spec(), tmp_path, Second(), only=["gpu=a40", "tp=1"])) == 1


def test_the_server_is_stopped_before_the_cell_lands(tmp_path: Path) -> None:
    told: list[str] = []

    @contextlib.contextmanager
    def endpoint(job: CellJob, _: Path) -> Iterator[str]:
        told.append(f"start {job.tp}")
        try:
            yield "http://h:1"
        finally:
            told.append(f"stop {job.tp}")

    def on_event(event: Event) -> None:
        told.append(event.kind)

    fill(spec(), tmp_path, Find(NAMES[1]), only=["gpu=a30"], on_event=on_event, endpoint=endpoint)
    assert told == [
        "started", "start 1", "stop 1", "landed", "started", "start 2", "stop 2", "failed",
    ]  # fmt: skip


def test_a_bug_is_not_swallowed(tmp_path: Path) -> None:
    def find(job: CellJob, url: str, folder: Path) -> Cell:
        raise ZeroDivisionError(job.name + url + folder.name)

    with pytest.raises(ZeroDivisionError):
        fill(spec(), tmp_path, find)


def test_a_server_that_dies_during_the_test_tells_its_last_words(tmp_path: Path) -> None:
    text = TEXT.replace('url: "http://h:1"', "command: serve")

    @contextlib.contextmanager
    def endpoint(job: CellJob, folder: Path) -> Iterator[str]:
        (folder / "server.log").write_text(f"CUDA out of memory on {job.gpu}\n")
        yield "http://h:1"

    fill(spec(text), tmp_path, Find(*NAMES), only=["gpu=a30", "tp=1"], endpoint=endpoint)
    todo = survey(spec(text), tmp_path)[0]
    assert todo.note.startswith("the server went away; the last line of its log")
    assert todo.note.endswith("CUDA out of memory on a30")


def test_folders_of_cells_have_plain_names_of_their_own() -> None:
    job = spec().jobs[0]
    odd = msgspec.structs.replace(job, model="../Qwen/Qwen2 7B 中文")
    assert odd.slug == f"qwen-qwen2-7b----a30-tp1-fixed-8-4-{odd.key[:8]}"
    other = msgspec.structs.replace(job, scenario=msgspec.structs.replace(job.scenario, seed=9))
    assert other.slug != job.slug

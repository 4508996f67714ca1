"""`servecap compare` on stored runs and searches: what it prints and what it exits with."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from servecap import cli
from servecap.cell import Capacity
from servecap.errors import UsageError
from servecap.record import Counts, Outcome, Record, Times
from servecap.run import Header, Status
from servecap.scenario import ClosedLoop, Scenario, StopRule, Target
from servecap.search import SearchResult
from servecap.store import RunWriter, write_json

SCENARIO = Scenario(load=ClosedLoop(users=1, think_s=(0.0, 0.0)), stop=StopRule(requests=200))


def stored(folder: Path, ttft_s: float, *, failed: int = 0) -> Path:
    """A run of one user without think time whose answers take *ttft_s* and 50 ms more."""
    header = Header(
        scenario=SCENARIO,
        target=Target(url="http://x", api="openai-chat"),
        source="measured",
        servecap_version="0",
        started_utc="2026-01-01T00:00:00+00:00",
    )
    writer = RunWriter(folder, header)
    now_s = 0.0
    for i in range(220):
        first_s = now_s + ttft_s * (1 + i % 7 / 50)
        end_s = first_s + 0.05
        writer.add(
            Record(
                request_id=i,
                user=0,
                planned_s=now_s,
                sent_s=now_s,
                end_s=end_s,
                outcome=Outcome.TIMEOUT if i < failed else Outcome.OK,
                first_token_s=first_s,
                chunk_s=Times([first_s, end_s]),
                chunk_tokens=Counts([1, 1]),
                prompt_tokens=5,
                output_tokens=2,
            )
        )
        now_s = end_s
    writer.close(msgspec.structs.replace(header, status=Status.COMPLETE, load_end_s=now_s))
    return folder


def compare(*args: object) -> Result:
    return CliRunner().invoke(cli.cli, ["compare", *map(str, args)], standalone_mode=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return stored(folder / "old", 0.1), stored(folder / "new", 0.15)


def test_the_same_run_twice_passes_every_gate(runs: tuple[Path, Path]) -> None:
    done = compare(runs[0], runs[0], "--fail-on", "ttft.mean>5%,qps<-5%", "--strict")
    assert done.return_value == 0, done.output
    assert done.output.startswith("No difference shown")


def test_a_slower_run_fails_its_gate(runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.xml"
    done = compare(*runs, "--fail-on", "ttft.mean>5%", "--junit", out)
    assert done.return_value == 1, done.output
    assert "WORSE in" in done.output
    assert "FAIL ttft.mean>5%" in done.output
    assert "<failure" in out.read_text()


def test_without_a_gate_a_slower_run_exits_with_0(runs: tuple[Path, Path]) -> None:
    assert compare(*runs).return_value == 0


def test_several_runs_are_each_held_against_the_first(runs: tuple[Path, Path]) -> None:
    done = compare(runs[0], runs[1], runs[0], "--json", "--fail-on", "qps<-5%")
    found = json.loads(done.output)
    assert [item["gates"][0]["verdict"] for item in found] == ["fail", "pass"]
    assert done.return_value == 1


def test_markdown_is_printed(runs: tuple[Path, Path]) -> None:
    assert "| ttft.mean |" in compare(*runs, "--markdown").output


def test_an_unbounded_change_fails_only_where_it_is_asked_to(runs: tuple[Path, Path]) -> None:
    args = (runs[0], runs[0], "--fail-on", "ttft.p99>5%")
    assert compare(*args).return_value == 0
    assert compare(*args, "--strict").return_value == 1


def search(folder: Path, users: int, high: int) -> Path:
    folder.mkdir()
    result = SearchResult(
        capacity=Capacity(users=users, users_high=high, confidence=0.95),
        levels=(),
        scenario=SCENARIO,
        stop_reason="the bracket is narrow enough",
    )
    write_json(folder / "search.json", result)
    return folder


def test_searches_are_compared_by_their_capacity(tmp_path: Path) -> None:
    old, new = search(tmp_path / "a", 20, 24), search(tmp_path / "b", 10, 12)
    done = compare(old, new, "--fail-on", "users<-5%")
    assert done.return_value == 1, done.output
    assert done.output.startswith("WORSE in users")


def test_what_cannot_be_compared_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = search(tmp_path / "a", 20, 24)
    for args, message in [
        ((runs[0], found), "same kind"),
        ((runs[0], tmp_path), "neither a run nor a search"),
        ((runs[0], runs[1], "--markdown", "--json"), "give one of them"),
        ((runs[0], runs[1], "--junit", tmp_path / "no" / "x.xml"), "cannot be written"),
    ]:
        error = compare(*args).exception
        assert isinstance(error, UsageError)
        assert message in str(error)


def test_a_run_that_cannot_be_believed_exits_with_4(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    late = stored(tmp_path / "late", 0.1)
    header = json.loads((late / "run.json").read_text())
    header["scenario"]["load"]["users"] = 50  # Little's law cannot hold with one user's requests
    (late / "run.json").write_text(json.dumps(header))
    done = compare(runs[0], late)
    assert done.return_value == 4, done.output
    assert done.output.startswith("INVALID")

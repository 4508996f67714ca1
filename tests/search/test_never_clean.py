"""A search that cannot be believed never gives a clean-looking answer."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from servecap import rand, slo
from servecap.cli import cli
from servecap.cli.find import SEARCH
from servecap.cli.report import read
from servecap.errors import InvalidRun, UsageError
from servecap.record import Outcome, Record, Times, TokenSource
from servecap.report.overview import search_headline
from servecap.run import Header, Run, Source, Status
from servecap.scenario import ClosedLoop, Scenario, Target
from servecap.search import SearchResult, cycle_s, find
from servecap.store import write_json

END_S = 60.0
CAPACITY = 60
ASKED = Scenario(load=ClosedLoop(users=1), slo=slo.parse("ttft.mean<1s"))
Change = Callable[[Record], Record]


def service(
    asked: Scenario,
    *,
    drift: float = 0.0,
    source: Source = "simulated",
    change: Change = lambda r: r,
) -> Run:
    """TTFT = users / CAPACITY seconds, growing by *drift* over the run; answers take 1 s more."""
    users = asked.users
    assert users is not None
    rng = random.Random(rand.derive(asked.seed, "service"))
    due = [(i * (users / CAPACITY + 3) / users, i) for i in range(users)]
    found: list[Record] = []
    while due[0][0] < END_S:
        planned_s, user = heapq.heappop(due)
        ttft_s = (users + 0.5) / (CAPACITY + 1) * rng.uniform(0.8, 1.2)
        ttft_s *= 1 + drift * planned_s / END_S
        first_s, end_s = planned_s + ttft_s, planned_s + ttft_s + 1.0
        found.append(
            change(
                Record(
                    request_id=len(found), user=user, planned_s=planned_s, sent_s=planned_s,
                    end_s=end_s, outcome=Outcome.OK if end_s <= END_S else Outcome.CENSORED,
                    first_token_s=first_s, chunk_s=Times([first_s, end_s]), prompt_tokens=100,
                    output_tokens=50, asked_output_tokens=50, exact_output=True,
                    token_source=TokenSource.SERVER,
                )
            )
        )  # fmt: skip
        heapq.heappush(due, (end_s + rng.uniform(1, 3), user))
    header = Header(
        scenario=asked, target=Target(url="x", api="x"), source=source, servecap_version="0",
        started_utc="2026-01-01T00:00:00+00:00", status=Status.COMPLETE, load_end_s=END_S,
    )  # fmt: skip
    return Run(header=header, records=found)


def test_a_clean_service_has_its_capacity_found_with_the_limit_and_every_level() -> None:
    found = find(service, ASKED, precision=0.05)
    assert found.capacity.users_high is not None
    assert found.capacity.users - 1 <= CAPACITY <= found.capacity.users_high + 1
    assert found.capacity.limited_by == "ttft.mean<1s"
    assert found.unsure is None
    assert all(level.why and level.margins for level in found.levels)
    assert found.estimate is not None
    assert found.estimate.confidence == 0.95


CASES: dict[str, tuple[Change, Source, str]] = {
    "client": (
        lambda r: msgspec.structs.replace(r, sent_s=r.planned_s + 0.1), "measured",
        "client_limited",
    ),
    "cache": (lambda r: msgspec.structs.replace(r, cached_tokens=80), "simulated", "prefix cache"),
    "short": (lambda r: msgspec.structs.replace(r, output_tokens=20), "simulated", "shorter"),
    "refused": (
        lambda r: msgspec.structs.replace(r, outcome=Outcome.HTTP_ERROR, status=429)
        if r.request_id % 5 == 0 else r,
        "simulated", "429",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_cannot_be_believed_ends_the_search(case: str) -> None:
    change, source, said = CASES[case]
    with pytest.raises(InvalidRun, match=said):
        find(lambda asked: service(asked, change=change, source=source), ASKED)


@pytest.mark.parametrize("case", CASES)
def test_where_only_large_levels_cannot_be_believed_there_is_no_upper_end(case: str) -> None:
    change, source, said = CASES[case]

    def probe(asked: Scenario) -> Run:
        few = asked.users is not None and asked.users < 30
        return service(asked) if few else service(asked, change=change, source=source)

    found = find(probe, ASKED)
    assert found.capacity.users_high is None
    assert found.capacity.users < 30
    assert said in found.stop_reason
    assert found.unsure is not None


def test_a_server_that_drifts_is_no_base_for_an_answer() -> None:
    with pytest.raises(InvalidRun, match="not stationary"):
        find(lambda asked: service(asked, drift=4.0), ASKED, start=14)


@pytest.mark.parametrize("slower", [1.0, 1.35])
def test_a_server_that_changes_between_levels_gives_no_clean_answer(slower: float) -> None:
    """Each level is steady; those of one load disagree, early and late."""
    tried = 0

    def probe(asked: Scenario) -> Run:
        nonlocal tried
        tried += 1
        scale = slower if tried > 4 else 1.0
        return service(
            asked,
            change=lambda r: msgspec.structs.replace(
                r, first_token_s=r.planned_s + scale * (r.chunk_s[0] - r.planned_s)
            ),
        )

    found = find(probe, ASKED, start=40, precision=0.05)
    if slower == 1.0:
        assert found.unsure is None
    else:
        assert found.unsure is not None
        assert "the server changed" in found.unsure
        assert "worse in late levels" in found.unsure
        headline = search_headline(found)
        assert (headline.badge, headline.tone) == ("UNSURE", "unsure")
        assert "search again" in headline.todo[0]


def test_after_a_load_that_cannot_be_measured_none_is_tried_twice() -> None:
    change, source, _ = CASES["client"]

    def probe(asked: Scenario) -> Run:
        few = asked.users is not None and asked.users < 30
        return service(asked) if few else service(asked, change=change, source=source)

    levels = find(probe, ASKED).levels
    invalid = [x.users for x in levels if not x.valid]
    assert len(invalid) == len(set(invalid)) + 1


def test_a_spent_budget_says_what_is_known_and_what_certainty_costs() -> None:
    found = find(service, ASKED, budget_s=190.0, precision=0.01)  # a level takes 60 s
    assert "budget of 190 s" in found.stop_reason
    assert len(found.levels) == 3
    assert found.unsure is not None
    with pytest.raises(UsageError, match="--budget"):
        find(service, ASKED, budget_s=0.0)


def test_a_search_that_is_killed_is_told_as_far_as_it_came(tmp_path: Path) -> None:
    known: list[SearchResult] = []
    found = find(service, ASKED, precision=0.05, on_known=known.append)
    assert [len(x.levels) for x in known] == list(range(1, len(found.levels) + 1))
    assert all(x.interrupted for x in known)
    assert not found.interrupted
    assert known[-1].capacity == found.capacity
    write_json(tmp_path / SEARCH, known[2])
    done = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "cut off after 3 levels" in " ".join(done.output.split())
    assert "cut off after 3 levels" in (tmp_path / "report.html").read_text("utf-8")


def test_a_search_is_not_taken_up_again_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / SEARCH).write_text("{}")
    words = ["find", "--url", "http://127.0.0.1:9", "--out", str(tmp_path)]
    with pytest.raises(UsageError, match=r"holds a search already.*servecap report.*--start"):
        cli.main(words, standalone_mode=False)


def test_a_search_without_a_whole_level_has_its_first_run_named(tmp_path: Path) -> None:
    (tmp_path / "01-users-8").mkdir()
    with pytest.raises(UsageError, match="01-users-8"):
        read([str(tmp_path)])


def test_levels_ramp_in_over_the_cycle_that_the_ones_before_let_expect() -> None:
    asked: list[Scenario] = []

    def probe(scenario: Scenario) -> Run:
        asked.append(scenario)
        return service(scenario)

    levels = find(probe, ASKED, start=10).levels
    ramps = [x.load.ramp_s for x in asked if isinstance(x.load, ClosedLoop)]
    assert ramps[0] is None
    assert all(ramp is not None and 3 < ramp < 10 for ramp in ramps[1:])
    ends = sorted(x.users for x in levels if x.valid)
    assert cycle_s(levels, ends[0]) == pytest.approx(3.0 + ends[0] / CAPACITY, rel=0.15)
    assert cycle_s(levels, ends[0] - 1) is None

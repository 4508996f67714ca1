"""The board of a run: its figures, its lines, and that it promises nothing it cannot know."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from servecap.cli.board import ASCII_SPARKS, Board, Line, Tried
from servecap.measure import Progress
from servecap.record import Outcome, Record, Times
from servecap.scenario import ClosedLoop, OpenLoop, Scenario, StopRule
from servecap.slo import parse


def record(end_s: float, ttft_s: float = 0.2, *, ok: bool = True, tokens: int = 11) -> Record:
    return Record(
        request_id=0,
        user=0,
        planned_s=end_s - ttft_s - 1,
        sent_s=end_s - ttft_s - 1,
        end_s=end_s,
        outcome=Outcome.OK if ok else Outcome.TIMEOUT,
        first_token_s=end_s - 1,
        chunk_s=Times([end_s - 1, end_s]),
        output_tokens=tokens,
    )


def scenario(*, slo: str = "ttft.mean<1s,tpot.p99<50ms", **stop: float | int) -> Scenario:
    return Scenario(load=ClosedLoop(users=4), slo=parse(slo), stop=StopRule(**stop))  # type: ignore[arg-type]


def fed(board: Board, records: Sequence[Record], *, every_s: float = 0.5) -> Board:
    """The board after it was told of the records as a run does."""
    last_s = max(r.end_s for r in records)
    ended = failed = 0
    steps = int(last_s / every_s + 1e-9) + 1
    for step in range(1, steps + 1):
        now_s = step * every_s
        recent = [r for r in records if now_s - every_s < r.end_s <= now_s]
        ended += len(recent)
        failed += sum(not r.ok for r in recent)
        board.note(
            Progress(
                elapsed_s=now_s, in_flight=3, ended=ended, failed=failed, lag_max_s=0.002,
                recent=recent,
            )
        )  # fmt: skip
    return board


def text(line: Line) -> str:
    return "".join(piece for piece, _ in line)


def all_text(board: Board) -> str:
    return "\n".join(map(text, board.lines()))


def test_rates_are_those_of_the_last_seconds() -> None:
    board = fed(Board(scenario()), [record(0.25 * i, tokens=11) for i in range(1, 121)])
    qps, tps = board.rates()
    assert qps == pytest.approx(4, rel=0.15)
    assert tps == pytest.approx(44, rel=0.15)


def test_percentiles_are_nearest_ranks_of_successes() -> None:
    values = [0.01 * i for i in range(1, 101)]
    records = [record(0.1 * i, v) for i, v in enumerate(values, start=1)]
    board = fed(Board(scenario()), [*records, record(5.0, 99.0, ok=False)])
    assert board.statistic("ttft", "p50") == pytest.approx(0.5)
    assert board.statistic("ttft", "p99") == pytest.approx(0.99)
    assert board.statistic("ttft", "max") == pytest.approx(1.0)
    assert board.statistic("ttft", "mean") == pytest.approx(0.505)


def test_limits_colour_the_statistic_they_are_about() -> None:
    board = fed(Board(scenario(slo="ttft.mean<100ms,tpot.p99<1s")), [record(1.0), record(2.0)])
    pieces = [piece for line in board.lines() for piece in line]
    assert ("mean 200 ms", "red") in pieces
    assert ("p99 100 ms", "green") in pieces
    assert ("p50 200 ms", None) in pieces
    assert "(limit: mean < 100 ms)" in all_text(board)


def test_a_limit_on_another_metric_adds_its_row() -> None:
    assert "E2E" in all_text(fed(Board(scenario(slo="e2e.p95<9s")), [record(1.0)]))
    assert "E2E" not in all_text(fed(Board(scenario()), [record(1.0)]))


def test_time_left_is_exact_for_a_duration_and_a_lower_bound_for_a_count() -> None:
    done = [record(1.0 * i) for i in range(1, 11)]
    exact = fed(Board(scenario(duration_s=60.0)), done)
    assert exact.remaining_s() == pytest.approx(49.5)
    assert "at least" not in all_text(exact)
    counted = fed(Board(scenario(requests=100)), done)
    assert counted.remaining_s() == pytest.approx(95, rel=0.1)
    assert "at least" in all_text(counted)
    assert "settling" in all_text(fed(Board(scenario(requests=5)), done))


def test_nothing_is_promised_before_an_answer_or_under_a_trace() -> None:
    board = Board(scenario())
    board.note(Progress(elapsed_s=3.0, in_flight=4))
    assert board.remaining_s() is None
    assert "waiting for the first answer" in all_text(board)
    assert board.facts()["ttft_p50_s"] is None
    trace = Scenario(load=OpenLoop(rate_rps=1.0, arrivals="trace"))
    assert fed(Board(trace), [record(1.0)]).remaining_s() is None


def test_failures_are_red() -> None:
    board = fed(Board(scenario()), [record(1.0), record(2.0, ok=False)])
    assert ("1 failed", "red") in [piece for line in board.lines() for piece in line]
    assert ("1 failed", "red") in board.line()


def test_the_search_closes_in() -> None:
    tried = Tried()
    assert "0 users held  ..  ? failed" in all_text(Board(scenario(), tried))
    for users, verdict in [(8, "pass"), (32, "fail"), (16, "pass"), (24, "fail"), (20, "unsure")]:
        tried.add(users, verdict)
    assert (tried.held, tried.failed) == (16, 24)
    assert "16 users held  ..  24 failed" in all_text(Board(scenario(), tried))


def test_sparklines_are_as_high_as_the_rate() -> None:
    board = fed(Board(scenario()), [record(0.01 * i) for i in range(400, 800)] + [record(20.0)])
    lines = {text(line)[:3]: text(line) for line in board.lines(ASCII_SPARKS)}
    line = lines["QPS"].split("/s  ")[1]
    assert line.count("@") >= 3
    assert line.startswith("_")
    assert line.isascii()


def test_facts_are_json() -> None:
    board = fed(Board(scenario(), Tried()), [record(1.0)])
    found = json.loads(json.dumps(board.facts()))
    assert found["users"] == 4
    assert found["ended"] == 1
    assert found["held_users"] == 0
    assert found["ttft_p50_s"] == 0.2


def test_no_time_is_promised_before_everybody_had_one_answer() -> None:
    few = fed(Board(scenario(requests=60)), [record(float(n)) for n in range(1, 4)])
    enough = fed(Board(scenario(requests=60)), [record(float(n)) for n in range(1, 5)])
    assert few.remaining_s() is None
    assert enough.remaining_s() == pytest.approx(56 * 4.5 / 4)

"""Traces: every row read or accounted for, and played with its lengths, times and prefixes."""

from __future__ import annotations

import gzip
from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.errors import UsageError
from servecap.record import Request
from servecap.scenario import Replay, WorkloadSpec
from servecap.workload import source, traces
from servecap.workload.replay import prefix_tokens
from servecap.workload.tokens import Estimate

SAMPLES = Path(__file__).parent / "traces"
SHARED = Path(__file__).resolve().parents[2] / "../shared/data/datasets"


def sample(name: str) -> traces.Trace:
    return traces.load(str(SAMPLES / name))


def played(name: str, *, unique: bool = False, **scale: float) -> source.Workload:
    spec = WorkloadSpec(source=str(SAMPLES / name), replay=Replay(**scale), unique=unique)
    return source.load(spec)


def first_words(request: Request) -> tuple[str, ...]:
    return tuple(request.messages[0].content.split()[:3])


@pytest.mark.parametrize(
    ("name", "format", "records", "lengths", "due_s"),
    [
        ("azure2023.csv", "azure", 6, (374, 44), [0, 4.314579, 4.541877]),
        ("azure2024.csv", "azure", 6, (1452, 3), [0, 0.04052, 0.156825]),
        ("burstgpt1.csv", "burstgpt", 5, (472, 18), [0, 40, 113]),
        ("burstgpt2.csv", "burstgpt", 4, (906, 446), [0, 2, 80]),
        ("mooncake.jsonl", "mooncake", 6, (6758, 500), [0, 0, 0]),
        ("bailian.jsonl", "bailian", 3, (40, 20), [0, 0.75, 60.614]),
        ("plain.csv", "plain", 3, (10, 3), [0, 0.25, 1.5]),
    ],
)
def test_each_format_is_told_and_read(
    name: str, format: str, records: int, lengths: tuple[int, int], due_s: list[float]
) -> None:
    trace = sample(name)
    assert (trace.format, trace.records) == (format, records)
    assert (trace.rows[0].in_tokens, trace.rows[0].out_tokens) == lengths
    assert [row.due_s for row in trace.rows[:3]] == pytest.approx(due_s, abs=2e-6)
    assert len(trace.rows) + sum(trace.dropped.values()) == records
    assert traces.load(str(SAMPLES / name), format) == trace


def test_failed_rows_are_counted_as_left_out() -> None:
    assert sample("burstgpt1.csv").dropped == {"no output tokens (failed)": 1}


def test_a_time_without_fraction_is_read() -> None:
    assert sample("azure2024.csv").rows[-1].due_s == pytest.approx(0.998837, abs=2e-6)


def test_sessions_and_their_turns() -> None:
    rows = sample("burstgpt2.csv").rows
    assert [(row.session, row.turn) for row in rows] == [(0, 0), (None, 0), (0, 1)]
    rows = sample("bailian.jsonl").rows
    assert [(row.session, row.turn) for row in rows] == [(55, 0), (56, 0), (55, 1)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("timestamp,in,out\n1,2,3\n2,3\n", "line 3: 2 fields"),
        ("timestamp,in,out\n1,2,x\n", "line 2: could not convert"),
        ("timestamp,in,out\nnan,2,3\n", "line 2: the time nan"),
        ("timestamp,in,out\n1,-2,3\n", "line 2: -2 tokens"),
        ("timestamp,in,out\n1,2.5,3\n", "line 2: 2.5 is no whole number"),
        ("timestamp,in,out\n1,2,0\n", "no usable row among its 1"),
        ("a,b,c\n1,2,3\n", "fit no known trace"),
        ('{"prompt": "hello"}\n', "fits no known trace"),
        ('{"input_length": 4, "output_length": "x", "timestamp": 3}\n', "line 1: not a row"),
        ("", "is empty"),
    ],
)
def test_what_is_no_trace_is_told_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(UsageError, match=says):
        traces.load(str(file))


def test_wrong_format_is_refused() -> None:
    with pytest.raises(UsageError, match="no burstgpt trace"):
        traces.load(str(SAMPLES / "azure2023.csv"), "burstgpt")
    with pytest.raises(UsageError, match="not one of"):
        traces.load(str(SAMPLES / "azure2023.csv"), "splitwise")


def test_plain_without_header_gzip_and_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "t.csv.gz"
    file.write_bytes(gzip.compress("\ufeff3.5,10,3\r\n1,20,4\r\n".encode()))
    assert [(r.due_s, r.in_tokens) for r in traces.load(str(file)).rows] == [(0, 20), (2.5, 10)]


def test_requests_have_the_asked_lengths_and_times() -> None:
    requests = list(played("azure2023.csv", unique=True, time_scale=2.0).requests(3))
    rows = sample("azure2023.csv").rows
    assert [r.prompt_tokens for r in requests] == [row.in_tokens for row in rows]
    assert [r.max_output_tokens for r in requests] == [row.out_tokens for row in rows]
    assert [r.due_s for r in requests] == [row.due_s / 2 for row in rows]
    for request in requests:
        words = request.messages[0].content.split()
        assert len(words) == request.prompt_tokens
        assert Estimate().count(request.messages[0].content) == pytest.approx(len(words), rel=0.15)
    assert len({first_words(r) for r in requests}) == len(requests)


def test_shared_blocks_have_shared_words_and_no_more() -> None:
    requests = list(played("bailian.jsonl").requests(0))
    words = [r.messages[0].content.split() for r in requests]
    common = [_alike(words[0], other) for other in words[1:]]
    assert common == [32, 40], "two blocks of 16; and all of the first turn"
    assert [r.prefix_tokens for r in requests] == [40, 32, 48]
    assert (requests[2].session, requests[2].turn) == (55, 1)
    unique = [r.messages[0].content for r in played("bailian.jsonl", unique=True).requests(0)]
    assert len({text.split()[0] for text in unique}) == 3


@given(st.floats(0.05, 5), st.integers(0, 50))
def test_rate_scale_thins_or_repeats_rows_near_their_times(rate: float, seed: int) -> None:
    player = played("azure2023.csv", rate_scale=rate).player
    assert player is not None
    sent = player.played(seed)
    times = Counter(id(p.row) for p in sent)
    assert all(int(rate) <= times[id(row)] <= int(rate) + 1 for row in player.trace.rows)
    assert [p.due_s for p in sent] == sorted(p.due_s for p in sent)
    assert all(0 <= p.due_s - p.row.due_s <= max(player.trace.gaps_s) for p in sent)


def _alike(one: list[str], other: list[str]) -> int:
    """How many leading words two texts share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def test_a_repeated_row_does_not_share_the_first_ones_blocks() -> None:
    requests = list(played("bailian.jsonl", rate_scale=2.0).requests(0))
    starts = Counter(first_words(r) for r in requests)
    assert sorted(starts.values()) == [3, 3]
    assert {r.session for r in requests} == {55, 56, 55 + 57, 56 + 57}


def test_scales_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="--rate-scale 0 must be"):
        played("plain.csv", rate_scale=0.0)
    player = played("mooncake.jsonl").player
    assert player is not None
    with pytest.raises(UsageError, match="no rate can be"):
        player.rate_rps(0)


@pytest.mark.parametrize(
    ("name", "records", "used", "span_s"),
    [
        ("trace_azure2023_conv.csv", 19366, 19366, 3501.7),
        ("trace_azure2023_code.csv", 8819, 8819, 3435.9),
        ("trace_azure2024_conv_excerpt10.csv", 10, 10, 604800.0),
        ("trace_burstgpt1_first400.csv", 400, 383, 37269.0),
        ("trace_mooncake_conversation_first2500.jsonl", 2500, 2500, 822.0),
    ],
)
def test_real_traces_have_every_row_accounted_for(
    name: str, records: int, used: int, span_s: float
) -> None:
    file = SHARED / name
    if not file.exists():
        pytest.skip("the shared data sets are not here")
    trace = traces.load(str(file))
    assert (trace.records, len(trace.rows)) == (records, used)
    assert sum(trace.dropped.values()) == records - used
    assert trace.span_s == pytest.approx(span_s, abs=0.1)
    if trace.block_tokens is not None:
        sizes = [-(-row.in_tokens // trace.block_tokens) == len(row.blocks) for row in trace.rows]
        assert all(sizes)
        shared = Counter(h for row in trace.rows for h in row.blocks)
        share = sum(prefix_tokens(r, shared, 512) for r in trace.rows) / sum(
            r.in_tokens for r in trace.rows
        )
        assert 0.2 < share < 0.9

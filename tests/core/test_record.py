"""Records, their derived figures and their line of JSON; named random streams."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import record

from servecap import rand
from servecap.columns import Columns
from servecap.level import shifted
from servecap.record import (
    Counts,
    Outcome,
    Record,
    ServerTimings,
    Times,
    decode,
    encode,
    last_tries,
)


def streamed(chunk_s: list[float], *, tokens: int, per_chunk: list[int] | None = None) -> Record:
    return Record(
        request_id=1,
        user=2,
        planned_s=1.0,
        sent_s=1.25,
        end_s=9.0,
        outcome=Outcome.OK,
        first_token_s=chunk_s[0] if chunk_s else None,
        chunk_s=Times(chunk_s),
        chunk_tokens=Counts(per_chunk or []),
        output_tokens=tokens,
    )


def test_derived_times() -> None:
    r = streamed([2.0, 3.0, 5.0], tokens=3)
    assert (r.lag_s, r.ttft_s, r.ttft_sent_s, r.e2e_s) == (0.25, 1.0, 0.75, 8.0)
    assert r.gaps_s() == [1.0, 2.0]
    assert r.tpot_s == 1.5


@pytest.mark.parametrize(
    ("chunks", "tokens", "per_chunk", "tpot_s"),
    [
        ([2.0, 5.0], 4, [1, 3], 1.0),
        ([2.0, 5.0], 4, [3, 1], 3.0),  # the first chunk came with the TTFT, all of it
        ([2.0, 5.0], 4, None, 1.0),
        ([2.0], 4, None, None),
        ([], 4, None, None),
        ([2.0, 5.0], 1, None, None),
        ([2.0, 5.0], 3, [3, 0], None),
    ],
)
def test_time_per_token(
    chunks: list[float], tokens: int, per_chunk: list[int] | None, tpot_s: float | None
) -> None:
    assert streamed(chunks, tokens=tokens, per_chunk=per_chunk).tpot_s == tpot_s


def test_servers_ttft_needs_the_queue() -> None:
    assert ServerTimings(origin="x", prefill_s=1.0).ttft_s is None
    assert ServerTimings(origin="x", queue_s=1.0).ttft_s is None
    assert ServerTimings(origin="x", prefill_s=1.0, queue_s=0.0).ttft_s == 1.0


TIME = st.floats(0, 1e6)


@given(
    st.lists(TIME, max_size=5),
    st.lists(st.integers(0, 2**32 - 1), max_size=5),
    st.none() | st.text(max_size=20),
    st.sampled_from(list(Outcome)),
    TIME,
)
def test_record_survives_its_line(
    times: list[float], counts: list[int], error: str | None, outcome: Outcome, end_s: float
) -> None:
    old = msgspec.structs.replace(
        record(end_s),
        chunk_s=Times(round(t, 6) for t in times),
        chunk_tokens=Counts(counts),
        error=error,
        outcome=outcome,
        server=ServerTimings(origin="x", queue_s=0.0),
    )
    line = encode(old)
    assert b"\n" not in line
    assert decode(line) == old


@pytest.mark.parametrize(
    "change",
    [
        ("chunk_s", '"abc"'),
        ("chunk_s", '[1,"a"]'),
        ("chunk_s", "{}7"),
        ("chunk_tokens", "[-1]"),
        ("chunk_tokens", "[99999999999999999999]"),
        ("outcome", '"fine"'),
        ("end_s", "null"),
    ],
)
def test_damaged_line_is_a_decode_error(change: tuple[str, str]) -> None:
    fields = msgspec.json.decode(encode(record(1.0)))
    fields[change[0]] = 0
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in fields.items()}
    raw[change[0]] = msgspec.Raw(change[1].encode())
    with pytest.raises(msgspec.DecodeError):
        decode(msgspec.json.encode(raw))


def test_cut_line_is_a_decode_error() -> None:
    line = encode(record(1.0))
    for end in range(len(line)):
        with pytest.raises(msgspec.DecodeError):
            decode(line[:end])


def test_random_streams_are_apart_and_repeat() -> None:
    assert rand.derive(0, "a") != rand.derive(0, "b") != rand.derive(1, "b")
    assert rand.derive(1, 1) != rand.derive(11)
    seeds = {rand.derive(0, "think", user) for user in range(1000)}
    assert len(seeds) == 1000
    assert max(seeds) < 2**64
    assert rand.stream(3, "x").random() == rand.stream(3, "x").random()


def test_of_a_retry_latencies_count_from_the_first_try() -> None:
    r = msgspec.structs.replace(streamed([2.0, 5.0], tokens=4), attempt=2, first_planned_s=-3.0)
    assert (r.ttft_s, r.e2e_s) == (5.0, 12.0), "so long has the user waited"
    assert (r.lag_s, r.ttft_sent_s, r.tpot_s) == (0.25, 0.75, 1.0), "these are of the try alone"
    assert decode(encode(r)) == r


def test_what_is_counted_of_a_request_that_was_tried_again() -> None:
    bad = record(1.0, outcome=Outcome.REFUSED)
    worse = msgspec.structs.replace(record(2.0, outcome=Outcome.REFUSED), attempt=2)
    late = msgspec.structs.replace(record(3.0), attempt=3)
    well = record(4.0, number=1)
    broken = record(5.0, outcome=Outcome.BROKEN_STREAM, number=2)
    told = [bad, worse, late, well, broken]
    assert Columns(told).once_each().records == [bad, worse, well, broken]
    assert last_tries(told, 2) == [late, well, broken]
    assert last_tries(told, 1) == [worse, late, well, broken], "two were allowed, and that was it"


def test_every_time_of_a_record_moves_with_its_zero() -> None:
    """Nothing that ends in _s is left on the old clock but what is a length."""
    r = msgspec.structs.replace(
        streamed([12.0, 15.0], tokens=4),
        last_token_s=16.0,
        first_planned_s=0.5,
        retry_after_s=7.0,
    )
    moved = shifted(r, 10.0)
    names = [f.name for f in msgspec.structs.fields(Record) if f.name.endswith("_s")]
    assert set(names) == {"planned_s", "sent_s", "end_s", "first_token_s", "last_token_s",
                          "chunk_s", "first_planned_s", "retry_after_s"}  # fmt: skip
    for name in set(names) - {"chunk_s", "retry_after_s"}:
        assert getattr(moved, name) == getattr(r, name) - 10.0, name
    assert moved.chunk_s == Times([2.0, 5.0])
    assert moved.retry_after_s == 7.0
    for name in ("ttft_s", "ttft_sent_s", "tpot_s", "e2e_s", "lag_s"):
        assert getattr(moved, name) == getattr(r, name), name


def test_counts_are_read_as_they_were_whatever_their_size() -> None:
    for counts in ([], [1, 1, 1], [0, 255], [1, 256, 70_000, 2**32 - 1]):
        made = msgspec.structs.replace(record_of_chunks(counts), output_tokens=9)
        again = decode(encode(made))
        assert type(again.chunk_tokens) is Counts
        assert again.chunk_tokens.tolist() == counts
    line = encode(record_of_chunks([7]))
    for bad in (b"[-1]", b"[1.5]", b"[4294967296]", b'["a"]', b"5", b'"7"'):
        with pytest.raises(msgspec.DecodeError):
            decode(line.replace(b'"chunk_tokens":[7]', b'"chunk_tokens":' + bad))


def record_of_chunks(counts: list[int]) -> Record:
    return Record(
        request_id=0, user=0, planned_s=0.0, sent_s=0.0, end_s=1.0, outcome=Outcome.OK,
        chunk_s=Times([0.5] * len(counts)), chunk_tokens=Counts(counts),
    )  # fmt: skip

"""A few seconds of fuzzing in each run of the tests, and what longer runs have found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import fuzz_targets
import msgspec
import pytest
import written
from fuzzing import fuzz
from mutator import Mutator

from servecap import record, store
from servecap.engine import gpu_file, model
from servecap.errors import UsageError
from servecap.foreign import nvidia
from servecap.foreign import read as foreign
from servecap.predict import profile
from servecap.wire.answer import clean
from servecap.wire.tgi import timings
from servecap.workload import traces

READERS = fuzz_targets.readers()
QUICK = 200


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.name)
def test_broken_input_meets_only_documented_errors(reader: fuzz_targets.Reader) -> None:
    tally = fuzz(reader, max(20, round(QUICK * min(1.0, reader.weight))), seed=0)
    assert tally.failures == {}
    assert tally.taken > 0, "the mutator breaks everything, so that nothing deep is reached"


def test_reader_that_fails_is_found_out() -> None:
    """The fuzzer itself: an undocumented error is told with its place and its input."""

    def careless(data: bytes) -> None:
        json.loads(data)["key"]

    reader = fuzz_targets.Reader("careless", [b'{"key": 1}'], careless, (ValueError,))
    found = fuzz(reader, 300, seed=1).failures
    assert any(why.startswith("KeyError at test_fuzz.py") for why in found)
    assert all(isinstance(data, bytes) for data in found.values())


def test_same_seed_makes_the_same_inputs() -> None:
    def drawn(seed: int) -> list[bytes]:
        mutator = Mutator([b'{"a": [1, 2]}', b"text 17"], Random(seed))
        return [mutator.next() for _ in range(50)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


# What the fuzzer has found, each with the input that showed it.


@pytest.mark.parametrize("value", ["NaN", "inf", "1e999", "-5", "x"])
def test_tgi_time_that_is_none_is_taken_for_absent(value: str) -> None:
    headers = {"x-inference-time": "3600", "x-time-per-token": value, "x-queue-time": value}
    found = timings(headers, 9)
    assert found is not None
    assert (found.tpot_s, found.queue_s, found.prefill_s) == (None, None, None)
    assert timings({"x-inference-time": value}, 9) is None


def test_record_nested_too_deeply_is_no_record() -> None:
    with pytest.raises(msgspec.DecodeError):
        record.decode(b'{"request_id":1,"x":' + b"[" * 100_000)


def test_run_header_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    (tmp_path / store.RECORDS).write_bytes(b"")
    (tmp_path / store.HEADER).write_bytes(b'{"scenario":{"load":{"kind":' + b"[" * 3000)
    with pytest.raises(UsageError, match="is damaged"):
        store.read_run(tmp_path)


def test_failure_is_one_line_whatever_it_names() -> None:
    assert str(UsageError("key 'a\nb\u2028c' is not known")) == "key 'a b c' is not known"


def test_error_of_a_server_is_printable_whatever_it_holds() -> None:
    assert clean("a\ufeffb\u200b\ue000\ud800\x1b[31mc") == "a b [31mc"


DEEP = "[" * 3000
UTF8 = b'{"name": "\xe7"}'
SHAPE = {
    "model_type": "deepseek_v3", "num_hidden_layers": 4, "hidden_size": 64,
    "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100, "kv_lora_rank": 8,
    "max_position_embeddings": 128, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
}  # fmt: skip
ASKED: dict[str, Any] = {
    "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": 5.0,
    "max_concurrency": 8, "duration": 1.0, "completed": 1,
}  # fmt: skip


def dumped(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (gpu_file.read, f"name: {DEEP[:900]}".encode()),
        (model._from_file, UTF8),
        (model._from_file, b'{"model_type": ' + DEEP.encode()),
        (model._from_file, dumped(SHAPE | {"first_k_dense_replace": [1]})),
        (model._from_file, dumped(SHAPE | {"first_k_dense_replace": 9})),
        (model._from_file, dumped(SHAPE | {"n_shared_experts": "x"})),
        (model._from_file, dumped(SHAPE | {"quantization_config": [1]})),
        (profile.load, UTF8),
        (lambda path: traces.load(str(path)), b'""'),
        (lambda path: traces.load(str(path)), b"time,in,out,out\n1,2,3\n"),
        (lambda path: traces.load(str(path)), b"time,in,out\n1,2," + b"3" * 200_000),
        (foreign.read, dumped(ASKED | {"request_count": {"avg": float("inf")}})),
    ],
    ids=lambda v: v[:40].decode("latin-1") if isinstance(v, bytes) else "",
)
def test_damaged_file_is_told_in_one_line(
    tmp_path: Path, read: Callable[[Path], object], data: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ttfts", [float("nan")]), ("ttfts", [-1.0]), ("ttfts", [1e300]),
        ("input_lens", [-5]), ("output_lens", [2**40]), ("max_concurrency", -1),
    ],
)  # fmt: skip
def test_imported_figure_that_cannot_be_is_named(tmp_path: Path, key: str, value: object) -> None:
    document = written.vllm(written.asked(1, failed=0))
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(document))
    assert len(foreign.read(path)[0].rows) == 1
    path.write_text(json.dumps(document | {key: value}))
    with pytest.raises(UsageError, match=r"request 1|the load"):
        foreign.read(path)


def test_imported_concurrency_far_beyond_the_requests_takes_no_memory(tmp_path: Path) -> None:
    document = written.vllm(written.asked(20, failed=0), starts=False, max_concurrency=10**11)
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(document))
    assert foreign.read(path)[0].tool


def test_less_than_one_request_in_flight_is_no_load_to_replay(tmp_path: Path) -> None:
    document = written.vllm(written.asked(20, failed=0), starts=False, max_concurrency=1e-320)
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(document))
    assert foreign.read(path)[0].rows == ()


@pytest.mark.parametrize("write", [written.vllm, written.sglang])
def test_fewer_than_no_requests_in_flight_are_refused(
    write: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    document = write(written.asked(20, failed=0), max_concurrency=-7)
    document.pop("start_times", None)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="the load is -7"):
        foreign.read(path)


def test_a_truth_is_no_count_of_tokens() -> None:
    assert nvidia._tokens({"prompt_tokens": True}, "prompt_tokens") is None
    assert nvidia._tokens({"prompt_tokens": 7}, "prompt_tokens") == 7


def test_half_a_character_in_an_imported_file_is_replaced(tmp_path: Path) -> None:
    document = written.vllm(written.asked(3, failed=0), model_id="a\ud800b")
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(document))
    assert foreign.read(path)[0].model == "a\ufffdb"

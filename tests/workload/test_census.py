"""`servecap workload`: figures of data sets and traces, and smaller ones that are like them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from servecap.cli.workload import command
from servecap.errors import UsageError
from servecap.workload import census, traces

SAMPLES = Path(__file__).parent / "traces"


def tell(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


def made(path: Path, rows: int, cv: float = 1.0) -> str:
    """A plain trace of gamma gaps of mean 0.1 s and geometric-like lengths."""
    rng = random.Random(4)
    t_s, lines = 0.0, ["timestamp,in,out"]
    for _ in range(rows):
        t_s += rng.gammavariate(cv**-2, 0.1 * cv**2)
        lines.append(f"{t_s!r},{1 + int(rng.expovariate(0.002))},{1 + int(rng.expovariate(0.01))}")
    file = path / "made.csv"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_rate_and_burstiness_of_a_known_process(tmp_path: Path, cv: float) -> None:
    told = census.of_trace("made", traces.load(made(tmp_path, 12_000, cv)))
    assert told.arrivals is not None
    assert told.arrivals.rate_rps == pytest.approx(10, rel=0.05)
    assert told.arrivals.cv == pytest.approx(cv, rel=0.05)
    # Of a renewal process the dispersion of long counts tends to cv^2.
    assert told.arrivals.dispersion == pytest.approx(cv**2, rel=0.7)
    assert told.in_tokens is not None
    assert told.in_tokens.mean == pytest.approx(500, rel=0.05)


def test_shared_prefixes_and_sessions() -> None:
    told = census.of_trace("bailian", traces.load(str(SAMPLES / "bailian.jsonl")))
    assert told.shared_prefix_share == pytest.approx((40 + 32 + 48) / (40 + 33 + 70))
    assert told.sessions == 1
    assert told.turns is not None
    assert told.turns.max == 2


def test_all_at_one_time_has_no_rate() -> None:
    told = census.of_trace("mooncake", traces.load(str(SAMPLES / "mooncake.jsonl")))
    assert told.arrivals is not None
    assert (told.arrivals.rate_rps, told.arrivals.cv) == (None, None)


def test_describe_prints_a_trace_and_draws_it(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    shown = tell("describe", made(tmp_path, 300), "--picture", str(picture))
    assert shown.exit_code == 0
    assert "300, 300 of them usable" in shown.output
    assert "as a load" in shown.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_describe_prints_a_data_set_as_json() -> None:
    told = json.loads(tell("describe", "chat-en", "--json").output)
    assert told["arrivals"] is None
    assert told["used"] + sum(told["dropped"].values()) == told["records"]
    assert told["token_source"] == "estimate"


def test_sample_of_a_trace_is_one_piece_that_is_like_the_whole(tmp_path: Path) -> None:
    whole, out = made(tmp_path, 5000, 2.0), tmp_path / "small.csv"
    shown = tell("sample", whole, "--requests", "400", "--out", str(out))
    assert shown.exit_code == 0
    text = Path(whole).read_text()
    body = out.read_text().split("\n", 1)[1]
    assert body in text, "in one piece, as it stands"
    small, large = (census.of_trace("", traces.load(f)) for f in (str(out), whole))
    assert small.used == 400
    assert small.arrivals is not None
    assert large.arrivals is not None
    assert small.arrivals.rate_rps == pytest.approx(large.arrivals.rate_rps, rel=0.1)
    assert small.arrivals.cv == pytest.approx(large.arrivals.cv, rel=0.1)
    assert small.in_tokens is not None
    assert large.in_tokens is not None
    assert small.in_tokens.mean == pytest.approx(large.in_tokens.mean, rel=0.1)


def test_the_piece_shares_prefixes_where_the_trace_does(tmp_path: Path) -> None:
    """All pieces have the same lengths and rate; only the last third shares any input."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "small.jsonl"
    rows = (
        {
            "timestamp": i * 100,
            "input_length": 1024,
            "output_length": 50,
            "hash_ids": [0 if i >= 200 else 2 * i + 1, 2 * i + 2],
        }
        for i in range(300)
    )
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tell("sample", str(whole), "--requests", "60", "--out", str(out)).exit_code == 0
    small, large = (census.of_trace("", traces.load(str(f))) for f in (out, whole))
    assert large.shared_prefix_share == pytest.approx(1 / 6)
    assert small.shared_prefix_share == pytest.approx(1 / 6, abs=0.01)


@pytest.mark.parametrize("name", ["mooncake.jsonl", "azure2024.csv", "burstgpt2.csv"])
def test_samples_keep_the_format(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    assert tell("sample", str(SAMPLES / name), "--requests", "2", "--out", str(out)).exit_code == 0
    trace = traces.load(str(out))
    assert trace.format == traces.load(str(SAMPLES / name)).format
    assert len(trace.rows) == 2


def test_sample_of_a_data_set_has_its_lengths(tmp_path: Path) -> None:
    rng = random.Random(0)
    file, out = tmp_path / "set.jsonl", tmp_path / "small.jsonl"
    lengths = [1 + int(rng.expovariate(0.01)) for _ in range(900)]
    file.write_text("".join(json.dumps({"prompt": "river " * n}) + "\n" for n in lengths))
    shown = tell("sample", str(file), "--requests", "90", "--out", str(out))
    assert shown.exit_code == 0
    taken = [json.loads(line)["prompt"].count("river") for line in out.read_text().splitlines()]
    assert len(taken) == 90
    assert sum(taken) / 90 == pytest.approx(sum(lengths) / 900, rel=0.05)
    assert sorted(taken)[45] == pytest.approx(sorted(lengths)[450], rel=0.1)


def test_samples_that_cannot_be(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="ask for fewer"):
        tell("sample", str(SAMPLES / "plain.csv"), "--requests", "3", "--out", str(out))
    with pytest.raises(UsageError, match="only a file"):
        tell("sample", "chat-en", "--requests", "3", "--out", str(out))
    out.write_text("")
    with pytest.raises(UsageError, match="exists already"):
        tell("sample", str(SAMPLES / "plain.csv"), "--requests", "2", "--out", str(out))

"""`servecap calibrate --url` against a real llama.cpp server on a CPU that no data sheet knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from llama import SIZES, VOCABULARY

from servecap.cli import cli
from servecap.errors import InvalidRun
from servecap.predict import profile

pytestmark = [pytest.mark.engine, pytest.mark.slow]
SHEET = """\
name: a-core
memory_gib: 4
memory: gddr
bandwidth_gb_per_s: 20
fp16_tflops: 0.08
"""


def hardware(folder: Path) -> list[str]:
    """The options that tell the tiny model's shape and the device."""
    size = SIZES["tiny"]
    heads = size.hidden // size.head_dim
    shape = {
        "model_type": "llama",
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": heads,
        "intermediate_size": size.feed_forward,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 1024,
    }
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "cpu.yaml").write_text(SHEET)
    return ["--model", str(folder / "config.json"), "--gpu", str(folder / "cpu.yaml")]


def test_a_llama_server_is_probed_and_its_slots_are_found(llama_url: str, tmp_path: Path) -> None:
    """Whole runs within the time; the profile knows the place, the limit and a step's shape."""
    kept, told = tmp_path / "p.json", hardware(tmp_path)
    given = [*told, "--out", str(kept), "--runs", str(tmp_path / "runs"), "--budget", "30s"]
    done = CliRunner().invoke(
        cli, ["calibrate", "--url", llama_url, "--engine", "llama.cpp", *given]
    )
    if isinstance(done.exception, InvalidRun) and "client_limited" in str(done.exception):
        pytest.skip("this machine is too busy to measure anything: the client was late throughout")
    assert done.exit_code == 0, done.output
    assert "prefix cache" not in done.output  # what the server keeps of its template is no reason
    assert "probing http://127.0.0.1" in done.output
    assert "at most 13 short runs in at most 30 s: prompts of 32, 128, 512 tokens" in done.output
    fitted = profile.load(kept)
    assert fitted.validity.rows >= 1
    if fitted.validity.rows < 8:
        pytest.skip(f"this machine is too busy: only {fitted.validity.rows} runs can be believed")
    assert fitted.validity.gpus == ("a-core",)
    assert any(p.identified for n, p in fitted.parameters.items() if n.startswith("matrices_"))
    assert fitted.max_running is not None
    assert 6 <= fitted.max_running <= 10
    asked = ["predict", "--profile", str(kept), *told, "--scenario", "fixed:40/32", "--users", "2"]
    done = CliRunner().invoke(cli, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    (cell,) = json.loads(done.output)["cells"]
    assert cell["kind"] == "measured"
    assert cell["tpot_s"]["high"] < 0.1  # half a millisecond on a quiet core

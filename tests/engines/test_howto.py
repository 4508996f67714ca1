"""The commands of docs/servers.md run: against a real llama.cpp, and the emulator's dialects."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

from servecap import cli
from servecap.emulate.config import EmulatorConfig
from servecap.emulate.launch import running

PAGE = Path(__file__).resolve().parents[2] / "docs" / "servers.md"
# What makes a test of minutes one of seconds; the words of the document come first and stay.
SHORT = ["--think", "0.01..0.02", "--quiet"]
SHORT_OF = {
    "run": ["--requests", "40", "--slo", "ttft.p99<60s,error_rate<50%"],
    "find": ["--requests", "40", "--start", "1", "--max-users", "2"],
}


def commands(server: str) -> list[list[str]]:
    """The servecap commands under the server's heading that load it, as lists of words."""
    (section,) = re.findall(
        rf"^## {re.escape(server)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S
    )
    text = "\n".join(re.findall(r"^```text\n(.*?)^```", section, re.M | re.S))
    found = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("servecap ")]
    return [words for words in found if words[0] in SHORT_OF]


def played(words: list[str], url: str, out: Path) -> None:
    """Run the command as it is written, but at *url* and for a short time."""
    at = words.index("--url") + 1
    path = re.sub(r"^https?://[^/]+", "", words[at])
    given = [*words[:at], url + path, *words[at + 1 :]]
    given = ["llama-13b" if given[i - 1] == "--model" else word for i, word in enumerate(given)]
    # The emulator's natural answer is as long as its context: the last --output is what counts.
    given += ["--output", "8"] if "natural" in given else ["--workload", "fixed:30/8"]
    done = CliRunner().invoke(
        cli.cli, [*given, *SHORT, *SHORT_OF[words[0]], "--out", str(out)], standalone_mode=False
    )
    assert done.exception is None, repr(done.exception)
    # 4: on a busy machine the client may be too slow to be believed; it has run all the same.
    assert done.return_value in (0, 4), done.output
    assert (out / "report.html").is_file()


@pytest.mark.engine
@pytest.mark.slow
def test_what_is_written_for_llama_cpp_runs_against_it(llama_url: str, tmp_path: Path) -> None:
    (words,) = commands("llama.cpp")
    played(words, llama_url, tmp_path / "out")
    summary = (tmp_path / "out" / "summary.json").read_text()
    assert '"prefill"' in summary, "--timings both: the server's own clock is told"


@pytest.mark.slow
@pytest.mark.parametrize("server", ["vLLM", "SGLang", "Ollama", "A hosted API"])
def test_what_is_written_for_others_runs_against_the_emulator(server: str, tmp_path: Path) -> None:
    engine: Literal["sglang", "vllm"] = "sglang" if server == "SGLang" else "vllm"
    told = commands(server)
    assert told
    with running(
        EmulatorConfig(model="llama-13b", gpu="a100-40gb", tp=4, engine=engine, speed=20)
    ) as url:
        for number, words in enumerate(told):
            played(words, url, tmp_path / str(number))

"""The same search twice at a real llama.cpp: `python bench/find/llama.py [PAIRS] [FIRST]`.

Prints the two intervals of each pair and whether they overlap; FIRST counts the pairs of earlier
calls. The model has random weights and is built on the spot; nothing is downloaded. Server and
client share this machine: run it alone, or with a higher priority than whatever else is running.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "engines"))

from llama import build_model, running_llama

SLO = "ttft.mean<200ms"
BUDGET_S = 40
SLOTS = 4


def searched(url: str, out: Path, seed: int) -> tuple[int, int, str] | None:
    """The interval and what is said against it; None where no answer was given."""
    words = ["find", "--url", url, "--slo", SLO, "--start", "3", "--max-users", "64",
             "--budget", str(BUDGET_S), "--requests", "80", "--precision", "20%",
             "--workload", "fixed:16/64", "--think", "0.1..0.3", "--seed", str(seed),
             "--quiet", "--json", "--out", str(out)]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "servecap", *words], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        print(f"  no answer ({done.returncode}): {' '.join(done.stderr.split())[:150]}")
        return None
    found = json.loads(done.stdout)
    estimate = found["estimate"]
    low, high = int(estimate["low"]), estimate["high"]
    return low, 10**9 if high is None else int(high), found["unsure"] or ""


def main(pairs: int, before: int) -> None:
    overlap, told = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(Path(folder) / "model.gguf", "tiny")
        for pair in range(before, before + pairs):
            with running_llama(model, SLOTS, prompt_cache=False) as url:
                ends = [searched(url, Path(folder) / f"{pair}-{k}", 2 * pair + k) for k in range(2)]
            first, second = ends
            if first is None or second is None:
                continue
            told += 1
            same = first[0] <= second[1] and second[0] <= first[1]
            overlap += same
            said = "overlap" if same else "APART"
            sure = ["sure" if not x[2] else "UNSURE" for x in (first, second)]
            print(
                f"{pair + 1}: {first[0]} to {first[1]} ({sure[0]}), {second[0]} to {second[1]} "
                f"({sure[1]}): {said}",
                flush=True,
            )
    print(f"{overlap} of {told} pairs overlap; {pairs - told} gave no answer")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [10, 0][len(given) :]))

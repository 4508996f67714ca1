"""Predicted against measured users on a llama.cpp server of our own, and on nothing it was fed.

    python bench/controlled [--repeats 3] [--limits LIMIT ...] [--search 2m] [--out FOLDER]

Each repeat starts the server anew, probes it (`servecap calibrate --url`), predicts the most users
of closed loops for two limits, measures them (`servecap find`), and compares. The GPU is this
machine's core, told by a data sheet in YAML that is only roughly right. Beside other work on the
machine nothing of this can be trusted: as root, server and client go before all others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "engines"))

from llama import SIZES, VOCABULARY, build_model, running_llama  # noqa: E402

SLOTS, CONTEXT_TOKENS = 8, 2048
WORDS, ANSWER_TOKENS = 8, 32
WIDTH = 0.15  # half of a search's interval, of its middle: what is wider is no measurement
LIMITS = ("tpot.mean<25ms", "ttft.mean<400ms")
# Of one core at 2.6 GHz with AVX-512: 16 multiply-adds of 32 bits a cycle. The rest is a guess.
DATA_SHEET = """\
name: one-core
memory_gib: 4
memory: gddr
bandwidth_gb_per_s: 20
fp16_tflops: 0.08
source: a data sheet of the processor
"""


def main() -> int:
    """Prints each repeat and the median error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limits", nargs="+", default=list(LIMITS))
    parser.add_argument("--search", default="2m", help="how long each search may take")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    print(first(), flush=True)
    with tempfile.TemporaryDirectory() as made:
        folder = given.out or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        model = build_model(folder / "slow.gguf", "slow")
        (folder / "config.json").write_text(json.dumps(config()))
        (folder / "cpu.yaml").write_text(DATA_SHEET)
        told = [
            error
            for n in range(given.repeats)
            for error in repeat(folder, model, n, limits=given.limits, budget=given.search)
        ]
    errors = [e for e in told if e is not None]
    if not errors:
        print("no search could tell a capacity: the machine is too busy")
        return 1
    off = [abs(e) for e in errors]
    spread = f"median error {statistics.median(off):.1%}, worst {max(off):.1%}"
    bias = statistics.median(errors)
    print(f"max users, {len(off)} of {len(told)} comparisons: {spread}, bias {bias:+.1%}")
    print(f"load average of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0


def config() -> dict[str, Any]:
    """The model's shape as a config.json."""
    size = SIZES["slow"]
    heads = size.hidden // size.head_dim
    return {
        "model_type": "llama",
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": size.head_dim,
        "intermediate_size": size.feed_forward,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_TOKENS,
    }


def first() -> str:
    """This process and all that it starts before all others, where that is allowed; says which."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        return "beside whatever else runs here (no right to go first)"
    return "server and client before all other processes (SCHED_RR)"


def repeat(
    folder: Path, model: Path, number: int, *, limits: list[str], budget: str
) -> list[float | None]:
    """Predicted / measured - 1 of each limit; each is printed."""
    profile, runs = folder / f"profile-{number}.json", folder / f"probes-{number}"
    found = []
    with running_llama(model, SLOTS, context_tokens=CONTEXT_TOKENS, prompt_cache=False) as url:
        servecap("calibrate", "--url", url, "--model", str(folder / "config.json"), "--gpu",
                 str(folder / "cpu.yaml"), "--out", str(profile), "--runs", str(runs),
                 "--engine", "llama.cpp", "--budget", "2m")  # fmt: skip
        for limit in limits:
            seen = json.loads(
                servecap("find", "--url", url, "--workload", f"fixed:{WORDS}/{ANSWER_TOKENS}",
                         "--slo", limit, "--requests", "60", "--budget", budget, "--precision",
                         "5%", "--start", "8", "--no-telemetry", "--quiet", "--json", "--out",
                         str(folder / f"find-{number}-{limit.split('.')[0]}"))
            )  # fmt: skip
            found.append(compared(folder, profile, limit, seen, number))
    return found


def compared(
    folder: Path, profile: Path, limit: str, seen: dict[str, Any], number: int
) -> float | None:
    """Prints the prediction beside what was measured; their ratio - 1.

    None: the search's interval is too wide to compare anything with.
    """
    prompt = seen["levels"][0]["summary"]["client"]["prompt_tokens"]["mean"]
    told = servecap("predict", "--profile", str(profile), "--model", str(folder / "config.json"),
                    "--gpu", str(folder / "cpu.yaml"), "--scenario",
                    f"fixed:{round(prompt)}/{ANSWER_TOKENS}", "--slo", limit, "--json")  # fmt: skip
    users = json.loads(told)["cells"][0]["max_users"]
    capacity = seen["capacity"]
    middle = (capacity["users"] + (capacity["users_high"] or capacity["users"])) / 2
    decided = bool(middle) and middle - capacity["users"] <= WIDTH * middle
    error = float(users["value"] / middle - 1) if decided else None
    print(f"repeat {number}, {limit}: predicted {users['value']:.0f} ({users['low']:.0f} to "
          f"{users['high']:.0f}), measured {capacity['users']} to {capacity['users_high']}: "
          f"{'the search could not tell' if error is None else f'{error:+.1%}'}",
          flush=True)  # fmt: skip
    return error


def servecap(*words: str) -> str:
    """What the command prints on stdout; find's 1 (not even one user) is an answer, too."""
    done = subprocess.run(
        [sys.executable, "-m", "servecap", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"servecap {' '.join(words)} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

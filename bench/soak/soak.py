"""Does the client's memory stay flat? `servecap run --soak` against a null server in C, watched.

    python bench/soak/soak.py [--time 1h] [--streams 500] [--rate 10] [--tokens 50] [--workers 1]

Needs cc. The users do not think, so that as many streams run at any time; each gets `rate` tokens
a second. Every ten seconds (of a soak under ten minutes: sixty times in all) the resident memory of
all processes of the client is taken; a line is printed for each sixth. At the end: the growth after
the first ten minutes (of a shorter soak: after the first sixth), as the mean of the last tenth over
the mean of the tenth after that time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from servecap.cli.options import Span

SERVER = Path(__file__).parents[1] / "wire" / "null_server.c"
EVERY_S = 10.0
MIB = 1 << 20


def memory_bytes(process: psutil.Process) -> int:
    """Resident memory of the process and its children; pages that they share count once each."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def growth(samples: list[tuple[float, int]], soak_s: float) -> float:
    """Relative growth of memory from after the first ten minutes to the end."""
    settled_s = min(600.0, soak_s / 6)
    first = [n for at_s, n in samples if settled_s <= at_s < settled_s + soak_s / 10]
    last = [n for at_s, n in samples if soak_s * 0.9 <= at_s <= soak_s]
    return (sum(last) / len(last)) / (sum(first) / len(first)) - 1


def watched(client: subprocess.Popen[bytes], soak_s: float) -> list[tuple[float, int]]:
    """Seconds since the start and bytes, until the client has ended."""
    process, start_s = psutil.Process(client.pid), time.monotonic()
    every_s = min(EVERY_S, soak_s / 60)
    samples: list[tuple[float, int]] = []
    while client.poll() is None:
        at_s = time.monotonic() - start_s
        try:
            samples.append((at_s, memory_bytes(process)))
        except psutil.NoSuchProcess:
            break
        if len(samples) % 6 == 1:
            print(f"{at_s:8.0f} s {samples[-1][1] / MIB:8.1f} MiB", flush=True)
        try:
            client.wait(every_s)
        except subprocess.TimeoutExpired:
            continue
    return [(at_s, n) for at_s, n in samples if at_s <= soak_s]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", default="1h")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--rate", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--keep", type=Path, help="Folder for the run.  [default: thrown away]")
    args = parser.parse_args()
    soak_s = Span().convert(args.time, None, None)
    with tempfile.TemporaryDirectory() as name:
        binary = str(Path(name) / "null_server")
        subprocess.run(["cc", "-O2", "-o", binary, str(SERVER)], check=True)
        command = [binary, "0", str(round(1e6 / args.rate)), "300000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            out = args.keep or Path(name) / "run"
            words = f"""run --url {url} --users {args.streams} --think 0 --soak {args.time}
                --workload fixed:20/{args.tokens} --workers {args.workers} --quiet --out"""
            client = subprocess.Popen(
                [sys.executable, "-m", "servecap", *words.split(), str(out)],
            )
            try:
                samples = watched(client, soak_s)
            finally:
                client.terminate()
                client.wait()
                server.terminate()
    print(f"client ended with {client.returncode}; {len(samples)} samples")
    print(f"growth after the first {min(600, soak_s / 6):.0f} s: {growth(samples, soak_s):+.1%}")


if __name__ == "__main__":
    main()

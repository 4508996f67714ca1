"""servecap's client beside others, against a null server: what does a token event cost?

    python bench/wire/bench.py [--rounds 3] [--seconds 4] [--clients c,product,least,aiohttp,httpx]
        [--realtime]

How to read what it prints is in README.md beside it. Needs cc, and `pip install -e ".[bench]"` for
aiohttp and httpx.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

HERE = Path(__file__).parent
# streams, events per second and stream
LEVELS = ((64, 50), (256, 50), (1024, 50), (4096, 20))
TOO_MUCH = {"httpx": 3_500, "aiohttp": 60_000}  # events/s that a client cannot follow for long
ENTRY = np.dtype([("stream", "<u4"), ("kind", "<u4"), ("at_ns", "<i8")])
Figures = dict[str, float]


def build(folder: Path) -> None:
    for name in ("null_server", "c_client"):
        subprocess.run(["cc", "-O2", "-o", str(folder / name), str(HERE / f"{name}.c")], check=True)


REALTIME = False


def pinned(core: int, command: list[str]) -> subprocess.Popen[str]:
    def alone() -> None:
        os.sched_setaffinity(0, {core})
        if REALTIME:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=alone)


def client_command(kind: str, folder: Path, arguments: list[str]) -> list[str]:
    if kind == "c":
        return [str(folder / "c_client"), *arguments]
    return [sys.executable, str(HERE / "clients.py"), kind, *arguments]


def once(
    kind: str, folder: Path, cores: tuple[int, int], streams: int, rate: int, seconds: float
) -> Figures:
    """The figures of one client at one level; rate 0: one-token requests, back to back."""
    log, out = folder / "server.log", folder / "client.log"
    interval_us = 1_000_000 // rate if rate else 0
    server = pinned(
        cores[0],
        [str(folder / "null_server"), "0", str(interval_us), "300000", str(log)],
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        tokens = round(rate * seconds) if rate else 1
        arguments = [port, str(streams), str(tokens)]
        arguments += [str(out)] if rate else ["-", str(seconds)]
        client = pinned(cores[1], client_command(kind, folder, arguments))
        text, _ = client.communicate(timeout=60 + 10 * seconds)
        if client.returncode:
            raise SystemExit(f"{kind} ended with {client.returncode}")
    finally:
        server.terminate()
        server.wait()
    figures: Figures = json.loads(text)
    if rate:
        figures |= delays(np.fromfile(log, ENTRY), np.fromfile(out, ENTRY), tokens)
    return figures


def delays(server: np.ndarray, client: np.ndarray, tokens: int) -> Figures:
    """Added delay of events and error of TTFT, in seconds."""

    def table(entries: np.ndarray, kind: int) -> np.ndarray:
        chosen = entries[(entries["kind"] == kind) & (entries["stream"] != 0xFFFFFFFF)]
        order = np.lexsort((chosen["at_ns"], chosen["stream"]))
        return np.asarray(chosen["at_ns"][order].astype(np.float64))

    sent, seen = table(server, 1), table(client, 1)
    if len(sent) != len(seen):
        raise SystemExit(f"the server sent {len(sent)} events, the client saw {len(seen)}")
    late = (seen - sent) / 1e9
    truth = sent.reshape(-1, tokens)[:, 0] - table(server, 0)
    told = seen.reshape(-1, tokens)[:, 0] - table(client, 0)
    error = np.abs(told - truth) / 1e9
    return {
        "p50_s": float(np.quantile(late, 0.5)),
        "p99_s": float(np.quantile(late, 0.99)),
        "max_s": float(late.max()),
        "ttft_error_p99_s": float(np.quantile(error, 0.99)),
    }


def compare(
    clients: list[str], folder: Path, cores: tuple[int, int], rounds: int, seconds: float
) -> None:
    print(
        f"{'events/s':>9} {'streams':>8} {'client':>8} {'CPU s/M':>8} {'ratio':>6} {'of a core':>9}"
        f" {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'TTFT p99':>9} {'KiB/stream':>10}"
    )
    for streams, rate in LEVELS:
        able = [c for c in clients if streams * rate <= TOO_MUCH.get(c, 10**9)]
        runs: dict[str, list[Figures]] = {c: [] for c in able}
        for _ in range(rounds):
            for kind in able:
                runs[kind].append(once(kind, folder, cores, streams, rate, seconds))
        figures = {c: {k: median(r[k] for r in runs[c]) for k in runs[c][0]} for c in able}
        yard = figures["c"]["cpu_s"] if "c" in figures else None
        for kind, f in figures.items():
            ratio = f"{f['cpu_s'] / yard:.2f}" if yard else "n/a"
            cost = f["cpu_s"] / f["events"] * 1e6
            print(
                f"{streams * rate:>9,} {streams:>8} {kind:>8} {cost:>8.1f}"
                f" {ratio:>6} {f['cpu_s'] / f['wall_s']:>9.0%} {f['p50_s'] * 1e3:>8.3f}"
                f" {f['p99_s'] * 1e3:>8.3f} {f['max_s'] * 1e3:>8.2f}"
                f" {f['ttft_error_p99_s'] * 1e3:>9.3f} {f['kib'] / streams:>10.1f}",
                flush=True,
            )
    rates: dict[str, list[float]] = {c: [] for c in clients}
    for _ in range(rounds):
        for kind in clients:
            f = once(kind, folder, cores, 64, 0, min(seconds, 3.0))
            rates[kind].append(f["requests"] / f["wall_s"])
    best = median(rates["c"]) if "c" in rates else None
    for kind, found in rates.items():
        ratio = f"{median(found) / best:.2f}" if best else "n/a"
        print(f"one-token requests/s, 64 at a time: {kind:>8} {median(found):>9,.0f} {ratio:>6}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--clients", default="c,product,least,aiohttp,httpx")
    parser.add_argument(
        "--realtime", action="store_true", help="before all other processes (root, busy machine)"
    )
    given = parser.parse_args()
    global REALTIME
    REALTIME = given.realtime
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the client")
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        compare(
            given.clients.split(","), Path(name), (cores[0], cores[1]), given.rounds, given.seconds
        )


if __name__ == "__main__":
    main()

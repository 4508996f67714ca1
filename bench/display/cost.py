"""What the living board costs: CPU per second of a run, and how long it holds up the event loop.

    python bench/display/cost.py

A board is fed as a run does, twice a second, and drawn on a pseudo terminal that is being read.
Both sides of each ratio are measured side by side: the run's own share is that of a display that
is turned off.
"""

from __future__ import annotations

import os
import pty
import sys
import threading
import time

from servecap.cli import progress
from servecap.measure import Progress
from servecap.record import Outcome, Record, Times
from servecap.scenario import ClosedLoop, Scenario

TICK_S = 0.5
TICKS = 120


def records(end_s: float, count: int) -> list[Record]:
    return [
        Record(
            request_id=i,
            user=i,
            planned_s=end_s - 1.2,
            sent_s=end_s - 1.2,
            end_s=end_s,
            outcome=Outcome.OK,
            first_token_s=end_s - 1,
            chunk_s=Times([end_s - 1, end_s]),
            output_tokens=100,
        )
        for i in range(count)
    ]


def cost(per_s: int, *, quiet: bool) -> tuple[float, float]:
    """CPU as a share of one core, and the longest time that one call took, in seconds."""
    batches = [records(TICK_S * i, int(per_s * TICK_S)) for i in range(1, TICKS + 1)]
    display = progress.Display(Scenario(load=ClosedLoop(users=per_s)), quiet=quiet)
    longest_s = 0.0
    ended = 0
    start_s = time.process_time()
    for tick, batch in enumerate(batches, start=1):
        ended += len(batch)
        update = Progress(elapsed_s=tick * TICK_S, in_flight=per_s, ended=ended, recent=batch)
        before_s = time.perf_counter()
        display(update)
        longest_s = max(longest_s, time.perf_counter() - before_s)
        while display._pen is not None and not display._pen.idle:
            time.sleep(0)  # every frame is drawn, as it is when ticks are half a second apart
    display.close()
    return (time.process_time() - start_s) / (TICKS * TICK_S), longest_s


def main() -> None:
    """Print a row for each rate of requests."""
    outer, inner = pty.openpty()
    drained = threading.Thread(target=_drain, args=(outer,), daemon=True)
    drained.start()
    report, sys.stderr = sys.stdout, os.fdopen(inner, "w", encoding="utf-8")
    os.environ["TERM"] = "xterm"
    print("requests/s  board: CPU of a core, longest call    off: CPU", file=report)
    for per_s in (10, 100, 1000, 5000):
        board, off = cost(per_s, quiet=False), cost(per_s, quiet=True)
        print(
            f"{per_s:10}  {board[0]:20.3%}  {board[1] * 1e3:9.2f} ms  {off[0]:10.3%}", file=report
        )


def _drain(descriptor: int) -> None:
    while os.read(descriptor, 65536):
        pass


if __name__ == "__main__":
    main()

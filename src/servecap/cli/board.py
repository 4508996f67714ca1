"""What is known while a run goes on, as lines for a terminal, one plain line, or JSON.

It draws nothing and reads no clock but the process's CPU time, so it is tested without a terminal.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from servecap.scenario import ClosedLoop, Load, Scenario

if TYPE_CHECKING:
    from servecap.measure import Progress
    from servecap.record import Record
    from servecap.slo import Limit

RECENT = 500  # requests behind the latencies shown
RATE_S = 10.0  # seconds behind the rates shown
SPARKS = "▁▂▃▄▅▆▇█"
ASCII_SPARKS = "_.-=+*#@"
_SLICE_S = 1.0  # of a sparkline
_SLICES = 40
_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "gap": "gap", "queue": "queue"}
_LATE_S = 0.01  # a client that sends later than this deserves a look

Piece = tuple[str, str | None]  # text and its colour
Line = list[Piece]


class Tried:
    """The levels of a search that are over: what is held, and what failed."""

    def __init__(self, unit: str = "users") -> None:
        self.unit = unit
        self.held = 0.0
        self.failed: float | None = None

    def add(self, load: float, verdict: str) -> None:
        """One more level: its verdict is pass, fail or unsure."""
        if verdict == "pass":
            self.held = max(self.held, load)
        elif verdict == "fail":
            self.failed = load if self.failed is None else min(self.failed, load)

    def facts(self) -> dict[str, float | None]:
        """Both, named by their unit."""
        unit = "users" if self.unit == "users" else "rps"
        return {f"held_{unit}": self.held, f"failed_{unit}": self.failed}


class Board:
    """The state of one run, fed with each `Progress`."""

    def __init__(self, scenario: Scenario, tried: Tried | None = None) -> None:
        from servecap.verdict import value_of  # numpy comes with it: not for `--help`

        by_server = scenario.timings == "server"
        limited = {limit.metric for limit in scenario.slo.limits}
        shown = [name for name in _NAMES if name in limited or name in ("ttft", "tpot")]
        self._scenario = scenario
        self._tried = tried
        self._read: dict[str, Callable[[Record], float | None]] = {
            name: value_of(name, server=by_server) for name in shown
        }
        self._values: dict[str, deque[float]] = {name: deque(maxlen=RECENT) for name in shown}
        self._slices: deque[list[float]] = deque(maxlen=_SLICES)  # [start_s, answers, tokens]
        self._cpu_s = time.process_time()
        self._elapsed_s = 0.0
        self._in_flight = self._ended = self._failed = 0
        self._lag_max_s = 0.0

    def note(self, progress: Progress) -> None:
        """Take in what has happened since the last time."""
        now_s = progress.elapsed_s
        self._elapsed_s, self._in_flight = now_s, progress.in_flight
        self._ended, self._failed = progress.ended, progress.failed
        self._lag_max_s = progress.lag_max_s
        if not self._slices or now_s - self._slices[-1][0] >= _SLICE_S:
            self._slices.append([now_s, 0.0, 0.0])
        here = self._slices[-1]
        for record in progress.recent:
            if not record.ok:
                continue
            here[1] += 1
            here[2] += record.output_tokens or 0
        for name, read in self._read.items():
            values = self._values[name]
            for record in progress.recent[-RECENT:]:
                if record.ok and (value := read(record)) is not None:
                    values.append(value)

    # Figures

    def cpu_share(self) -> float:
        """CPU time of this process as a share of one core, since the board was made."""
        return (time.process_time() - self._cpu_s) / max(self._elapsed_s, 1e-9)

    def rates(self) -> tuple[float, float]:
        """Answers and output tokens per second, of requests that ended in the last 10 s."""
        last = [s for s in self._slices if self._elapsed_s - s[0] <= RATE_S]
        # The first slice is of the ramp and shorter than it seems; a rate of less than a second
        # would jump.
        span_s = max(_SLICE_S, self._elapsed_s - (last[0][0] if len(last) > 1 else 0.0))
        return sum(s[1] for s in last) / span_s, sum(s[2] for s in last) / span_s

    def remaining_s(self) -> float | None:
        """At least so long it will go on, by the rate until now; None: it cannot be told yet."""
        stop, load = self._scenario.stop, self._scenario.load
        if stop.duration_s is not None:
            return max(0.0, stop.duration_s - self._elapsed_s)
        # Before everybody had one answer the rate is that of the ramp, which promises too long.
        least = load.users if isinstance(load, ClosedLoop) else 1
        if self._ended < least or not stationary(load):
            return None
        per_s = self._ended / max(self._elapsed_s, 1e-9)
        most_s = max(0.0, stop.max_duration_s - self._elapsed_s)
        return min(most_s, max(0, self._wanted(load) - self._ended) / per_s)

    def _wanted(self, load: object) -> int:
        if isinstance(load, ClosedLoop) and load.queue is not None:
            return load.queue
        if isinstance(load, ClosedLoop) and load.each is not None:
            return load.each * load.users
        return self._scenario.stop.requests

    def statistic(self, metric: str, name: str) -> float | None:
        """A mean or percentile over the last requests, in seconds."""
        values = self._values.get(metric)
        if not values:
            return None
        if name == "mean":
            return sum(values) / len(values)
        ordered = sorted(values)
        share = 1.0 if name == "max" else int(name[1:]) / 100
        return ordered[max(1, math.ceil(share * len(ordered) - 1e-9)) - 1]

    def facts(self) -> dict[str, float | int | None]:
        """All of it by name, for `--progress json`."""
        qps, tps = self.rates()
        found: dict[str, float | int | None] = {
            "elapsed_s": round(self._elapsed_s, 3),
            "remaining_s": _rounded(self.remaining_s()),
            "users": self._scenario.users,
            "in_flight": self._in_flight,
            "ended": self._ended,
            "failed": self._failed,
            "qps": _rounded(qps),
            "output_tps": _rounded(tps),
        }
        for metric in self._values:
            for name in ("mean", "p50", "p99"):
                found[f"{metric}_{name}_s"] = _rounded(self.statistic(metric, name))
        found["lag_max_s"] = _rounded(self._lag_max_s)
        found["client_cpu_share"] = _rounded(self.cpu_share())
        if self._tried is not None:
            found |= self._tried.facts()
        return found

    # Lines

    def line(self) -> Line:
        """The most important in one line."""
        pieces: Line = [
            (f"{self._elapsed_s:6.1f} s", None),
            (self._load(), None),
            (f"{self._in_flight} in flight", None),
            (f"{self._ended} ended", None),
        ]
        if self._failed:
            pieces.append((f"{self._failed} failed", "red"))
        pieces += [
            (f"{_NAMES[name]} {_seconds(value)}", self._colour(name, "mean", value))
            for name in self._values
            if (value := self.statistic(name, "mean")) is not None
        ]
        return _spaced(pieces)

    def lines(self, sparks: str = SPARKS) -> list[Line]:
        """The whole board."""
        qps, tps = self.rates()
        return [
            self._time(),
            _spaced(
                [
                    (self._load(), None),
                    (f"{self._in_flight} in flight", None),
                    (f"{self._ended:,} ended", None),
                    (f"{self._failed:,} failed", "red" if self._failed else None),
                ]
            ),
            *(self._latency(name) for name in self._values),
            [(f"QPS   {qps:8.3g} /s  ", None), (self._sparkline(1, sparks), "cyan")],
            [(f"TPS   {tps:8.4g} /s  ", None), (self._sparkline(2, sparks), "cyan")],
            self._client(),
            *([self._bracket(self._tried)] if self._tried is not None else []),
        ]

    def _load(self) -> str:
        match self._scenario.load:
            case ClosedLoop(users=users):
                return f"{users} users"
            case load if stationary(load) and not load.of_sessions:
                return f"{load.rate_rps:.4g} requests/s"
            case _:
                return "open loop"

    def _time(self) -> Line:
        left_s = self.remaining_s()
        exact = self._scenario.stop.duration_s is not None
        if self._ended == 0 and not exact:
            told = "waiting for the first answer"
        elif left_s is None:
            told = "until the trace or schedule is over"
        elif left_s > 0:
            told = f"{'' if exact else 'at least '}{math.ceil(left_s)} s left"
        else:
            told = "settling"
        done = 0.0 if left_s is None else self._elapsed_s / max(self._elapsed_s + left_s, 1e-9)
        full = round(20 * min(1.0, done))
        return [
            ("[" + "#" * full + "-" * (20 - full) + "]", "cyan"),
            (f"  {self._elapsed_s:.0f} s, {told}", None),
        ]

    def _latency(self, metric: str) -> Line:
        pieces: Line = [(f"{_NAMES[metric]:5}", None)]
        limits = [limit for limit in self._scenario.slo.limits if limit.metric == metric]
        names = dict.fromkeys(["p50", "p99", *(limit.statistic for limit in limits)])
        for name in names:
            value = self.statistic(metric, name)
            colour = self._colour(metric, name, value)
            pieces.append((f"{name} {'n/a' if value is None else _seconds(value)}", colour))
        pieces += [(f"(limit: {_told(limit)})", None) for limit in limits]
        return _spaced(pieces)

    def _colour(self, metric: str, name: str, value: float | None) -> str | None:
        limit = self._scenario.slo.limit(metric, name)
        if limit is None or value is None:
            return None
        return "green" if value <= limit.at_most_s else "red"

    def _sparkline(self, which: int, sparks: str) -> str:
        values = [s[which] for s in list(self._slices)[:-1]]  # the last one is not over
        top = max(values, default=0.0)
        if top <= 0:
            return ""
        last = len(sparks) - 1
        return "".join(sparks[min(last, int(v / top * last + 0.5))] for v in values)

    def _client(self) -> Line:
        cpu, lag_s = self.cpu_share(), self._lag_max_s
        return _spaced(
            [
                ("client", None),
                (f"sends at most {_seconds(lag_s)} late", "red" if lag_s > _LATE_S else None),
                (f"CPU {cpu:.0%} of a core", "red" if cpu > 0.8 else None),
            ]
        )

    def _bracket(self, tried: Tried) -> Line:
        failed = "?" if tried.failed is None else f"{tried.failed:.4g}"
        return [
            ("search  ", None),
            (f"{tried.held:.4g} {tried.unit} held", "green"),
            ("  ..  ", None),
            (f"{failed} failed", "red" if tried.failed is not None else None),
        ]


def stationary(load: Load) -> bool:
    """Whether the load can settle: a trace or a changing rate cannot."""
    return isinstance(load, ClosedLoop) or load.stationary


def _told(limit: Limit) -> str:
    return f"{limit.statistic} < {_seconds(limit.at_most_s)}"


def _seconds(value_s: float) -> str:
    if value_s >= 1:
        return f"{value_s:.2f} s"
    return f"{value_s * 1e3:.0f} ms" if value_s >= 0.01 else f"{value_s * 1e3:.2g} ms"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _spaced(pieces: Sequence[Piece]) -> Line:
    out: Line = []
    for piece in pieces:
        out += [piece] if not out else [("  ", None), piece]
    return out

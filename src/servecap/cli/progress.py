"""What is told on stderr while a run goes on: a living line on a terminal, else a line at times."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from servecap.measure import Progress
    from servecap.record import Record
    from servecap.scenario import Scenario

_RECENT = 200  # requests behind the latencies shown
_PLAIN_EVERY_S = 5.0


class Display:
    """Shows a run's progress; call it with each `Progress`, and `close` when the run is over."""

    def __init__(self, scenario: Scenario, *, quiet: bool) -> None:
        self._scenario = scenario
        self._quiet = quiet
        self._living = sys.stderr.isatty()
        self._recent: deque[Record] = deque(maxlen=_RECENT)
        self._said_s = -_PLAIN_EVERY_S

    def __call__(self, progress: Progress) -> None:
        if self._quiet:
            return
        self._recent.extend(progress.recent)
        if self._living:
            click.echo("\r\x1b[2K" + self._line(progress)[:200], err=True, nl=False)
        elif progress.elapsed_s - self._said_s >= _PLAIN_EVERY_S:
            self._said_s = progress.elapsed_s
            click.echo(self._line(progress), err=True)

    def close(self) -> None:
        """Leave the living line behind."""
        if self._living and not self._quiet:
            click.echo("\r\x1b[2K", err=True, nl=False)

    def _line(self, progress: Progress) -> str:
        users = self._scenario.users
        parts = [
            f"{progress.elapsed_s:6.1f} s",
            f"{users} users" if users is not None else "open loop",
            f"{progress.in_flight} in flight",
            f"{progress.ended} ended",
        ]
        if progress.failed:
            parts.append(_colour(f"{progress.failed} failed", False))
        parts += [self._latency("ttft", "TTFT"), self._latency("tpot", "TPOT")]
        return "  ".join(p for p in parts if p)

    def _latency(self, metric: str, name: str) -> str:
        values = [
            v
            for r in self._recent
            if r.ok and (v := r.ttft_s if metric == "ttft" else r.tpot_s) is not None
        ]
        if not values:
            return ""
        mean = sum(values) / len(values)
        text = f"{name} {mean:.2f} s" if mean >= 1 else f"{name} {mean * 1e3:.0f} ms"
        limit = self._scenario.slo.limit(metric)
        return text if limit is None else _colour(text, mean <= limit.at_most_s)


def _colour(text: str, good: bool) -> str:
    return click.style(text, fg="green" if good else "red")


def say(text: str, *, quiet: bool = False) -> None:
    """One line of progress on stderr."""
    if not quiet:
        click.echo(text, err=True)

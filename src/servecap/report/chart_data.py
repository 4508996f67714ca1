"""What the charts of one run draw from, and how they choose their ranges."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from servecap.columns import Bools, Columns
from servecap.metrics import Summary, Window
from servecap.record import Record
from servecap.run import Run
from servecap.stats import Floats
from servecap.steady import within
from servecap.verdict import figures

MOST_DOTS = 3000  # above this the spread is drawn instead of each request
TABLE_BINS = 12  # rows of the table beside a chart over time


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """A run's records as columns, in the order in which they ended; `inside` marks the measured."""

    run: Run
    summary: Summary
    columns: Columns
    inside: Bools
    end_s: float
    start_s: float = 0.0  # later where a soak holds its latest requests only

    @property
    def records(self) -> Sequence[Record]:
        return self.columns.records

    @property
    def window(self) -> Window:
        return self.summary.window

    @property
    def by_server(self) -> bool:
        """Whether the limits judge latencies by the server's own timings."""
        return self.run.scenario.timings == "server"

    @property
    def clock(self) -> str:
        """Whose clock the latencies are by, in words."""
        return "server's" if self.by_server else "client's"

    @property
    def good(self) -> Columns:
        """The successful requests in the measured window."""
        return self.columns.at(self.inside & self.columns.ok)

    def latency_s(self, metric: str, of: Columns) -> Floats:
        """A latency as the limits judge it."""
        return figures(metric, of, server=self.by_server)


def data(run: Run, summary: Summary) -> Data:
    """The run's records, read once for all charts."""
    told = run.columns
    return Data(
        run=run,
        summary=summary,
        columns=told,
        inside=within(told, summary.window),
        start_s=told.records[0].end_s if run.dropped else 0.0,
        end_s=max(told.records[-1].end_s if len(told) else 0.0, summary.window.end_s),
    )


def top_of(values: Floats) -> float:
    """The top of a chart: everything, unless a few values would flatten all the others."""
    top, most = float(values.max()), float(np.quantile(values, 0.995))
    return top if top <= 3 * most else 1.5 * most


def thin(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """At most *most* of the points, evenly chosen, with the first and the last."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).round().astype(int))
    return x[keep], y[keep]


def span(edges: Floats, i: int) -> str:
    """The i-th bin in words."""
    return f"{edges[i]:,g} to {edges[i + 1]:,g}"

"""What the charts of one run draw from, and how they choose their ranges."""

from __future__ import annotations

import msgspec
import numpy as np

from servecap.metrics import Summary, Window
from servecap.record import Record
from servecap.report import series
from servecap.report.series import Columns
from servecap.run import Run
from servecap.stats import Floats
from servecap.steady import counted
from servecap.verdict import value_of

MOST_DOTS = 3000  # above this the spread is drawn instead of each request
TABLE_BINS = 12  # rows of the table beside a chart over time


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """A run's records as arrays, sorted by when they ended; `inside` marks the measured ones."""

    run: Run
    summary: Summary
    records: list[Record]
    columns: Columns
    inside: series.Bools
    end_s: float
    start_s: float = 0.0  # later where a soak holds its latest requests only

    @property
    def window(self) -> Window:
        return self.summary.window

    @property
    def clock(self) -> str:
        """Whose clock the latencies are by, in words."""
        return "server's" if self.run.scenario.timings == "server" else "client's"

    @property
    def good(self) -> Columns:
        """The successful requests in the measured window."""
        return self.columns.at(self.inside & self.columns.ok)


def data(run: Run, summary: Summary) -> Data:
    """The run's records, read once for all charts."""
    records = sorted(run.records, key=lambda r: r.end_s)
    measured = {id(r) for r in counted(records, summary.window)}
    columns = series.columns(records)
    if run.scenario.timings == "server":
        columns = _by_server(columns, records)
    return Data(
        run=run,
        summary=summary,
        records=records,
        columns=columns,
        inside=np.array([id(r) in measured for r in records], dtype=np.bool_),
        start_s=records[0].end_s if run.dropped else 0.0,
        end_s=max(records[-1].end_s if records else 0.0, summary.window.end_s),
    )


def _by_server(columns: Columns, records: list[Record]) -> Columns:
    """Latencies as the limits judge them: by the server's own timings."""

    def told(metric: str) -> Floats:
        value = value_of(metric, server=True)
        return np.array([value(r) for r in records], dtype=np.float64)

    return msgspec.structs.replace(
        columns, ttft_s=told("ttft"), tpot_s=told("tpot"), e2e_s=told("e2e")
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

"""All charts of one run, in the order in which they are read."""

from __future__ import annotations

from servecap.metrics import Summary
from servecap.report.canvas import Chart
from servecap.report.chart_around import around_chart
from servecap.report.chart_data import data
from servecap.report.chart_latency import ecdf_chart, latency_chart
from servecap.report.chart_lengths import length_charts
from servecap.report.chart_load import error_chart, gantt_chart, load_chart
from servecap.run import Run


def run_charts(run: Run, summary: Summary, name: str = "run") -> list[Chart]:
    """Every chart that has something to show; none is drawn empty.

    Args:
        name: starts each chart's name, so that several runs fit on one page.
    """
    if not run.records:
        return []
    told = data(run, summary)
    charts = [
        *(ecdf_chart(told, metric, name) for metric in ("ttft", "tpot", "e2e")),
        *(latency_chart(told, metric, name) for metric in ("ttft", "tpot")),
        load_chart(told, name),
        gantt_chart(told, name),
        error_chart(told, name),
        around_chart(told, name),
        *length_charts(told, name),
    ]
    return [chart for chart in charts if chart is not None]

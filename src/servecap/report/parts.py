"""The figures of each part of a mix, as tables."""

from __future__ import annotations

from servecap.metrics import PartFigures, Summary
from servecap.report import units
from servecap.report.table import Column, Table, text_column
from servecap.stats import Distribution

_METRICS = ("ttft", "tpot", "e2e")
_STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
_NAME_LENGTH = 20


def part_tables(summary: Summary) -> tuple[Table, ...]:
    """What each part of the mix did, and its latencies by the client's clock; none without one."""
    if not summary.parts:
        return ()
    load = Table(
        title="Parts of the mix",
        columns=(
            text_column("part"),
            *(Column(name) for name in ("asked", "share", "requests", "QPS", "error_rate")),
            *(Column(name) for name in ("prompt tokens", "output tokens")),
        ),
        rows=tuple(_load_row(part, summary) for part in summary.parts),
        notes=(
            "Asked: its share of what is drawn. Tokens are means. The SLO is held over all parts.",
        ),
    )
    rows = [
        _latency_row(part, metric, part.client[metric])
        for metric in _METRICS
        for part in summary.parts
        if metric in part.client
    ]
    latency = Table(
        title="Per request, by part of the mix",
        columns=(
            text_column("part"),
            text_column("metric"),
            text_column("unit"),
            *(Column(name) for name in _STATISTICS),
        ),
        rows=tuple(rows),
    )
    return (load, latency) if rows else (load,)


def _name(part: PartFigures) -> str:
    return units.clean(part.name, _NAME_LENGTH)


def _load_row(part: PartFigures, summary: Summary) -> tuple[str, ...]:
    return (
        _name(part),
        units.share(part.share),
        units.share(part.requests / summary.requests) if summary.requests else units.UNKNOWN,
        f"{part.requests:,}",
        units.count(part.qps),
        units.share(part.error_rate),
        *(_mean(part.client.get(name)) for name in ("prompt_tokens", "output_tokens")),
    )


def _mean(told: Distribution | None) -> str:
    return units.UNKNOWN if told is None else units.count(told.mean)


def _latency_row(part: PartFigures, metric: str, told: Distribution) -> tuple[str, ...]:
    unit = units.time_unit(told.mean)
    values = (unit.number(told.statistic(name)) for name in _STATISTICS)
    return (_name(part), units.SHORT[metric], unit.name, *values)

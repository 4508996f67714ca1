"""Prometheus' text read into common figures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from servecap.sample import Histogram, Source
from servecap.telemetry.names import (
    DCGM,
    DCGM_REASONS,
    HISTOGRAMS,
    NODE,
    SERVER,
    THROTTLED,
    TRITON,
    Figure,
)

Series = dict[str, list[tuple[Mapping[str, str], float]]]


def series(text: str) -> Series:
    """Every value by its name, with its labels.

    Raises:
        ValueError: this is not Prometheus' text.
    """
    found: Series = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].append((sample.labels, float(sample.value)))
    return dict(found)


def figures(told: Series, source: Source) -> dict[str, float]:
    """The common figures of a server, a DCGM exporter or a node exporter; only what it tells."""
    match source:
        case "gpu":
            found = _read(told, DCGM)
            reasons = [v for name in DCGM_REASONS for _, v in told.get(name, ())]
            if reasons:
                slow = sum(bool(int(mask) & THROTTLED) for mask in reasons)
                found["throttled_share"] = slow / len(reasons)
            return found
        case "node":
            return _read(told, NODE)
        case _:
            return _read(told, TRITON) | _read(told, SERVER)


def _read(told: Series, wanted: Mapping[str, Figure]) -> dict[str, float]:
    found: dict[str, float] = {}
    for common, figure in wanted.items():
        name = next((name for name in figure.names if name in told), None)
        values = [] if name is None else _values(told, name, figure)
        if values:
            found[common] = figure.times * _joined(values, figure)
    return found


def _values(told: Series, name: str, figure: Figure) -> list[float]:
    where, unless = figure.where, figure.unless
    return [
        value
        for labels, value in told[name]
        if math.isfinite(value)
        and (where is None or labels.get(where[0]) == where[1])
        and (unless is None or labels.get(unless[0]) != unless[1])
    ]


def _joined(values: list[float], figure: Figure) -> float:
    match figure.how:
        case "sum":
            return sum(values)
        case "max":
            return max(values)
        case "min":
            return min(values)
        case "mean":
            return sum(values) / len(values)


def histograms(told: Series) -> dict[str, Histogram]:
    """The server's own latencies since its start, of all its engines and models together."""
    found: dict[str, Histogram] = {}
    for common, names in HISTOGRAMS.items():
        for name in names:
            counts: dict[float, float] = defaultdict(float)
            for labels, value in told.get(f"{name}_bucket", ()):
                counts[float(labels.get("le", "nan"))] += value
            total = sum(value for _, value in told.get(f"{name}_sum", ()))
            if counts and math.inf in counts:
                bounds = sorted(bound for bound in counts if math.isfinite(bound))
                found[common] = Histogram(
                    bounds_s=tuple(bounds),
                    counts=(*(counts[bound] for bound in bounds), counts[math.inf]),
                    sum_s=total,
                )
                break
    return found

"""A run's figures as OTLP metrics: as JSON in a file, or sent to a collector over HTTP.

The same figures as in OpenMetrics text. A latency is one gauge in seconds with a point for each
statistic (mean, p50, ...); every point is stamped with the end of the run, where that is known.

Source:
    OpenTelemetry Protocol 1.x: ExportMetricsServiceRequest, its JSON encoding, /v1/metrics.
"""

from __future__ import annotations

import importlib
import logging
import math
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from servecap import __version__
from servecap.errors import EndpointError, UsageError
from servecap.metrics import Summary
from servecap.report import exported, units
from servecap.report.facts import STATISTICS
from servecap.run import Run

SEND_TIMEOUT_S = 10.0
PATH = "/v1/metrics"

Point = tuple[dict[str, str], float]
Figures = list[tuple[str, str, list[Point]]]  # name, unit, points


def write_otlp(path: Path, run: Run, summary: Summary) -> None:
    """Write one line of OTLP JSON, as collectors read it from files.

    Raises:
        UsageError: the OpenTelemetry libraries are not installed.
        OSError: *path* cannot be written.
    """
    encode = _library("opentelemetry.exporter.otlp.proto.common.metrics_encoder").encode_metrics
    to_json = _library("google.protobuf.json_format").MessageToJson
    message = encode(_data(run, summary))
    text = to_json(message, indent=None, use_integers_for_enums=True)
    path.write_text(text + "\n", encoding="utf-8")


def send_otlp(url: str, run: Run, summary: Summary) -> str:
    """Send the figures to the collector at *url*; returns the URL that they went to.

    Headers (a token, for instance) are taken from OTEL_EXPORTER_OTLP_HEADERS.

    Raises:
        UsageError: *url* is none, or the OpenTelemetry libraries are not installed.
        EndpointError: the collector did not take them.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"--otlp {url!r}: give a URL such as http://localhost:4318")
    target = url.rstrip("/") + PATH if parts.path in ("", "/") else url
    exporters = _library("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    export = _library("opentelemetry.sdk.metrics.export")
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())  # told below, in one line
    exporter = exporters.OTLPMetricExporter(endpoint=target, timeout=SEND_TIMEOUT_S)
    try:
        done = exporter.export(_data(run, summary), timeout_millis=SEND_TIMEOUT_S * 1e3)
    finally:
        exporter.shutdown()
    if done is not export.MetricExportResult.SUCCESS:
        raise EndpointError(
            f"--otlp {target}: the collector did not take the metrics: is it there?"
        )
    return target


def figures(run: Run, summary: Summary) -> Figures:
    """Every metric: its name, its unit (UCUM), and its points."""
    labels = exported.labels(run, summary)
    found: Figures = []
    for name, told in summary.client.items():
        unit = "{token}" if name.endswith("_tokens") else "s"
        points = [(labels | {"statistic": s}, told.statistic(s)) for s in STATISTICS]
        found.append((f"servecap.{name}", unit, points))
    for name, value in exported.gauges(summary):
        if value is not None:
            unit = "1/s" if name.endswith("_per_second") else "1"
            found.append((f"servecap.{name}", unit, [(labels, float(value))]))
    return [(name, unit, list(_finite(points))) for name, unit, points in found]


def _finite(points: list[Point]) -> Iterable[Point]:
    return (point for point in points if math.isfinite(point[1]))


def _data(run: Run, summary: Summary) -> Any:
    export = _library("opentelemetry.sdk.metrics.export")
    resource = _library("opentelemetry.sdk.resources").Resource(
        {"service.name": "servecap", "service.version": __version__}
    )
    scope = _library("opentelemetry.sdk.util.instrumentation").InstrumentationScope(
        "servecap", __version__
    )
    start_ns, end_ns = _times_ns(run)
    metrics = []
    for name, unit, points in figures(run, summary):
        told = [
            export.NumberDataPoint(
                attributes={key: units.clean(text) for key, text in labels.items()},
                start_time_unix_nano=start_ns,
                time_unix_nano=end_ns,
                value=value,
            )
            for labels, value in points
        ]
        data = export.Gauge(data_points=told)
        metrics.append(export.Metric(name=name, description="", unit=unit, data=data))
    inside = export.ScopeMetrics(scope=scope, metrics=metrics, schema_url="")
    return export.MetricsData(
        [export.ResourceMetrics(resource=resource, scope_metrics=[inside], schema_url="")]
    )


def _times_ns(run: Run) -> tuple[int, int]:
    """Start and end of the run since 1970; of an imported run without a clock, now."""
    try:
        start_s = datetime.fromisoformat(run.header.started_utc).timestamp()
    except ValueError:
        now_ns = time.time_ns()
        return now_ns, now_ns
    end_s = start_s + (run.header.load_end_s or 0.0)
    return int(start_s * 1e9), int(end_s * 1e9)


def _library(name: str) -> Any:
    try:  # an extra
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            "OTLP needs the OpenTelemetry libraries: pip install 'servecap[otlp]', or export "
            "--to openmetrics"
        ) from None

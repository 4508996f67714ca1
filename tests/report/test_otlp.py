"""OTLP: what a collector gets is what the summary says; one that is not there is told so."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import synthetic
from click.testing import CliRunner

from servecap import cli
from servecap.errors import EndpointError, UsageError
from servecap.report import otlp
from servecap.store import RunWriter
from servecap.summarize import summarize

RUN = synthetic.run(users=8, end_s=20, text=synthetic.HOSTILE)
SUMMARY = summarize(RUN)
needs_otlp = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry") is None, reason="opentelemetry is an extra"
)


class Collector(HTTPServer):
    """Keeps what is posted to it and answers with `status`."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[tuple[str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def received(body: bytes) -> dict[str, Any]:
    kind: Any = importlib.import_module(
        "opentelemetry.proto.collector.metrics.v1.metrics_service_pb2"
    )
    message = kind.ExportMetricsServiceRequest.FromString(body)
    (scope,) = message.resource_metrics[0].scope_metrics
    return {metric.name: metric for metric in scope.metrics}


@needs_otlp
def test_a_collector_gets_the_figures_with_units_and_time(collector: Collector) -> None:
    assert otlp.send_otlp(collector.url, RUN, SUMMARY) == f"{collector.url}/v1/metrics"
    ((path, body),) = collector.taken
    assert path == "/v1/metrics"
    metrics = received(body)
    ttft = metrics["servecap.ttft"]
    assert ttft.unit == "s"
    values = {
        next(a.value.string_value for a in p.attributes if a.key == "statistic"): p.as_double
        for p in ttft.gauge.data_points
    }
    assert values["p95"] == pytest.approx(SUMMARY.client["ttft"].p95)
    (point,) = metrics["servecap.requests_per_second"].gauge.data_points
    assert point.as_double == pytest.approx(SUMMARY.qps)
    ended_s = datetime.fromisoformat(RUN.header.started_utc).timestamp() + 20.0
    assert point.time_unix_nano == pytest.approx(ended_s * 1e9, abs=1e6)
    model = next(a.value.string_value for a in point.attributes if a.key == "model")
    assert "\x1b" not in model


@needs_otlp
def test_one_that_refuses_is_one_line(collector: Collector) -> None:
    collector.status = 400
    with pytest.raises(EndpointError, match="did not take"):
        otlp.send_otlp(f"{collector.url}/own/path", RUN, SUMMARY)
    assert collector.taken[0][0] == "/own/path"


@needs_otlp
def test_the_file_is_one_line_of_otlp_json(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", RUN.header)
    for record in RUN.records:
        writer.add(record)
    writer.close(RUN.header)
    args = ["export", str(tmp_path / "run"), "--to", "otlp"]
    done = CliRunner().invoke(cli.cli, args, standalone_mode=False)
    assert done.return_value == 0, done.exception
    text = (tmp_path / "run" / "metrics.json").read_text()
    assert text.count("\n") == 1
    (resource,) = json.loads(text)["resourceMetrics"]
    names = {metric["name"] for metric in resource["scopeMetrics"][0]["metrics"]}
    assert {"servecap.ttft", "servecap.valid", "servecap.error_ratio"} <= names


def test_no_url_and_no_library_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="localhost:4318"):
        otlp.send_otlp("localhost:4318", RUN, SUMMARY)
    monkeypatch.setitem(
        sys.modules, "opentelemetry.exporter.otlp.proto.common.metrics_encoder", None
    )
    with pytest.raises(UsageError, match=r"servecap\[otlp\]"):
        otlp.write_otlp(tmp_path / "x", RUN, SUMMARY)


def test_no_point_is_made_up() -> None:
    told = otlp.figures(RUN, SUMMARY)
    assert {name for name, _, _ in told} >= {f"servecap.{name}" for name in SUMMARY.client}
    assert all(labels["source"] == "measured" for _, _, points in told for labels, _ in points)

"""What was seen around a run, as tables: the server's own metrics, GPUs, both machines."""

from __future__ import annotations

from collections.abc import Callable

from servecap.metrics import Reading, Summary, Telemetry
from servecap.report import units
from servecap.report.table import Column, Table, text_column

Write = Callable[[float], str]


def _bytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"


def _megahertz(value: float) -> str:
    return f"{value / 1e6:,.0f} MHz"


def _watts(value: float) -> str:
    return f"{value:,.0f} W"


def _celsius(value: float) -> str:
    return f"{value:,.0f} °C"


# Where it is, its name, and how its value is written. Counters are told as sums and rates.
_ROWS: dict[str, tuple[str, Write]] = {
    "server.running": ("server: requests running", units.count),
    "server.waiting": ("server: requests waiting", units.count),
    "server.kv_used_share": ("server: KV cache in use", units.share),
    "server.preemptions": ("server: preemptions", units.count),
    "server.prefix_hit_share": ("server: prompt tokens from the prefix cache", units.share),
    "server.prompt_tokens": ("server: prompt tokens", units.count),
    "server.output_tokens": ("server: output tokens", units.count),
    "server.rss_bytes": ("server: memory", _bytes),
    "gpu.util_share": ("GPU: utilisation", units.share),
    "gpu.memory_used_bytes": ("GPU: memory in use", _bytes),
    "gpu.power_w": ("GPU: power", _watts),
    "gpu.sm_clock_hz": ("GPU: least clock", _megahertz),
    "gpu.temperature_c": ("GPU: hottest", _celsius),
    "gpu.throttled_share": ("GPU: throttled", units.share),
    "node.cpu_share": ("server's machine: CPU", units.share),
    "node.memory_free_bytes": ("server's machine: memory left", _bytes),
    "node.disk_read_bytes": ("server's machine: read from disk", _bytes),
    "node.disk_written_bytes": ("server's machine: written to disk", _bytes),
    "node.received_bytes": ("server's machine: received", _bytes),
    "node.sent_bytes": ("server's machine: sent", _bytes),
    "client.cpu_share": ("client's machine: CPU", units.share),
    "client.memory_used_share": ("client's machine: memory in use", units.share),
    "client.load_rss_bytes": ("client: memory", _bytes),
    "client.disk_read_bytes": ("client's machine: read from disk", _bytes),
    "client.disk_written_bytes": ("client's machine: written to disk", _bytes),
    "client.received_bytes": ("client's machine: received", _bytes),
    "client.sent_bytes": ("client's machine: sent", _bytes),
}
_SOURCES = {"server": "the server's metrics", "gpu": "GPUs", "node": "the node exporter"}


def telemetry_tables(summary: Summary) -> list[Table]:
    """Figures of the window by source, and the server's histograms beside the client's clock."""
    told = summary.telemetry
    if told is None:
        return []
    rows = [
        (label, *_cells(told.readings[key], write))
        for key, (label, write) in _ROWS.items()
        if key in told.readings
    ]
    notes = [
        f"{_SOURCES[source]}: n/a ({units.clean(why, 100)})"
        for source, why in told.missing.items()
        if source in _SOURCES
    ]
    around = Table(
        title="Telemetry (in the measured window)",
        columns=(text_column("figure"), Column("mean"), Column("range")),
        rows=tuple(rows),
        notes=tuple(notes),
    )
    return [around, *_histograms(summary, told)]


def _cells(reading: Reading, write: Write) -> tuple[str, str]:
    """Of a gauge its mean and range, of a counter its rate and sum."""
    if reading.per_s is not None and reading.total is not None:
        return f"{write(reading.per_s)}/s", f"{write(reading.total)} in all"
    mean = units.UNKNOWN if reading.mean is None else write(reading.mean)
    if reading.low is None or reading.high is None:
        return mean, ""
    return mean, f"{write(reading.low)} to {write(reading.high)}"


def _histograms(summary: Summary, told: Telemetry) -> list[Table]:
    rows = []
    for name, seen in told.server.items():
        own = summary.client.get("ttft_sent" if name == "ttft" else name)
        high = "?" if seen.p95_high_s is None else units.seconds(seen.p95_high_s)
        rows.append(
            (
                units.SHORT.get(name, name),
                units.seconds(seen.mean_s),
                units.UNKNOWN if own is None else units.seconds(own.mean),
                f"{units.seconds(seen.p95_low_s)} to {high}",
            )
        )
    if not rows:
        return []
    heads = ("mean by server", "mean by client", "p95 by server")
    return [
        Table(
            title="The server's own histograms beside the client's clock",
            columns=(text_column("metric"), *map(Column, heads)),
            rows=tuple(rows),
            notes=("TTFT by the client is from the actual send, as the server sees it.",),
        )
    ]

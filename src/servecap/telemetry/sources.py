"""One look at each source, for the process of the sampler."""

from __future__ import annotations

import contextlib
import ssl
import time
import urllib.error
import urllib.request
from typing import Any

import msgspec
import psutil

from servecap.sample import Histogram, Source
from servecap.telemetry import exposition
from servecap.telemetry.names import THROTTLED

TIMEOUT_S = 10.0
MOST_BYTES = 16 * 2**20
_LEAST_S = 0.5  # CPU time of less is counted too coarsely


class Exporter(msgspec.Struct, frozen=True, kw_only=True):
    """A page of Prometheus' text. `headers` may hold a key: it is never written down."""

    source: Source
    url: str
    headers: dict[str, str] = {}
    insecure: bool = False
    ca_file: str | None = None
    proxy: str | None = None


class NotThere(Exception):
    """A source that will never tell anything: it is not asked again."""


Look = tuple[dict[str, float], dict[str, Histogram]]


def look(exporter: Exporter) -> Look:
    """What the exporter tells now.

    Raises:
        NotThere: the page does not exist, or is none of metrics.
        OSError: it did not answer in time.
    """
    text = _page(exporter)
    try:
        told = exposition.series(text)
    except (ValueError, KeyError, IndexError):
        raise NotThere("the page holds no Prometheus metrics") from None
    values = exposition.figures(told, exporter.source)
    spread = exposition.histograms(told) if exporter.source == "server" else {}
    if not values and not spread:
        raise NotThere("none of its metrics is known")
    return values, spread


def _page(exporter: Exporter) -> str:
    context = ssl.create_default_context(cafile=exporter.ca_file)
    if exporter.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    proxies = {"http": exporter.proxy, "https": exporter.proxy} if exporter.proxy else {}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
    )
    request = urllib.request.Request(exporter.url, headers=exporter.headers)
    until_s = time.monotonic() + TIMEOUT_S
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            data = b""
            while block := answer.read1(65536):
                data += block
                if len(data) > MOST_BYTES:
                    raise NotThere("the page is larger than 16 MiB")
                if time.monotonic() > until_s:
                    raise TimeoutError
            return data.decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404, 405):
            raise NotThere(f"HTTP {error.code}") from None
        raise OSError(f"HTTP {error.code}") from None


class Client:
    """The machine that makes the load, and the processes that do."""

    def __init__(self, pid: int) -> None:
        self._load = psutil.Process(pid)
        self._own = psutil.Process()
        psutil.cpu_percent()
        self._since_s = time.monotonic()

    def look(self) -> dict[str, float]:
        """CPU and memory shares of the machine; bytes of disks and network since its start."""
        memory = psutil.virtual_memory()
        found = {"memory_used_share": memory.percent / 100}
        if time.monotonic() - self._since_s >= _LEAST_S:
            found["cpu_share"] = psutil.cpu_percent() / 100
            self._since_s = time.monotonic()
        with contextlib.suppress(psutil.Error):
            load = [self._load, *self._load.children(recursive=True)]
            found["load_rss_bytes"] = float(
                sum(p.memory_info().rss for p in load if p.pid != self._own.pid)
            )
        with contextlib.suppress(OSError, RuntimeError):
            if (disks := psutil.disk_io_counters()) is not None:
                found["disk_read_bytes"] = float(disks.read_bytes)
                found["disk_written_bytes"] = float(disks.write_bytes)
            if (net := psutil.net_io_counters(nowrap=True)) is not None:
                found["received_bytes"] = float(net.bytes_recv)
                found["sent_bytes"] = float(net.bytes_sent)
        return found


class Gpus:
    """The GPUs of this machine by NVML."""

    def __init__(self) -> None:
        """
        Raises:
            NotThere: there are none, or `servecap[gpu]` is not installed.
        """
        try:
            import pynvml
        except ImportError:
            raise NotThere("pip install 'servecap[gpu]' to see the GPUs of this machine") from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except pynvml.NVMLError as error:
            raise NotThere(f"NVML: {error}") from None

    def look(self) -> dict[str, float]:
        """Figures of all GPUs together: mean utilisation, least clock, sums of memory and power."""
        nvml, gpus = self._nvml, self._gpus
        found: dict[str, float] = {}
        with contextlib.suppress(nvml.NVMLError):
            memory = [nvml.nvmlDeviceGetMemoryInfo(gpu) for gpu in gpus]
            found["memory_used_bytes"] = float(sum(m.used for m in memory))
            found["memory_free_bytes"] = float(sum(m.free for m in memory))
        with contextlib.suppress(nvml.NVMLError):
            busy = [nvml.nvmlDeviceGetUtilizationRates(gpu).gpu for gpu in gpus]
            found["util_share"] = sum(busy) / len(busy) / 100
        with contextlib.suppress(nvml.NVMLError):
            found["power_w"] = sum(nvml.nvmlDeviceGetPowerUsage(gpu) for gpu in gpus) / 1e3
        with contextlib.suppress(nvml.NVMLError):
            clocks = [nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) for gpu in gpus]
            found["sm_clock_hz"] = min(clocks) * 1e6
        with contextlib.suppress(nvml.NVMLError):
            warm = [nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU) for gpu in gpus]
            found["temperature_c"] = float(max(warm))
        with contextlib.suppress(nvml.NVMLError):
            masks = [nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) for gpu in gpus]
            found["throttled_share"] = sum(bool(m & THROTTLED) for m in masks) / len(masks)
        return found

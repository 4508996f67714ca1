"""The emulator's /metrics, under the names that vLLM uses."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from servecap.emulate.driver import Driver, Job

_LATENCY_BOUNDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
                   120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
_FIRST_TOKEN_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5,
                       5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_GAP_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
               10.0, 20.0, 40.0, 80.0)  # fmt: skip


class Buckets:
    """A histogram's state; unlike the library's own it takes many equal values at once."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Counts *value* that often."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self, name: str, text: str, labels: dict[str, str]) -> HistogramMetricFamily:
        """The histogram as Prometheus wants it: cumulative, the last bucket without bound."""
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        family = HistogramMetricFamily(name, text, labels=list(labels))
        family.add_metric(
            list(labels.values()),
            buckets=list(zip(names, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )
        return family


class Metrics:
    """Counts what happens; times are real seconds, as a scraper's clock has them."""

    def __init__(self, model_name: str, speed: float) -> None:
        self._labels = {"model_name": model_name}
        self._speed = speed
        self._driver: Driver | None = None
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._ended: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
        self._first = Buckets(_FIRST_TOKEN_BOUNDS)
        self._gap = Buckets(_GAP_BOUNDS)
        self._per_token = Buckets(_GAP_BOUNDS)
        self._e2e = Buckets(_LATENCY_BOUNDS)
        self._queue = Buckets(_LATENCY_BOUNDS)
        self._prefill = Buckets(_LATENCY_BOUNDS)
        self._decode = Buckets(_LATENCY_BOUNDS)
        self._registry = CollectorRegistry()

    def watch(self, driver: Driver) -> None:
        """Serves the gauges of *driver*'s engine from now on."""
        self._driver = driver
        self._registry.register(self)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self._registry)

    def on_first(self, job: Job) -> None:
        """A job got its first token."""
        if job.first_s is not None:
            self._first.add((job.first_s - job.arrived_s) / self._speed)
        self._prompt_tokens += job.prompt_tokens
        self._generation_tokens += 1

    def on_gap(self, gap_s: float, tokens: int) -> None:
        """So many tokens came *gap_s* emulated seconds after the one before."""
        self._gap.add(gap_s / self._speed, tokens)
        self._generation_tokens += tokens

    def on_end(self, job: Job) -> None:
        """A job has all its tokens."""
        if job.ended_s is None:
            return
        self._e2e.add((job.ended_s - job.arrived_s) / self._speed)
        self._queue.add(job.queue_s / self._speed)
        self._prefill.add(job.prefill_s / self._speed)
        self._decode.add(job.decode_s / self._speed)
        if job.output_tokens > 1:
            self._per_token.add(job.decode_s / (job.output_tokens - 1) / self._speed)

    def ended(self, reason: str) -> None:
        """A request ended: "stop", "length" or "abort"."""
        self._ended[reason] += 1

    def collect(self) -> Iterator[Metric]:
        """All families; the registry calls this at each scrape."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        if self._driver is None:
            return
        engine = self._driver.engine
        used = engine.kv_used_share
        for name, text, value in (
            ("vllm:num_requests_running", "Requests in the batch.", engine.running),
            ("vllm:num_requests_waiting", "Requests that wait for a place.", engine.waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", used),
            ("vllm:gpu_cache_usage_perc", "The same, under its name before vLLM 0.10.", used),
            (
                "servecap:emulator_lag_seconds",
                "Real seconds by which the last step came too late.",
                self._driver.lag_s,
            ),
            (
                "servecap:emulator_lag_max_seconds",
                "The most of it since the start.",
                self._driver.lag_max_s,
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), value)
            yield family

    def _counters(self) -> Iterator[Metric]:
        preemptions = self._driver.engine.preemptions if self._driver else 0
        for name, text, value in (
            ("vllm:prompt_tokens", "Prompt tokens computed.", self._prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated.", self._generation_tokens),
            ("vllm:num_preemptions", "Sequences that lost their place.", preemptions),
        ):
            family = CounterMetricFamily(name, text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), value)
            yield family
        ended = CounterMetricFamily(
            "vllm:request_success",
            "Requests that ended, by reason.",
            labels=[*self._labels, "finished_reason"],
        )
        for reason, count in self._ended.items():
            ended.add_metric([*self._labels.values(), reason], count)
        yield ended

    def _histograms(self) -> Iterator[Metric]:
        for name, text, buckets in (
            ("vllm:time_to_first_token_seconds", "Arrival to first token.", self._first),
            ("vllm:inter_token_latency_seconds", "Between tokens.", self._gap),
            ("vllm:time_per_output_token_seconds", "The same, under its old name.", self._gap),
            (
                "vllm:request_time_per_output_token_seconds",
                "A request's mean time per token after the first.",
                self._per_token,
            ),
            ("vllm:e2e_request_latency_seconds", "Arrival to last token.", self._e2e),
            ("vllm:request_queue_time_seconds", "Arrival to the first step.", self._queue),
            ("vllm:request_prefill_time_seconds", "First step to first token.", self._prefill),
            ("vllm:request_decode_time_seconds", "First token to last.", self._decode),
        ):
            yield buckets.family(name, text, self._labels)

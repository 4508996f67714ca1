"""What a run amounts to: the types of its figures (`summarize` computes them)."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from servecap.run import Slice
from servecap.slo import Limit
from servecap.stats import Distribution

SUMMARY_FORMAT = 1  # of summary.json; docs/formats.md says when it counts up


class Verdict(StrEnum):
    """What can be said of a limit, or of a whole SLO, at the asked confidence."""

    PASS = "pass"
    FAIL = "fail"
    UNSURE = "unsure"


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the run that is measured: requests that *ended* in [start_s, end_s]."""

    start_s: float
    end_s: float
    rule: str  # why these bounds, in words


class LimitCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One limit held against an interval; seconds."""

    limit: Limit
    verdict: Verdict
    value_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    attainment_share: float | None = None  # requests that kept the limit's value themselves
    requests_needed: int | None = None  # more requests that would settle an UNSURE
    reason: str = ""


class PartFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a mix of workloads, in the window of the run."""

    name: str  # the workload
    share: float  # of requests (of sessions, where it has them) that was asked for
    requests: int
    requests_ok: int
    error_rate: float | None  # None: it had no request
    qps: float
    client: dict[str, Distribution]  # as in `Summary`, without gap and lag


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """How much a figure changed over the time, relative to its mean: 0.1 is 10% more; at 95%."""

    change_share: float
    low_share: float
    high_share: float

    @property
    def significant(self) -> bool:
        """Whether no change at all is outside of the interval."""
        return self.low_share > 0 or self.high_share < 0


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which more requests failed than chance makes of the rate of the others."""

    start_s: float
    end_s: float
    failed: int
    requests: int


class Stability(msgspec.Struct, frozen=True, kw_only=True):
    """How the figures moved. `drifts` keys: ttft, tpot, tps, server_rss."""

    start_s: float
    end_s: float
    requests: int  # that ended in it by themselves; of a soak, in all of its time
    failed: int
    drifts: dict[str, Drift]
    stalled: int  # answers that stood still for over 1 s between two chunks
    gap_max_s: float | None
    bursts: tuple[Burst, ...]
    slices: tuple[Slice, ...]


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A figure of the surroundings in the window: of a gauge its course, of a counter its sum."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    first: float | None = None
    last: float | None = None
    total: float | None = None
    per_s: float | None = None


class ServerSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A latency by the server's own histogram; its p95 lies between two of its bounds."""

    count: int
    mean_s: float
    p95_low_s: float
    p95_high_s: float | None  # None: above the last bound


class Telemetry(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen around the run, in its window.

    `readings` keys: source.figure, such as server.kv_used_share, gpu.power_w, client.cpu_share.
    `server` keys: ttft, tpot, gap, e2e, queue. `missing`: why a source told nothing.
    """

    readings: dict[str, Reading]
    server: dict[str, ServerSeen]
    looks: int  # at the server's metrics
    unanswered: int
    slowest_s: float | None
    missing: dict[str, str]


FlowState = Literal["settled", "growing", "unclear"]


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """What came to the server and what it answered, once the first requests were through.

    `growing`: the queue grows without bound, and `answered_rps` is what the server can do.
    `settled`: no growth beyond chance was seen in the time. `unclear`: neither.
    """

    state: FlowState
    start_s: float
    end_s: float
    arrived_rps: float
    answered_rps: float
    answered_error: float  # its standard error, as a share of it
    answers: int
    grew_by: int  # requests in flight, from start to end
    failed_share: float  # of those that ended

    @property
    def tells_rate(self) -> bool:
        """Whether `answered_rps` is the server's own: it had more to do, and did not fail at it."""
        return self.state == "growing" and self.failed_share <= FAILED_MOST


FAILED_MOST = 0.05  # share of failures above which answers/s are no measure of the server


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Every figure of a run. Latencies: `client` and `server` by metric name, seconds.

    `client` keys: ttft, ttft_sent, tpot, e2e, gap, lag, prompt_tokens, output_tokens.
    `server` keys: ttft, tpot, e2e, queue, prefill (only what the server told).
    Latency distributions are over successful requests; failures count in `error_rate`, in
    percentile limits (as infinitely slow) and in `attainment_share`. Each try of a request counts
    in `requests`; a success after a retry leaves its request a failure in all of these three.
    """

    window: Window
    users: int | None
    rate_rps: float | None  # asked in the window, for open-loop load
    in_flight_mean: float
    in_flight_max: int
    benchmark_time_s: float  # first send to the last end that counts
    requests: int  # ended in the window
    requests_ok: int
    requests_censored: int  # still running at the end: not in any figure above
    errors: dict[str, int]  # kind -> count, in the window
    error_rate: float
    qps: float
    output_tps: float
    total_tps: float | None  # prompt + output tokens
    goodput_rps: float  # requests/s that kept every per-request limit
    client: dict[str, Distribution]
    server: dict[str, Distribution]
    token_sources: dict[str, int]
    checks: tuple[LimitCheck, ...]
    verdict: Verdict
    scheduled_rps: float | None = None  # open loop: arrivals planned in the window, by its length
    achieved_rps: float | None = None  # open loop: requests that were sent in it, by its length
    rate_of: Literal["requests", "sessions"] = "requests"  # what the three rates above count
    parts: tuple[PartFigures, ...] = ()  # of a mix
    retries: int = 0  # of `requests`, later tries of one that had failed
    retries_ok: int = 0  # of `retries`, those that succeeded
    not_sent: int = 0  # arrivals of the whole run that failed since too many were in flight
    stability: Stability | None = None  # None: too few requests to tell
    telemetry: Telemetry | None = None  # None: nothing was looked at
    flow: Flow | None = None  # of an open loop at one rate
    invalid_reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    format: int = SUMMARY_FORMAT

    @property
    def valid(self) -> bool:
        return not self.invalid_reasons

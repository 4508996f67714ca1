"""A `Run`: one load test, measured, simulated or imported; what follows need not tell which."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import msgspec

from servecap.record import Record
from servecap.sample import Sample
from servecap.scenario import Scenario, Target

if TYPE_CHECKING:
    from servecap.columns import Columns

Source = Literal["measured", "simulated", "imported"]  # imported: measured by another tool


STALL_S = 1.0  # a pause within an answer that a reader takes for a fault


class Status(StrEnum):
    """Whether the run came to its own end."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"  # Ctrl-C: what was measured until then is kept
    PARTIAL = "partial"  # the process died: only its finished records are known


class LoadNode(msgspec.Struct, frozen=True, kw_only=True):
    """A load process on another machine, and how its clock was put on the parent's.

    The error is half the least round trip of a ping. What was measured on the node is right by
    the node's own clock; only *when* it happened, beside other nodes, is wrong by so much.
    """

    name: str
    offset_s: float  # the node's monotonic clock less the parent's, when the run began
    error_s: float
    drift_s: float | None = None  # how much the offset has changed since, by the last pings
    drift_error_s: float | None = None
    lost: bool = False  # it was gone before the run's end


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How well the client itself kept up. None: not known (a simulated or imported run)."""

    loop_delay_p99_s: float | None = None  # how late timers of the client fired
    loop_delay_max_s: float | None = None
    cpu_share: float | None = None  # of one core, mean over the run
    rss_bytes: int | None = None
    clock: str = "monotonic"
    processes: int = 1  # of load; with several, delays and CPU are those of the worst
    failure: str | None = None  # a load process that was lost, which makes the run INVALID
    nodes: tuple[LoadNode, ...] = ()  # where the processes are on other machines


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a run but its records; written before the first request is sent."""

    scenario: Scenario
    target: Target
    source: Source
    servecap_version: str
    started_utc: str  # ISO 8601; the only wall-clock time in a run
    imported_from: str | None = None  # the tool, and its file
    status: Status = Status.PARTIAL
    stop_reason: str | None = None
    load_end_s: float | None = None  # when sending stopped; later ends belong to the drain
    health: Health = msgspec.field(default_factory=Health)
    workload_note: str = ""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""  # that asked for it, with the values of headers left out; empty: not known


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """What ended by itself in one of the equal parts of a run's time. Latencies: successes only.

    A success after a retry is in the latencies and tokens, not in `requests`: its request failed.
    """

    start_s: float
    end_s: float
    requests: int
    failed: int = 0
    errors: dict[str, int] = msgspec.field(default_factory=dict)  # kind -> count
    output_tokens: int = 0
    ttft_mean_s: float | None = None
    ttft_p95_s: float | None = None
    tpot_mean_s: float | None = None
    tpot_p95_s: float | None = None
    e2e_mean_s: float | None = None
    e2e_p95_s: float | None = None
    gap_max_s: float | None = None
    stalled: int = 0  # answers that stood still for over `STALL_S` between two chunks


class Run(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A header and the records, roughly in the order in which the requests ended.

    Of a soak only the latest records are held; `slices` tell of all its time.
    """

    header: Header
    records: list[Record]
    path: str | None = None  # the folder it is stored in
    slices: tuple[Slice, ...] = ()  # of a soak
    telemetry: tuple[Sample, ...] = ()
    dropped: int = 0  # earlier records of a soak that are on disk only

    @property
    def scenario(self) -> Scenario:
        return self.header.scenario

    @cached_property
    def columns(self) -> Columns:
        """The records as columns, in the order in which they ended; read once for all."""
        from servecap.columns import Columns  # numpy comes with it, which a client does without

        return Columns(self.records).by_end()


Probe = Callable[[Scenario], Run]

"""A server and a workload made ready once, so that any scenario can be measured on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from servecap.errors import UsageError
from servecap.living import Living
from servecap.measure import OnProgress, measure
from servecap.preflight import Prepared, prepare
from servecap.process import run_async
from servecap.run import Run
from servecap.scenario import ClosedLoop, Load, OpenLoop, Scenario, Timeouts, WorkloadSpec
from servecap.wire.endpoint import Endpoint, Security, resolve
from servecap.workers import wanted
from servecap.workload import source, tokens

if TYPE_CHECKING:
    from servecap.telemetry import Sampler

_NATURAL_TOKENS = 200  # assumed for the ramp only, where an answer's length is the model's choice


LevelProbe = Callable[[Scenario, Path, OnProgress | None], Run]


class TargetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the user says of the server."""

    url: str
    api: str = "auto"
    model: str | None = None
    stream: bool = True
    headers: tuple[str, ...] = ()
    security: Security = msgspec.field(default_factory=Security)
    proxy: str | None = None
    key_file: str | None = None


USERS_MOST = 2_000  # at a server that is not on this machine, unless more is asked for expressly
RATE_MOST_RPS = 200.0


class Around(msgspec.Struct, frozen=True, kw_only=True):
    """What the user says of the surroundings to look at."""

    metrics_url: str | None = None  # None: the server's own /metrics
    dcgm_url: str | None = None  # None: the GPUs of this machine, where the server runs on it
    node_url: str | None = None


class Bench:
    """A prepared server, a loaded workload, and where runs are kept."""

    def __init__(
        self,
        prepared: Prepared,
        workload: source.Workload,
        tokenizer: str | None,
        workers: int | None = None,
        ray: str | None = None,
        sampler: Sampler | None = None,
        *,
        high_load: bool = False,
    ) -> None:
        self.sampler = sampler
        self.prepared = prepared
        self.workload = workload
        self._tokenizer = tokenizer
        self._workers = workers
        self._ray = ray
        self._bounded = not (prepared.endpoint.local or high_load)

    @property
    def users_most(self) -> int | None:
        """The most users that a search may try; None: as many as it likes."""
        return USERS_MOST if self._bounded else None

    @property
    def rate_most(self) -> float | None:
        """The most requests/s that a search may try; None: as many as it likes."""
        return RATE_MOST_RPS if self._bounded else None

    def _check(self, load: Load) -> None:
        """A slip of the finger must not take down somebody's service."""
        match load:
            case ClosedLoop(users=users) if self._bounded and users > USERS_MOST:
                asked = f"{users} users"
            case OpenLoop() if self._bounded and (peak := load.peak_rps) > RATE_MOST_RPS:
                asked = f"{peak:g} requests/s"
            case _:
                return
        raise UsageError(
            f"{asked} at {self.prepared.target.url}: above {USERS_MOST} users or "
            f"{RATE_MOST_RPS:g} requests/s a server that is not on this machine is loaded only "
            "with --allow-high-load"
        )

    def run(self, scenario: Scenario, out: Path, on_progress: OnProgress | None = None) -> Run:
        """The scenario measured on the server, kept in *out*.

        Raises:
            UsageError: so much load must be allowed expressly, see `RATE_MOST_RPS`.
            ServecapError: see `measure.measure`.
        """
        self._check(scenario.load)
        return measure(
            scenario,
            self.prepared,
            self.workload.requests(scenario.seed),
            response_guess_s=self._response_guess_s(),
            out=out,
            workload_note=self.workload.note,
            count_tokens=self._counter(),
            on_progress=on_progress,
            workers=self._workers if self._ray else self._workers or wanted(scenario),
            ray=self._ray,
            sampler=self.sampler,
        )

    @contextmanager
    def levels(self, seed: int, timeouts: Timeouts) -> Iterator[LevelProbe]:
        """Measures scenarios one after another under one load that lives on between them.

        Where several processes make the load, each level starts anew.
        """
        living = Living(
            self.prepared,
            timeouts,
            self.workload.requests(seed),
            response_guess_s=self._response_guess_s(),
            workload_note=self.workload.note,
            count_tokens=self._counter(),
            sampler=self.sampler,
        )

        def level(scenario: Scenario, out: Path, on_progress: OnProgress | None) -> Run:
            if self._ray or (self._workers or wanted(scenario)) > 1:
                living.rest()
                return self.run(scenario, out, on_progress)
            self._check(scenario.load)
            return living.level(scenario, out, on_progress)

        with living:
            yield level

    def close(self) -> None:
        """Look at the surroundings no more."""
        if self.sampler is not None:
            self.sampler.close()

    def _response_guess_s(self) -> float:
        return self.prepared.response_guess_s(self._output_tokens())

    def _output_tokens(self) -> float:
        asked = [r.max_output_tokens for r in islice(self.workload.requests(0), 50)]
        known = [float(n) for n in asked if n is not None]
        return sum(known) / len(known) if len(known) == len(asked) else _NATURAL_TOKENS

    def _counter(self) -> Callable[[str], int] | None:
        return tokens.counter(self._tokenizer).count if self._tokenizer else None


def open_bench(
    target: TargetSpec,
    workload: WorkloadSpec,
    timeouts: Timeouts,
    *,
    workers: int | None = None,
    ray: str | None = None,
    around: Around | None = None,
    high_load: bool = False,
    command: str = "",
) -> Bench:
    """The workload loaded, and the server found to answer one request.

    The workload comes first: its errors are found without touching the server. `workers`
    processes make the load; None: as many as each scenario is worth, or one on each node of the
    *ray* cluster at that address. `high_load`: more than `USERS_MOST` users or `RATE_MOST_RPS` are
    allowed at a server that is not on this machine. `command` is what asked for it, told in the
    reports.

    Raises:
        UsageError: the workload or the target cannot be read.
        EndpointError: the server cannot be used.
    """
    loaded = source.load(workload)
    endpoint = resolve(
        target.url,
        headers=target.headers,
        security=target.security,
        proxy=target.proxy,
        key_file=target.key_file,
    )
    prepared = run_async(
        prepare(
            endpoint,
            url=target.url,
            api=target.api,
            model=target.model,
            stream=target.stream,
            timeouts=timeouts,
        )
    )
    prepared = msgspec.structs.replace(prepared, command=endpoint.scrubbed(command))
    sampler = None if around is None else _sampler(target, endpoint, around)
    return Bench(prepared, loaded, workload.tokenizer, workers, ray, sampler, high_load=high_load)


def _sampler(target: TargetSpec, endpoint: Endpoint, around: Around) -> Sampler:
    """What looks at the surroundings, ready to begin; it ends with this process."""
    from servecap.telemetry import Sampler
    from servecap.telemetry.sampler import Watch
    from servecap.telemetry.sources import Exporter

    own = None if target.url.startswith("unix:") else _metrics_url(target.url)
    exporters: list[Exporter] = []
    for name, url in (
        ("server", around.metrics_url or own),
        ("gpu", around.dcgm_url),
        ("node", around.node_url),
    ):
        if url is None:
            continue
        # The key is the server's: it goes nowhere else.
        same = own is not None and urlsplit(url)[:2] == urlsplit(own)[:2]
        exporters.append(
            Exporter(
                source=name,  # type: ignore[arg-type]
                url=_page_url(url),
                headers=endpoint.headers if same else {},
                insecure=target.security.insecure,
                ca_file=target.security.ca_file,
                proxy=target.proxy if same else None,
            )
        )
    local = around.dcgm_url is None and endpoint.local
    sampler = Sampler(Watch(exporters=tuple(exporters), pid=os.getpid(), gpus=local))
    sampler.start()
    return sampler


def _metrics_url(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1") + "/metrics"


def _page_url(url: str) -> str:
    """The page of an exporter; /metrics where only its host was given.

    Raises:
        UsageError: it is no URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise UsageError(f"metrics URL {parts.hostname or url!r} must look like http://host:port")
    return url if parts.path not in ("", "/") else f"{url.rstrip('/')}/metrics"

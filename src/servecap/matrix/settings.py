"""How a cell is tested: settings in layers, and the scenario that they come to."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from servecap import slo as slos
from servecap.errors import UsageError
from servecap.matrix.job import SearchBounds
from servecap.scenario import (
    RETRIES_MOST,
    ClosedLoop,
    Scenario,
    StopRule,
    Timeouts,
    Timings,
    WorkloadSpec,
)
from servecap.wire.api import API_NAMES
from servecap.workload import builtin


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a cell is tested. None: as the settings around it, in the end servecap's defaults."""

    workload: str | None = None
    format: str | None = None
    output: str | int | None = None
    unique: bool | None = None
    tokenizer: str | None = None
    think_s: tuple[float, float] | None = None
    slo: str | None = None
    requests: int | None = None
    duration_s: float | None = None
    max_duration_s: float | None = None
    timeouts: Timeouts | None = None
    timings: Timings | None = None
    seed: int | None = None
    retries: int | None = None
    start: int | None = None
    max_users: int | None = None
    precision: float | None = None
    api: str | None = None
    served_model: str | None = None


def merge(*layers: Settings) -> Settings:
    """Each setting from the last layer that gives it."""
    found: dict[str, object] = {}
    for layer in layers:
        found |= {k: v for k, v in msgspec.structs.asdict(layer).items() if v is not None}
    return Settings(**found)  # type: ignore[arg-type]


def scenario_of(settings: Settings, bounds: SearchBounds, folder: Path) -> Scenario:
    """The scenario that the settings come to, its users being where the search starts.

    Raises:
        ValueError: a setting cannot be meant; the arguments are its name and why.
    """
    base, stop = WorkloadSpec(), StopRule()
    workload = WorkloadSpec(
        source=_source(settings.workload or base.source, folder),
        format=settings.format,
        output=base.output if settings.output is None else str(settings.output),
        unique=base.unique if settings.unique is None else settings.unique,
        tokenizer=None if settings.tokenizer is None else str(folder / settings.tokenizer),
    )
    low, high = settings.think_s or ClosedLoop(users=1).think_s
    if not 0 <= low <= high < math.inf:
        raise ValueError("think_s", f"[{low:g}, {high:g}] is no range from 0 upwards")
    for name in ("requests", "duration_s", "max_duration_s"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(name, f"{value:g} is not greater than 0")
    if settings.retries is not None and not 0 <= settings.retries <= RETRIES_MOST:
        raise ValueError("retries", f"{settings.retries} does not lie within 0 and {RETRIES_MOST}")
    try:
        slo = slos.parse(settings.slo) if settings.slo is not None else slos.DEFAULT
    except UsageError as error:
        raise ValueError("slo", str(error)) from None
    return Scenario(
        load=ClosedLoop(users=bounds.plain_start, think_s=(low, high)),
        workload=workload,
        slo=slo,
        stop=StopRule(
            requests=settings.requests or stop.requests,
            duration_s=settings.duration_s,
            max_duration_s=settings.max_duration_s or stop.max_duration_s,
        ),
        timeouts=settings.timeouts or Timeouts(),
        timings=settings.timings or "client",
        seed=settings.seed or 0,
        retries=settings.retries or 0,
    )


def bounds_of(settings: Settings) -> SearchBounds:
    """The search's bounds that the settings come to.

    Raises:
        ValueError: as `scenario_of`.
    """
    base = SearchBounds()
    start = settings.start
    most = base.max_users if settings.max_users is None else settings.max_users
    precision = base.precision if settings.precision is None else settings.precision
    if most < 1:
        raise ValueError("max_users", f"{most} is not at least 1")
    if start is not None and not 1 <= start <= most:
        raise ValueError("start", f"{start} does not lie within 1 and max_users, {most}")
    if not 0 < precision < 1:
        raise ValueError("precision", f"{precision:g} does not lie within 0 and 1 (5% is 0.05)")
    return SearchBounds(start=start, max_users=most, precision=precision)


def api_of(settings: Settings) -> str:
    """The API's name that the settings come to.

    Raises:
        ValueError: as `scenario_of`.
    """
    api = settings.api or "auto"
    if api not in API_NAMES:
        raise ValueError("api", f"{api!r} is not one of {', '.join(API_NAMES)}")
    return api


def _source(source: str, folder: Path) -> str:
    """The workload, a data set's path from the spec's folder."""
    known = source in builtin.BUILTINS or source.startswith("fixed:")
    return source if known else str(folder / source)

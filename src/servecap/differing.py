"""In what two runs differ besides their figures: what was asked, and what was tested."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from servecap import slo
from servecap.run import Header, Run
from servecap.scenario import ClosedLoop, Load, Scenario


def differences(before: Run, after: Run) -> tuple[str, ...]:
    """What was asked or tested differently, so that a change may not be the server's."""
    a, b = before.header, after.header
    pairs: list[tuple[str, object, object]] = [
        ("source", a.source, b.source),
        ("measured by", _tool(a), _tool(b)),
        ("API", a.target.api, b.target.api),
        ("model", a.target.model, b.target.model),
        ("streaming", a.target.stream, b.target.stream),
        ("URL", a.target.url, b.target.url),
        ("server", a.target.server, b.target.server),
        ("servecap", a.servecap_version, b.servecap_version),
    ]
    pairs.insert(0, ("load", a.scenario.load, b.scenario.load))
    found = [*asked_differently(a.scenario, b.scenario), *_differing(pairs)]
    for name, header in (("before", a), ("after", b)):
        why = _unsettled(header.scenario.load)
        if why is not None:
            found.append(f"{name} is {why}: not stationary, so its intervals are a guide")
    return tuple(found)


def _tool(header: Header) -> str | None:
    """The tool that measured an imported run; None for our own."""
    return None if header.imported_from is None else header.imported_from.partition(", ")[0]


def _unsettled(load: Load) -> str | None:
    """Why a run under this load is not in a steady state; None where it can be."""
    if isinstance(load, ClosedLoop):
        classic = load.queue is not None or load.each is not None
        return "a classic run" if classic else None
    return None if load.stationary else "a run under a changing load"


def asked_differently(before: Scenario, after: Scenario) -> tuple[str, ...]:
    """In what two scenarios differ but for their load and seed."""
    names = ("workload", "slo", "stop", "timeouts", "timings", "retries")
    return tuple(
        _differing([(name, getattr(before, name), getattr(after, name)) for name in names])
    )


def _differing(pairs: Sequence[tuple[str, object, object]]) -> list[str]:
    told = [(name, *_unlike(x, y)) for name, x, y in pairs if x != y]
    return [f"{name}: {x} -> {y}" for name, x, y in told]


def _unlike(x: object, y: object) -> tuple[str, str]:
    """Both in words; of two that have parts those only that are not the same in both."""
    before, after = _parts(x), _parts(y)
    if before is None or after is None:
        return _told(x), _told(y)
    same = {name for name in before if name in after and before[name] == after[name]}
    told = [
        " ".join(f"{name}={value}" for name, value in parts.items() if name not in same)
        for parts in (before, after)
    ]
    return told[0] or "n/a", told[1] or "n/a"


def _parts(value: object) -> dict[str, object] | None:
    if isinstance(value, slo.Slo) or not isinstance(value, msgspec.Struct):
        return None
    return {k: v for k, v in msgspec.to_builtins(value).items() if v is not None}


def _told(value: object) -> str:
    return "n/a" if value is None else str(value)

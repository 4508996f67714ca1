"""From a load test in another tool's file to a run of ours, with all that is not known of it."""

from __future__ import annotations

import math

import msgspec

from servecap import __version__
from servecap.errors import UsageError
from servecap.foreign.rows import Found, Load, records
from servecap.record import Outcome, Record
from servecap.run import Header, Run, Status
from servecap.scenario import (
    ClosedLoop,
    OpenLoop,
    Scenario,
    StopRule,
    Target,
    WorkloadSpec,
)
from servecap.scenario import Load as OurLoad
from servecap.slo import Slo

AGREES = 0.02  # figures of the file and of its requests that differ by more are told
UNKNOWN = "n/a"
_NOT_ENDED = (Outcome.CENSORED, Outcome.CANCELLED)


def run_of(found: Found, *, name: str, slo: Slo) -> Run:
    """The load test as a run that is marked as imported.

    Args:
        name: the file, and the place in it.
    Raises:
        UsageError: the file has no figures per request, or its load is not told.
    """
    made = records(found.rows)
    if not made:
        why = found.why_no_rows or "there are no requests in it"
        raise UsageError(f"{name}: {why}; its own figures can only become a cell: --cell FILE")
    load = our_load(found.load, made, name)
    url = found.url or UNKNOWN
    header = Header(
        scenario=Scenario(
            load=load,
            workload=WorkloadSpec(source=found.workload or UNKNOWN, output=UNKNOWN, unique=False),
            slo=slo,
            stop=StopRule(requests=len(made)),
        ),
        target=Target(url=url, api=found.api or UNKNOWN, model=found.model, stream=found.streamed),
        source="imported",
        servecap_version=__version__,
        started_utc=found.started or UNKNOWN,
        imported_from=f"{found.tool}, {name}",
        status=Status.COMPLETE,
        stop_reason=f"{len(made)} requests are in the file",
        load_end_s=max(r.sent_s for r in made),
        workload_note="as the other tool says",
        notes=(*found.notes, *_contradictions(found, made)),
    )
    return Run(header=header, records=made)


def our_load(load: Load, made: list[Record], name: str) -> OurLoad:
    """The load in our words: requests in flight are users who do not think.

    Raises:
        UsageError: the file does not tell it.
    """
    if load.rate_rps is not None:
        return _open(load, load.rate_rps)
    users = len(made) if load.at_once else load.in_flight
    if users is None:
        raise UsageError(
            f"{name}: the file does not tell the load: give --users N (requests kept in flight) or "
            "--rate R (requests per second)"
        )
    ended = all(r.outcome not in _NOT_ENDED for r in made)
    queue = len(made) if load.fixed and ended else None
    return ClosedLoop(users=users, think_s=(0.0, 0.0), queue=queue)


def _open(load: Load, rate_rps: float) -> OpenLoop:
    if load.burstiness is None:
        return OpenLoop(rate_rps=rate_rps, arrivals="constant")
    if load.burstiness == 1:
        return OpenLoop(rate_rps=rate_rps)
    # Gaps of a gamma distribution of shape k have a standard deviation of 1 / sqrt(k) means.
    return OpenLoop(rate_rps=rate_rps, arrivals="gamma", cv=1 / math.sqrt(load.burstiness))


def told_load(load: Load, *, users: int | None, rate_rps: float | None) -> Load:
    """The load with what the user says of it, who knows better than the file."""
    if users is not None:
        return msgspec.structs.replace(load, in_flight=users, rate_rps=None, at_once=False)
    if rate_rps is not None:
        return msgspec.structs.replace(load, rate_rps=rate_rps, at_once=False)
    return load


def _contradictions(found: Found, made: list[Record]) -> list[str]:
    """The file's own figures that its requests do not give."""
    good = [r for r in made if r.ok]
    told, notes = found.told, []
    if told.requests_ok is not None and told.requests_ok != len(good):
        notes.append(f"the file says {told.requests_ok} requests succeeded, it holds {len(good)}")
    pairs = (
        ("mean TTFT", told.ttft.get("mean"), [r.ttft_sent_s for r in good]),
        ("mean TPOT", told.tpot.get("mean"), [r.tpot_s for r in good]),
        ("mean answer length", told.output_tokens, [r.output_tokens for r in good]),
    )
    for what, said, values in pairs:
        known = [float(v) for v in values if v is not None]
        if said is None or not known:
            continue
        mean = sum(known) / len(known)
        if abs(mean - said) > AGREES * max(abs(said), abs(mean)):
            notes.append(f"the file says a {what} of {said:.4g}, its requests give {mean:.4g}")
    return notes

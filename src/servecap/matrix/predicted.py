"""A cell of the matrix without any server: what `servecap predict` answers for it."""

from __future__ import annotations

import math

import msgspec

from servecap.cell import Capacity, Cell, Modelled
from servecap.matrix.job import CellJob, Predict
from servecap.predict.answer import Answer, answer
from servecap.predict.expected import case_of
from servecap.predict.profile import prior


def cell_of(job: CellJob, source: Predict) -> Cell:
    """The job's cell from the engine model, with the interval that data sheets alone deserve.

    Raises:
        UsageError: the workload cannot be loaded, or its users cannot be predicted.
    """
    spec = source.spec
    case = case_of(spec, job.scenario, interconnect=job.interconnect)
    found = answer(
        case,
        prior(spec.engine),
        job.scenario.slo,
        scenario=job.scenario_name,
        users_max=job.search.max_users,
    )
    lengths = case.lengths
    serves = bool(found.max_users and found.max_users.value)
    return Cell(
        model=job.model,
        gpu=job.gpu,
        tp=job.tp,
        scenario=job.scenario_name,
        origin="predicted",
        provenance="engine model",
        capacity=_capacity(found),
        gpu_memory_gb=spec.gpu_memory_gb if job.gpu_memory_gb is None else job.gpu_memory_gb,
        interconnect=job.interconnect,
        avg_context_tokens=lengths.prompt_tokens + lengths.output_tokens,
        avg_output_tokens=lengths.output_tokens,
        error_rate=found.error_rate if serves else None,
        ttft_s=_value(found, "ttft_s") if serves else None,
        tpot_s=_value(found, "tpot_s") if serves else None,
        requests_per_s=_value(found, "requests_per_s") if serves else None,
        output_tokens_per_s=_value(found, "output_tokens_per_s") if serves else None,
        total_tokens_per_s=_value(found, "total_tokens_per_s") if serves else None,
        slo=str(job.scenario.slo),
        invalid_reason=found.impossible,
        notes=_notes(found),
        modelled=Modelled(
            engine=msgspec.to_builtins(spec),
            prompt_spread=lengths.prompt_spread,
            output_spread=lengths.output_spread,
        ),
    )


def _capacity(found: Answer) -> Capacity | None:
    if found.max_users is None:
        return None
    users = int(found.max_users.value)
    return Capacity(
        users=users,
        users_low=math.floor(found.max_users.low),
        users_high=math.ceil(found.max_users.high) if users else None,  # of nothing, no share is
        confidence=found.interval_share,
        limited_by=found.limited_by,
    )


def _value(found: Answer, figure: str) -> float | None:
    told = msgspec.structs.asdict(found)[figure]
    return None if told is None else float(told.value)


def _notes(found: Answer) -> tuple[str, ...]:
    """What binds, how much is known, and what the answer itself notes."""
    capacity = _capacity(found)
    if capacity is None:
        return ()
    known = (
        "predicted from data sheets, with no measured rows: calibrate the engine model to narrow "
        f"the {found.interval_share:.0%} interval"
    )
    if not capacity.users:
        return ("not even one user is served within the SLO: there are no figures", known)
    own = [n for n in found.notes if not n.startswith("no measured rows")]
    return (f"what binds: {found.binds}", known, *own)

"""Which servers need not be measured: a sibling is better than the best that they may be."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from servecap.cell import Cell
from servecap.engine.spec import EngineKind, EngineSpec
from servecap.errors import UsageError
from servecap.matrix import predicted
from servecap.matrix.job import CellJob, Predict, imported_place, place_text

NODE_GPUS = 8  # degrees are compared by the users of a node of so many


class Dominated(msgspec.Struct, frozen=True):
    """Why a cell is not measured, and what is predicted for it instead.

    `cell`: None where the matrix has a prediction of the same place already.
    """

    reason: str
    cell: Cell | None


def dominated(job: CellJob, cells: Sequence[Cell]) -> Dominated | None:
    """The cell that stands for the job's, if a measured sibling is surely better; else None.

    Siblings differ in the tensor-parallel degree alone and were measured under the same SLO. The
    job's cell is dominated where even the high end of its predicted interval has fewer users on a
    node than the best of them. Where nothing can be predicted, nothing is dominated.
    """
    if job.origin == "predicted":
        return None
    siblings = [cell for cell in cells if _is_sibling(cell, job)]
    best = max(siblings, key=_node_users, default=None)
    if best is None or NODE_GPUS // job.tp < 1:
        return None
    same = _predicted_place(job)
    there = next((cell for cell in cells if imported_place(cell) == same), None)
    cell = there or _predicted(job)
    capacity = None if cell is None else cell.capacity
    if cell is None or capacity is None or capacity.users_high is None or not capacity.users:
        return None
    most = NODE_GPUS // job.tp * capacity.users_high
    if most >= _node_users(best):
        return None
    reason = (
        f"not measured: a node of {NODE_GPUS} GPUs would carry at most {most} users (high end of "
        f"the {capacity.confidence or 0:.0%} interval predicted), and {_node_users(best)} were "
        f"measured at TP{best.tp}"
    )
    if there is not None:
        return Dominated(reason, None)
    return Dominated(reason, msgspec.structs.replace(cell, notes=(reason, *cell.notes)))


def _is_sibling(cell: Cell, job: CellJob) -> bool:
    alike = (cell.model.casefold(), cell.gpu.casefold(), cell.gpu_memory_gb, cell.interconnect) == (
        job.model.casefold(), job.gpu.casefold(), job.gpu_memory_gb, job.interconnect
    )  # fmt: skip
    return (
        alike
        and cell.scenario == job.scenario_name
        and cell.origin == "measured"
        and cell.invalid_reason is None
        and cell.capacity is not None
        and cell.slo == str(job.scenario.slo)
        and cell.tp != job.tp
    )


def _node_users(cell: Cell) -> int:
    return 0 if cell.capacity is None else NODE_GPUS // cell.tp * cell.capacity.users


def _predicted_place(job: CellJob) -> str:
    return place_text(
        job.model, job.gpu, job.gpu_memory_gb, job.interconnect, job.tp, job.scenario_name,
        "predicted",
    )  # fmt: skip


def _predicted(job: CellJob) -> Cell | None:
    """The job's cell by the engine model; None: it does not know the model, GPU or workload."""
    engine: EngineKind = "tgi" if job.api == "tgi" else "vllm"
    spec = EngineSpec(
        model=job.model, gpu=job.gpu, tp=job.tp, engine=engine, gpu_memory_gb=job.gpu_memory_gb
    )
    try:
        return predicted.cell_of(job, Predict(spec))
    except UsageError:
        return None

"""From a search's result to a cell of the matrix."""

from __future__ import annotations

import math

from servecap.cell import Cell
from servecap.matrix.job import CellJob, Emulate
from servecap.metrics import Summary
from servecap.record import TokenSource
from servecap.search import SearchResult
from servecap.stats import Distribution


def cell_of(job: CellJob, result: SearchResult, *, provenance: str) -> Cell:
    """The job's cell with the figures of the largest level that held.

    Figures are by the clock that the scenario judges by: the server's own for `timings: server`,
    else the client's. Where the emulator answered, the cell is marked as predicted.
    """
    level = result.at_capacity
    undecided = _undecided(result)
    summary = None if level is None else level.summary
    server = result.scenario.timings == "server"
    latencies = {} if summary is None else summary.server if server else summary.client
    prompt = _mean(None if summary is None else summary.client.get("prompt_tokens"))
    output = _mean(None if summary is None else summary.client.get("output_tokens"))
    return Cell(
        model=job.model,
        gpu=job.gpu,
        tp=job.tp,
        scenario=job.scenario_name,
        origin=job.origin,
        provenance=provenance,
        capacity=None if undecided else result.capacity,
        gpu_memory_gb=_memory(job),
        interconnect=job.interconnect,
        avg_context_tokens=None if prompt is None or output is None else prompt + output,
        avg_output_tokens=output,
        error_rate=None if summary is None else summary.error_rate,
        ttft_s=_mean(latencies.get("ttft")),
        tpot_s=_mean(latencies.get("tpot")),
        requests_per_s=None if summary is None else summary.qps,
        output_tokens_per_s=None if summary is None else summary.output_tps,
        total_tokens_per_s=None if summary is None else summary.total_tps,
        slo=str(result.scenario.slo),
        invalid_reason=undecided,
        notes=() if undecided else _notes(result, summary),
    )


def _undecided(result: SearchResult) -> str | None:
    """Why there is no capacity: no level held, and none was seen to fail either."""
    if result.at_capacity is not None or result.capacity.users_high is not None:
        return None
    tried = ", ".join(str(level.users) for level in result.levels)
    return f"no level was decided (users tried: {tried}): let it take more requests"


def _memory(job: CellJob) -> float | None:
    if isinstance(job.source, Emulate) and job.gpu_memory_gb is None:
        return job.source.config.gpu_memory_gb
    return job.gpu_memory_gb


def _mean(distribution: Distribution | None) -> float | None:
    if distribution is None or not math.isfinite(distribution.mean):
        return None
    return distribution.mean


def _notes(result: SearchResult, summary: Summary | None) -> tuple[str, ...]:
    notes = []
    if summary is None:
        notes.append("no number of users was seen to keep the SLO: there are no figures")
    elif set(summary.token_sources) != {TokenSource.SERVER.value}:
        sources = ", ".join(sorted(summary.token_sources)) or "none"
        notes.append(f"token counts are not all the server's own: {sources}")
    if result.capacity.users_high is None:
        notes.append(f"no upper end: {result.stop_reason}")
    return tuple(notes)

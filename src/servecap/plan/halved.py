"""What half the context would change: cells scaled by what the engine model says of both."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from servecap.cell import Cell
from servecap.engine import fast
from servecap.engine.spec import EngineSpec
from servecap.errors import UsageError
from servecap.plan import choice
from servecap.plan.answer import ModelPlan
from servecap.predict.expected import harness_of
from servecap.predict.figures import Case, capacity
from servecap.predict.harness import CHAT_OUTPUT_SHARE, Lengths
from servecap.predict.place import place
from servecap.predict.profile import prior
from servecap.slo import Slo

_SEEDS = 4  # the answer is a ratio of two capacities: a few percent of noise do not matter
_USERS_MAX = 5000
_THINK_S = (1.0, 3.0)


def halved(model: ModelPlan, cells: Sequence[Cell], scenario: str, slo: Slo) -> list[Cell]:
    """All cells, the model's as they would be with prompts and answers halved.

    Of the model only the best split of each GPU type stays in, with users and rates times the
    ratio of two predictions: of the engine model with half the tokens, and with all of them.
    Latencies stay, for both are at the limit.

    Raises:
        UsageError: for one of them this cannot be told.
    """
    if not fast.COMPILED:
        raise UsageError("the engine model is not compiled: pip install 'servecap[fast]'")
    best = {(gpu.gpu, gpu.interconnect): gpu.best for gpu in model.gpus}
    found = []
    for cell in cells:
        if cell.model.casefold() != model.model.casefold() or cell.scenario != scenario:
            found.append(cell)
            continue
        split = best.get((choice.gpu_label(cell), cell.interconnect))
        if split is not None and (split.tp, split.origin) == (cell.tp, cell.origin):
            found.append(_scaled(cell, slo))
        else:
            found.append(msgspec.structs.replace(cell, invalid_reason="not the best split"))
    return found


def _scaled(cell: Cell, slo: Slo) -> Cell:
    context, output = cell.avg_context_tokens, cell.avg_output_tokens
    if context is None or cell.capacity is None:
        raise UsageError(f"{choice.name_of(cell)} tells no context")
    output = context * CHAT_OUTPUT_SHARE if output is None else output
    spec = EngineSpec(model=cell.model, gpu=cell.gpu, tp=cell.tp)
    lengths = Lengths(prompt_tokens=max(1.0, context - output), output_tokens=output)
    if cell.modelled is not None:
        spec = msgspec.convert(cell.modelled.engine, EngineSpec)
        lengths = msgspec.structs.replace(
            lengths, prompt_spread=cell.modelled.prompt_spread,
            output_spread=cell.modelled.output_spread,
        )  # fmt: skip
    half = msgspec.structs.replace(
        lengths, prompt_tokens=max(1.0, (context - output) / 2), output_tokens=output / 2
    )
    on = place(
        cell.model, cell.gpu, cell.tp, memory_gb=cell.gpu_memory_gb,
        interconnect=cell.interconnect, weights=spec.weights, kv_dtype=spec.kv_dtype,
    )  # fmt: skip
    named = msgspec.structs.replace(spec, gpu=cell.gpu, gpu_memory_gb=cell.gpu_memory_gb)
    tuning, harness = prior(spec.engine).tuning(on.gpu), harness_of(named, think_s=_THINK_S)
    (users, at), (more, there) = (
        capacity(
            Case(place=on, lengths=tokens, harness=harness), tuning, slo, seeds=_SEEDS,
            users_max=_USERS_MAX,
        )
        for tokens in (lengths, half)
    )  # fmt: skip
    if not 0 < users < _USERS_MAX or more >= _USERS_MAX:
        raise UsageError(f"the engine model gives {choice.name_of(cell)} no capacity to compare")
    rate = there.requests_per_s / at.requests_per_s

    def times(value: float | None, factor: float) -> float | None:
        return None if value is None else value * factor

    return msgspec.structs.replace(
        cell,
        capacity=msgspec.structs.replace(
            cell.capacity, users=max(1, round(cell.capacity.users * more / users)),
            users_low=None, users_high=None,
        ),
        avg_context_tokens=context / 2,
        avg_output_tokens=output / 2,
        requests_per_s=times(cell.requests_per_s, rate),
        output_tokens_per_s=times(cell.output_tokens_per_s, rate / 2),
        total_tokens_per_s=times(cell.total_tokens_per_s, rate / 2),
    )  # fmt: skip

"""A plan held against a simulation of its own fleet, by the engine model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from servecap import slo as slos
from servecap.cell import Cell
from servecap.engine.spec import EngineKind
from servecap.plan import choice, sizing
from servecap.plan.answer import GpuPlan, LeftOut, ModelPlan, Plan
from servecap.plan.demand import Profile
from servecap.plan.emit import Instance, chosen, instances
from servecap.plan.outlook import with_outlook
from servecap.plan.trial import Asked, Found, tried


def verify(
    plan: Plan,
    cells: Sequence[Cell],
    *,
    engine: EngineKind = "vllm",
    profile: Profile | None = None,
    workers: int | None = None,
    ray: str | None = None,
    whole: bool = False,
    watch: Callable[[str], None] = lambda _: None,
) -> Plan:
    """The plan with what a simulation of each model's first choice shows.

    Instances stand behind routers that go by least load: at the busiest time, after the loss of
    the spare nodes or a zone, at the busiest time with random routing, and at each level of
    *profile*, each once it is steady. Of each, as many routers are simulated as decide
    (`rehearsal.rehearse`). One instance alone at its cell's own users tells whether the engine
    model can be believed: where it is more than 30% from a measured cell, the check is "unknown",
    not "fail".

    A predicted cell that fails while at least 80% of its users hold is planned with those that
    hold, and the whole plan is made again. A choice that fails otherwise moves behind those that
    do not; the next is then simulated in its place.

    Args:
        ray: address of a Ray cluster that shares the work, instead of this machine's cores.
        whole: every router of the fleet is simulated, whatever is clear before.
        watch: told in words what is under way.
    Raises:
        UsageError: a model or GPU is not known to the engine model.
    """
    slo = slos.parse(plan.slo)
    asked = Asked(
        plan=plan, cells=cells, slo=slo, engine=engine, profile=profile, workers=workers,
        ray=ray, whole=whole, watch=watch,
    )  # fmt: skip
    while True:  # each turn has a cell with fewer users than before
        found: list[Found] = []
        models = [_model(asked, model, found) for model in asked.plan.models]
        if asked.plan.fleet is not None:
            found = _parts(asked)
        fewer = [(one.cell, one.fewer) for one in found if one.fewer is not None]
        if not fewer:
            break
        asked = _again(asked, fewer)
    checks = tuple(one.check for one in found)
    if asked.plan.fleet is not None:
        return msgspec.structs.replace(asked.plan, checks=checks)
    return msgspec.structs.replace(asked.plan, models=tuple(models), checks=checks)


def _again(asked: Asked, fewer: Sequence[tuple[Cell, Cell]]) -> Asked:
    """The question with those cells replaced, and the plan of them."""
    cells = list(asked.cells)
    for cell, instead in fewer:
        cells[cells.index(cell)] = instead
    before = asked.plan
    names = [model.model for model in before.models]
    plan = sizing.plan(
        cells, before.demand, before.supply, slo=asked.slo, models=names, scenario=before.scenario
    )
    if before.outlook is not None:
        plan = with_outlook(plan, cells, slo=asked.slo, models=names)
    return msgspec.structs.replace(asked, plan=plan, cells=cells)


def _parts(asked: Asked) -> list[Found]:
    """What is found of each kind of instance in a fleet, with users in proportion to its room."""
    plan = asked.plan
    ones = [one for part in chosen(plan) for one in instances(plan, part)]
    kinds: dict[tuple[str, str, int], list[Instance]] = {}
    for one in ones:
        kinds.setdefault((one.model, one.gpu, one.tp), []).append(one)
    found = []
    for (model, _, _), same in kinds.items():
        need = choice.need_of(plan.demand, model)
        room = sum(o.users * o.per_node * o.nodes for o in ones if o.model == model)
        found.append(tried(asked, same, same[0].users * min(1.0, need / room)))
    return found


def _model(asked: Asked, model: ModelPlan, found: list[Found]) -> ModelPlan:
    """The model with failing choices behind the others; what is found is added to *found*."""
    if not model.gpus or asked.plan.fleet is not None:
        return model
    if model.gpus[0].best.missing_nodes:
        if model.fleet is not None:
            alone = msgspec.structs.replace(asked.plan, models=(model,), fleet=model.fleet)
            found += _parts(msgspec.structs.replace(asked, plan=alone))
        return model
    gpus, failed = list(model.gpus), []
    while gpus and not gpus[0].best.missing_nodes:
        alone = msgspec.structs.replace(
            asked.plan, models=(msgspec.structs.replace(model, gpus=tuple(gpus)),)
        )
        (part,) = chosen(alone)
        (one,) = instances(alone, part)
        peak = gpus[0].best.users_at_peak
        found.append(tried(asked, [one], one.users if peak is None else peak))
        if found[-1].check.verdict != "fail" or found[-1].fewer is not None:
            break
        failed.append(gpus.pop(0))
    return _without(model, gpus, failed) if failed else model


def _without(model: ModelPlan, gpus: Sequence[GpuPlan], failed: Sequence[GpuPlan]) -> ModelPlan:
    """The model with the failed choices last; with none where every choice failed."""
    why = tuple(f"{failed[-1].gpu} fails its own simulation" for _ in gpus[:1])
    if gpus:
        return msgspec.structs.replace(model, gpus=(*gpus, *failed), fleet=None, why=why)
    out = [
        LeftOut(f"{model.model} on {gpu.gpu}, {gpu.best.name}", "fails its own simulation")
        for gpu in failed
    ]
    left_out = (*model.left_out, *out)
    return msgspec.structs.replace(model, gpus=(), fleet=None, left_out=left_out)

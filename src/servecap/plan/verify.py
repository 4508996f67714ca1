"""A plan held against a simulation of its own fleet, by the engine model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from servecap import slo as slos
from servecap.cell import Cell
from servecap.engine.fleet import Ended
from servecap.engine.spec import EngineKind, EngineSpec
from servecap.errors import UsageError
from servecap.plan import choice
from servecap.plan.answer import Check, LeftOut, ModelPlan, Plan, Supply
from servecap.plan.demand import Profile
from servecap.plan.emit import Instance, chosen, instances
from servecap.plan.rehearsal import Rehearsed, described, levels, rehearse
from servecap.plan.router import Traffic
from servecap.predict.harness import CHAT_OUTPUT_SHARE, Lengths
from servecap.slo import Limit, Slo

BELIEVED_SHARE = 0.3  # how far the model may be from a measured cell and still be asked


def verify(
    plan: Plan,
    cells: Sequence[Cell],
    *,
    engine: EngineKind = "vllm",
    profile: Profile | None = None,
    workers: int | None = None,
) -> Plan:
    """The plan with what a simulation of each model's first choice shows.

    Every instance of the fleet is simulated, with all users, behind routers that go by least load:
    at the busiest time, after the loss of the spare nodes or a zone, at the busiest time with
    random routing, and at each level of *profile*, each once it is steady. Where that takes too
    many requests (or nothing is compiled), equal instances stand for the others, and the check
    says so. One instance alone at its cell's own users tells whether the engine model can be
    believed: where it is more than 30% from a measured cell, the check is "unknown", not "fail".

    A choice that fails moves behind those that do not; the next is then simulated in its place.

    Raises:
        UsageError: a model or GPU is not known to the engine model.
    """
    slo = slos.parse(plan.slo)
    asked = _Asked(plan, cells, slo, engine, profile, workers)
    if plan.fleet is not None:
        return msgspec.structs.replace(plan, checks=tuple(_parts(asked)))
    models, checks = [], []
    for model in plan.models:
        after, found = _model(asked, model)
        models.append(after)
        checks += found
    return msgspec.structs.replace(plan, models=tuple(models), checks=tuple(checks))


class _Asked(msgspec.Struct, frozen=True):
    """What a verification is about."""

    plan: Plan
    cells: Sequence[Cell]
    slo: Slo
    engine: EngineKind
    profile: Profile | None
    workers: int | None


def _parts(asked: _Asked) -> list[Check]:
    """A check of each kind of instance in a fleet, with users in proportion to its room."""
    plan = asked.plan
    ones = [one for part in chosen(plan) for one in instances(plan, part)]
    kinds: dict[tuple[str, str, int], list[Instance]] = {}
    for one in ones:
        kinds.setdefault((one.model, one.gpu, one.tp), []).append(one)
    found = []
    for (model, _, _), same in kinds.items():
        need = choice.need_of(plan.demand, model)
        room = sum(o.users * o.per_node * o.nodes for o in ones if o.model == model)
        found.append(_check(asked, same, same[0].users * min(1.0, need / room)))
    return found


def _model(asked: _Asked, model: ModelPlan) -> tuple[ModelPlan, list[Check]]:
    """The model with failing choices behind the others, and the checks of those simulated."""
    checks: list[Check] = []
    if not model.gpus:
        return model, checks
    if model.gpus[0].best.missing_nodes:
        alone = msgspec.structs.replace(asked.plan, models=(model,), fleet=model.fleet)
        if model.fleet is None:
            return model, checks
        return model, _parts(_Asked(alone, *msgspec.structs.astuple(asked)[1:]))
    gpus, failed = list(model.gpus), []
    while gpus and not gpus[0].best.missing_nodes:
        alone = msgspec.structs.replace(
            asked.plan, models=(msgspec.structs.replace(model, gpus=tuple(gpus)),)
        )
        (part,) = chosen(alone)
        (one,) = instances(alone, part)
        peak = gpus[0].best.users_at_peak
        check = _check(asked, [one], one.users if peak is None else peak)
        checks.append(check)
        if check.verdict != "fail":
            break
        failed.append(gpus.pop(0))
    if not failed:
        return model, checks
    why = tuple(f"{failed[-1].gpu} fails its own simulation" for _ in gpus[:1])
    if gpus:
        after = msgspec.structs.replace(model, gpus=(*gpus, *failed), fleet=None, why=why)
        return after, checks
    out = [
        LeftOut(f"{model.model} on {gpu.gpu}, {gpu.best.name}", "fails its own simulation")
        for gpu in failed
    ]
    left_out = (*model.left_out, *out)
    return msgspec.structs.replace(model, gpus=(), fleet=None, left_out=left_out), checks


def _check(asked: _Asked, same: Sequence[Instance], users: float) -> Check:
    """The verdict on the instances of one kind, each with so many users at the busiest time."""
    one, cell, supply = same[0], _cell(asked, same[0]), asked.plan.supply
    total = sum(o.per_node * o.nodes for o in same)
    base = _case(asked, cell, total, math.ceil(users * total - 1e-9))
    cases = [base, msgspec.structs.replace(base, instances=1, users=_capacity(cell))]
    left = sum(o.per_node * supply.left_of(o.nodes) for o in same)
    if 0 < left < total:
        cases.append(msgspec.structs.replace(base, instances=left))
    cases.append(msgspec.structs.replace(base, routing="random"))
    steps = [n for n in _steps(asked, base.users) if n != base.users]
    cases += [msgspec.structs.replace(base, users=n) for n in steps]
    played = rehearse(cases, asked.workers)
    peak, itself, random = played[0], played[1], played[len(cases) - len(steps) - 1]
    broken = _broken(peak.seen, asked.slo)
    told = [_told(f"at {base.users / total:.4g} users an instance", peak)]
    if 0 < left < total:
        gone = (
            f"{total - left:,} of {total:,} instances"
            if len(same) > 1
            else _nodes_gone(one, supply)
        )
        told.append(_told(f"with {gone} gone", played[2]))
        broken += [f"{x} with nodes gone" for x in _broken(played[2].seen, asked.slo)]
    for day in played[len(cases) - len(steps) :]:
        at = f"at {day.traffic.users / total:.4g} users"
        broken += [f"{x} {at}" for x in _broken(day.seen, asked.slo)]
    if steps:
        told.append(
            f"{len(steps)} more levels of the day, {min(steps) / total:.4g} to "
            f"{max(steps) / total:.4g} users an instance"
        )
    told.append(_told("routed at random instead of by least load", random))
    believed = _believed(cell, itself.seen)
    verdict: Literal["pass", "fail", "unknown"] = "fail" if broken else "pass"
    if believed is not None:
        told.append(believed)
        verdict = "unknown"
    return Check(
        choice=f"{one.model} on {one.gpu}, TP{one.tp}",
        verdict=verdict,
        simulated=described([peak, *played[2:]], asked.engine),
        told=tuple(told),
        broken=tuple(broken),
        requests=sum(one_case.seen.sent for one_case in played),
    )


def _nodes_gone(one: Instance, supply: Supply) -> str:
    return f"{one.nodes - supply.left_of(one.nodes):,} of {one.nodes:,} nodes"


def _cell(asked: _Asked, one: Instance) -> Cell:
    found = [
        cell for cell in asked.cells
        if cell.model == one.model and choice.gpu_label(cell) == one.gpu and cell.tp == one.tp
        and cell.scenario == asked.plan.scenario
    ]  # fmt: skip
    return next((cell for cell in found if cell.origin == "measured"), found[0])


def _capacity(cell: Cell) -> int:
    assert cell.capacity is not None  # the cell takes part in the plan
    return cell.capacity.users


def _case(asked: _Asked, cell: Cell, count: int, users: int) -> Traffic:
    context, output = cell.avg_context_tokens, cell.avg_output_tokens
    if context is None:
        raise UsageError(
            f"{choice.name_of(cell)}: avg_context_tokens is not known, so it cannot be simulated"
        )
    output = context * CHAT_OUTPUT_SHARE if output is None else output
    think_s = asked.plan.demand.think_mean_s
    limits = {x.metric: x.at_most_s for x in asked.slo.limits}
    ttft_s = limits.get("ttft", 3.0) if cell.ttft_s is None else cell.ttft_s
    tpot_s = limits.get("tpot", 0.1) if cell.tpot_s is None else cell.tpot_s
    cycle_s = ttft_s + output * tpot_s + think_s  # at capacity; at less load it is shorter
    spec = EngineSpec(
        model=cell.model, gpu=cell.gpu, tp=cell.tp, engine=asked.engine,
        gpu_memory_gb=cell.gpu_memory_gb, max_running=max(256, _capacity(cell)),
    )  # fmt: skip
    return Traffic(
        spec=spec,
        instances=count,
        users=users,
        lengths=Lengths(prompt_tokens=max(1.0, context - output), output_tokens=output),
        think_s=(think_s / 2, think_s * 1.5),
        cycle_s=cycle_s,
    )


def _steps(asked: _Asked, users: int) -> list[int]:
    """All users at each different level of the day."""
    return [] if asked.profile is None else levels(asked.profile, users)


def _believed(cell: Cell, itself: Ended) -> str | None:
    """Why the engine model cannot be asked about this cell; None: it agrees, or nobody measured."""
    if cell.origin == "predicted":
        return None
    for metric, measured in (("ttft", cell.ttft_s), ("tpot", cell.tpot_s)):
        mean = itself.mean(metric)
        if measured is None or mean is None:
            continue
        if abs(mean / measured - 1) > BELIEVED_SHARE:
            return (
                f"the engine model gives a mean {metric.upper()} of {_ms(mean)} where "
                f"{_ms(measured)} was measured, at {_capacity(cell)} users on one instance: it "
                "does not stand for this server, so the measured cell is what counts"
            )
    return None


def figure(seen: Ended, limit: Limit) -> float | None:
    """The statistic that the limit is about; percentiles by nearest rank."""
    if limit.quantile is None:
        return seen.mean(limit.metric)
    return seen.quantile(limit.metric, limit.quantile)


def _broken(seen: Ended, slo: Slo) -> list[str]:
    found = []
    requests = seen.answered + seen.failed
    for limit in slo.limits:
        value = figure(seen, limit)
        if value is None:
            found.append(f"{limit} cannot be told by the simulation")
        elif value > limit.at_most_s:
            found.append(f"{limit.metric}.{limit.statistic} {_ms(value)} breaks {limit}")
    if requests and seen.failed / requests > slo.error_share_max:
        found.append(f"{seen.failed / requests:.1%} of the requests fail")
    return found


def _told(when: str, of: Rehearsed) -> str:
    means = ", ".join(
        f"mean {metric.upper()} {_ms(mean)}"
        for metric in ("ttft", "tpot")
        if (mean := of.seen.mean(metric)) is not None
    )
    return (
        f"{when}: {means or 'nothing was answered'}, {of.requests_per_s:.3g} requests/s; an "
        f"instance has {of.in_flight:.3g} requests at once, {of.seen.peak} at most"
    )


def _ms(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"

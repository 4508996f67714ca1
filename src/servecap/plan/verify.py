"""A plan held against a simulation of its own fleet, by the engine model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Literal

import msgspec

from servecap import slo as slos
from servecap.cell import Cell
from servecap.engine.spec import EngineKind, EngineSpec, build
from servecap.errors import UsageError
from servecap.plan import choice
from servecap.plan.answer import Check, LeftOut, ModelPlan, Plan
from servecap.plan.demand import Profile
from servecap.plan.emit import Instance, chosen, instances
from servecap.plan.router import Lengths, Routing, Seen, Traffic, play
from servecap.slo import Limit, Slo

GROUP = 4  # instances that are simulated together, behind one router
BELIEVED_SHARE = 0.3  # how far the model may be from a measured cell and still be asked
_OUTPUT_SHARE = 0.43  # of prompt + answer in chat, where a cell tells only their sum
_PARALLEL_FROM = 3


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation: a few equal instances and the users in front of them."""

    spec: EngineSpec
    count: int
    users: int
    lengths: Lengths
    think_s: tuple[float, float]
    cycle_s: float
    routing: Routing = "least-load"


def verify(
    plan: Plan,
    cells: Sequence[Cell],
    *,
    engine: EngineKind = "vllm",
    profile: Profile | None = None,
    workers: int | None = None,
) -> Plan:
    """The plan with what a simulation of each model's first choice shows.

    A group of up to four of the equal instances stands for all of them: a router that goes by
    least load keeps groups alike. It is simulated at the busiest time, at the same with random
    routing, after the loss of the spare nodes or a zone, and at each level of *profile*. One
    instance alone at its cell's own users tells whether the engine model can be believed: where
    it is more than 30% from a measured cell, the check is "unknown" and not "fail".

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
    """A check of each kind of instance in a fleet."""
    plan = asked.plan
    ones = [one for part in chosen(plan) for one in instances(plan, part)]
    kinds: dict[tuple[str, str, int], list[Instance]] = {}
    for one in ones:
        kinds.setdefault((one.model, one.gpu, one.tp), []).append(one)
    found = []
    for (model, _, _), same in kinds.items():
        need = choice.need_of(plan.demand, model)
        room = sum(o.users * o.per_node * o.nodes for o in ones if o.model == model)
        found.append(_check(asked, same[0], same[0].users * min(1.0, need / room)))
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
        check = _check(asked, one, one.users if peak is None else peak)
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


def _check(asked: _Asked, one: Instance, users: float) -> Check:
    cell = _cell(asked, one)
    total = one.per_node * one.nodes
    count = min(GROUP, total)
    base = _case(asked, cell, count, math.ceil(users * count - 1e-9))
    alone = msgspec.structs.replace(base, count=1, users=_capacity(cell))
    cases = [alone, base, msgspec.structs.replace(base, routing="random")]
    left = _left(asked.plan, one.nodes)
    after = None
    if 0 < left < one.nodes:
        after = len(cases)
        more = math.ceil(users * count * one.nodes / left - 1e-9)
        cases.append(msgspec.structs.replace(base, users=more))
    steps = _steps(asked, base.users)
    seen = _played(
        [*cases, *(msgspec.structs.replace(base, users=n) for n in steps)], asked.workers
    )
    itself, peak, random, *_ = seen
    lost = None if after is None else seen[after]
    day = seen[len(cases) :]
    believed = _believed(cell, itself)
    told = [_told(f"at {base.users / count:.4g} users an instance", peak)]
    broken = _broken(peak, asked.slo)
    if lost is not None:
        told.append(_told(f"with {one.nodes - left} of {one.nodes} nodes gone", lost))
        broken += [f"{x} with nodes gone" for x in _broken(lost, asked.slo)]
    for users_then, one_seen in zip(steps, day, strict=True):
        broken += [f"{x} at {users_then / count:.4g} users" for x in _broken(one_seen, asked.slo)]
    if steps:
        least, most = min(steps) / count, max(steps) / count
        told.append(f"{len(steps)} levels of the day, {least:.4g} to {most:.4g} users an instance")
    told.append(_told("routed at random instead of by least load", random))
    verdict: Literal["pass", "fail", "unknown"] = "fail" if broken else "pass"
    if believed is not None:
        told.append(believed)
        verdict = "unknown"
    return Check(
        choice=f"{one.model} on {one.gpu}, TP{one.tp}",
        verdict=verdict,
        simulated=f"{count} of {total} equal instances, engine model {asked.engine}",
        told=tuple(told),
        broken=tuple(broken),
        requests=sum(s.requests for s in seen),
    )


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


def _case(asked: _Asked, cell: Cell, count: int, users: int) -> Case:
    context, output = cell.avg_context_tokens, cell.avg_output_tokens
    if context is None:
        raise UsageError(
            f"{choice.name_of(cell)}: avg_context_tokens is not known, so it cannot be simulated"
        )
    output = context * _OUTPUT_SHARE if output is None else output
    think_s = asked.plan.demand.think_mean_s
    limits = {x.metric: x.at_most_s for x in asked.slo.limits}
    cycle_s = limits.get("ttft", 3.0) + output * limits.get("tpot", 0.1) + think_s
    spec = EngineSpec(
        model=cell.model, gpu=cell.gpu, tp=cell.tp, engine=asked.engine,
        gpu_memory_gb=cell.gpu_memory_gb, max_running=max(256, _capacity(cell)),
    )  # fmt: skip
    return Case(
        spec=spec,
        count=count,
        users=users,
        lengths=Lengths(prompt_tokens=max(1.0, context - output), output_tokens=output),
        think_s=(think_s / 2, think_s * 1.5),
        cycle_s=cycle_s,
    )


def _left(plan: Plan, nodes: int) -> int:
    """Nodes that are left after what the plan is to survive."""
    if plan.supply.zones > 1:
        return nodes - -(-nodes // plan.supply.zones)
    return nodes - plan.supply.spare_nodes


def _steps(asked: _Asked, users: int) -> list[int]:
    """Users of the group at each different level of the day, but for the busiest."""
    if asked.profile is None:
        return []
    levels = {max(1, round(users * v / asked.profile.peak)) for v in asked.profile.values}
    return sorted(levels - {users})


def _played(cases: Sequence[Case], workers: int | None) -> list[Seen]:
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(cases) < _PARALLEL_FROM:
        return [run_case(case) for case in cases]
    build(cases[0].spec)  # a name that is not known is told here, not in a worker
    with ProcessPoolExecutor(max_workers=min(workers, len(cases))) as pool:
        return list(pool.map(run_case, cases))


def run_case(case: Case) -> Seen:
    """What the users of the case see."""
    traffic = Traffic(
        users=case.users, lengths=case.lengths, think_s=case.think_s, cycle_s=case.cycle_s,
        routing=case.routing,
    )  # fmt: skip
    return play([build(case.spec) for _ in range(case.count)], traffic)


def _believed(cell: Cell, itself: Seen) -> str | None:
    """Why the engine model cannot be asked about this cell; None: it agrees, or nobody measured."""
    if cell.origin == "predicted":
        return None
    for metric, measured in (("ttft", cell.ttft_s), ("tpot", cell.tpot_s)):
        values = itself.values(metric)
        if measured is None or not values:
            continue
        mean = math.fsum(values) / len(values)
        if abs(mean / measured - 1) > BELIEVED_SHARE:
            return (
                f"the engine model gives a mean {metric.upper()} of {_ms(mean)} where "
                f"{_ms(measured)} was measured, at {_capacity(cell)} users on one instance: it "
                "does not stand for this server, so the measured cell is what counts"
            )
    return None


def figure(seen: Seen, limit: Limit) -> float | None:
    """The statistic that the limit is about; percentiles by nearest rank."""
    values = seen.values(limit.metric)
    if not values:
        return None
    if limit.quantile is None:
        return math.fsum(values) / len(values)
    ranked = sorted(values) + [math.inf] * seen.failed
    return ranked[max(0, math.ceil(limit.quantile * len(ranked)) - 1)]


def _broken(seen: Seen, slo: Slo) -> list[str]:
    found = []
    for limit in slo.limits:
        value = figure(seen, limit)
        if value is None:
            found.append(f"{limit} cannot be told by the simulation")
        elif value > limit.at_most_s:
            found.append(f"{limit.metric}.{limit.statistic} {_ms(value)} breaks {limit}")
    if seen.requests and seen.failed / seen.requests > slo.error_share_max:
        found.append(f"{seen.failed / seen.requests:.1%} of the requests fail")
    return found


def _told(when: str, seen: Seen) -> str:
    means = ", ".join(
        f"mean {metric.upper()} {_ms(math.fsum(values) / len(values))}"
        for metric in ("ttft", "tpot")
        if (values := seen.values(metric))
    )
    return (
        f"{when}: {means or 'nothing was answered'}, {seen.requests / seen.window_s:.3g} requests/s"
    )


def _ms(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"

"""One kind of instance on trial: what a simulation of the fleet's share of them shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from servecap.cell import Cell
from servecap.engine.fleet import Ended
from servecap.engine.spec import EngineKind, EngineSpec, usual_running
from servecap.errors import UsageError
from servecap.plan import choice
from servecap.plan.answer import Check, Plan, Supply
from servecap.plan.demand import Profile
from servecap.plan.emit import Instance
from servecap.plan.rehearsal import Rehearsed, described, figure, levels, rehearse
from servecap.plan.router import Traffic
from servecap.predict.harness import CHAT_OUTPUT_SHARE, Lengths
from servecap.predict.place import place
from servecap.slo import Limit, Slo

BELIEVED_SHARE = 0.3  # how far the model may be from a measured cell and still be asked
FEWER = (0.98, 0.96, 0.93, 0.9, 0.85, 0.8)  # of a predicted cell's users, where all are too many


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification is about. `watch` is told in words what is under way."""

    plan: Plan
    cells: Sequence[Cell]
    slo: Slo
    engine: EngineKind
    profile: Profile | None
    workers: int | None
    ray: str | None
    whole: bool
    watch: Callable[[str], None]


class Found(msgspec.Struct, frozen=True):
    """The verdict, and the cell with as many users as hold, where its own are too many."""

    check: Check
    cell: Cell
    fewer: Cell | None = None


def tried(asked: Asked, same: Sequence[Instance], users: float) -> Found:
    """What becomes of the instances of one kind, each with *users* at the busiest time.

    First the busiest time and the loss of the reserve; the rest only of what holds there.
    """
    cell, supply = _cell(asked, same[0]), asked.plan.supply
    total = sum(o.per_node * o.nodes for o in same)
    base = _case(asked, cell, total, math.ceil(users * total - 1e-9))
    itself = msgspec.structs.replace(base, instances=1, users=_capacity(cell))
    cases = [base, itself]
    left = sum(o.per_node * supply.left_of(o.nodes) for o in same)
    if 0 < left < total:
        cases.append(msgspec.structs.replace(base, instances=left))
    played = _rehearsed(asked, same[0], "the busiest time", cases)
    believed = _believed(cell, played[1].seen)
    hard = [played[0], *played[2:]]
    gone = _gone(same, left, total, supply)
    told = [_told(f"at {base.users / total:.4g} users an instance", hard[0], asked.slo)]
    told += [_told(f"with {gone} gone", one, asked.slo) for one in hard[1:]]
    broken = _broken(hard[0], asked.slo)
    broken += [f"{x} with nodes gone" for one in hard[1:] for x in _broken(one, asked.slo)]
    fewer = None
    if broken and believed is None and cell.origin == "predicted":
        fewer = _fewer(asked, same[0], cell, hard[-1], broken)
    if not broken:
        rest, more = _rest(asked, same[0], base)
        hard += rest
        told += more
        broken += [
            f"{x} at {one.traffic.users / total:.4g} users"
            for one in rest[1:] for x in _broken(one, asked.slo)
        ]  # fmt: skip
    verdict: Literal["pass", "fail", "unknown"] = "fail" if broken else "pass"
    if believed is not None:
        told.append(believed)
        verdict = "unknown"
    check = Check(
        choice=f"{cell.model} on {same[0].gpu}, TP{cell.tp}",
        verdict=verdict,
        simulated=described(hard, hard[0].traffic.spec.engine),
        told=tuple(told),
        broken=tuple(broken),
        requests=sum(one.seen.sent for one in [*hard, played[1]]),
    )
    return Found(check, cell, fewer)


def _rest(asked: Asked, one: Instance, base: Traffic) -> tuple[list[Rehearsed], list[str]]:
    """Random routing, then each level of the day but the busiest; and what is told of them."""
    steps = [] if asked.profile is None else levels(asked.profile, base.users)
    steps = [users for users in steps if users != base.users]
    cases = [msgspec.structs.replace(base, routing="random")]
    cases += [msgspec.structs.replace(base, users=users) for users in steps]
    played = _rehearsed(asked, one, "routing and the day", cases)
    told = [_told("routed at random instead of by least load", played[0], asked.slo)]
    if steps:
        per = base.instances
        told.insert(
            0,
            f"{len(steps)} more levels of the day, {min(steps) / per:.4g} to "
            f"{max(steps) / per:.4g} users an instance",
        )
    return played, told


def _rehearsed(
    asked: Asked, one: Instance, what: str, cases: Sequence[Traffic]
) -> list[Rehearsed]:  # fmt: skip
    name = f"simulating {one.model} on {one.gpu}, TP{one.tp}: {what}"
    asked.watch(
        f"{name}: {cases[0].users:,} users on {cases[0].instances:,} instances, "
        f"{len(cases)} simulations"
    )

    def watch(done: int, total: int) -> None:
        if done < total and done * 4 // total > (done - 1) * 4 // total:
            asked.watch(f"{name}: {done} of {total} runs of a router are done")

    return rehearse(
        cases, asked.slo, workers=asked.workers, ray=asked.ray, whole=asked.whole, watch=watch
    )


def _fewer(
    asked: Asked, one: Instance, cell: Cell, hardest: Rehearsed, broken: Sequence[str]
) -> Cell | None:
    """The cell with the most users that hold in the fleet at the hardest time; None: too few do."""
    per = hardest.traffic.users / hardest.traffic.instances
    *cases, least = [
        msgspec.structs.replace(hardest.traffic, users=math.floor(hardest.traffic.users * share))
        for share in FEWER
    ]
    (last,) = _rehearsed(asked, one, "whether fewer users hold", [least])
    if _broken(last, asked.slo):
        return None
    for found in (*_rehearsed(asked, one, "how many users hold", cases), last):
        if _broken(found, asked.slo):
            continue
        each = found.requests_per_s / found.traffic.instances
        users = math.floor(found.traffic.users / found.traffic.instances)
        note = (
            f"at {per:.4g} users an instance its own simulation shows {'; '.join(broken)}: planned "
            f"with {users}, which hold; latencies and rates are of that simulation"
        )
        return _with_users(asked, cell, users, each, found, note)
    return None


def _with_users(
    asked: Asked, cell: Cell, users: int, rate: float, found: Rehearsed, note: str
) -> Cell | None:
    assert cell.capacity is not None
    # What the plan gives an instance is the cell's users times the share that may be used.
    most = min(_capacity(cell) - 1, math.floor(users / asked.plan.supply.used_share_max + 1e-9))
    if most < 1:
        return None
    low, output, context = cell.capacity.users_low, cell.avg_output_tokens, cell.avg_context_tokens
    capacity = msgspec.structs.replace(
        cell.capacity, users=most, users_low=None if low is None else min(low, most)
    )
    # The rate belongs to `users`; at `most` it would be higher in that proportion at best.
    return msgspec.structs.replace(
        cell,
        capacity=capacity,
        ttft_s=found.seen.mean("ttft"),
        tpot_s=found.seen.mean("tpot"),
        requests_per_s=rate,
        output_tokens_per_s=None if output is None else rate * output,
        total_tokens_per_s=None if context is None else rate * context,
        notes=(note, *cell.notes),
    )


def _gone(same: Sequence[Instance], left: int, total: int, supply: Supply) -> str:
    if len(same) > 1:
        return f"{total - left:,} of {total:,} instances"
    nodes = same[0].nodes
    return f"{nodes - supply.left_of(nodes):,} of {nodes:,} nodes"


def _cell(asked: Asked, one: Instance) -> Cell:
    found = [
        cell for cell in asked.cells
        if cell.model == one.model and choice.gpu_label(cell) == one.gpu and cell.tp == one.tp
        and cell.scenario == asked.plan.scenario
    ]  # fmt: skip
    return next((cell for cell in found if cell.origin == "measured"), found[0])


def _capacity(cell: Cell) -> int:
    assert cell.capacity is not None  # the cell takes part in the plan
    return cell.capacity.users


def _case(asked: Asked, cell: Cell, count: int, users: int) -> Traffic:
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
    lengths = Lengths(prompt_tokens=max(1.0, context - output), output_tokens=output)
    if cell.modelled is not None:
        lengths = msgspec.structs.replace(
            lengths, prompt_spread=cell.modelled.prompt_spread,
            output_spread=cell.modelled.output_spread,
        )  # fmt: skip
    return Traffic(
        spec=_spec(asked, cell),
        instances=count,
        users=users,
        lengths=lengths,
        think_s=(think_s / 2, think_s * 1.5),
        cycle_s=ttft_s + output * tpot_s + think_s,  # at capacity; at less load it is shorter
    )


def _spec(asked: Asked, cell: Cell) -> EngineSpec:
    """The engine that the cell was predicted on; else the one asked for, with its defaults.

    Where a server was measured with more users than an engine runs by default, it runs them all.
    """
    on = place(
        cell.model, cell.gpu, cell.tp, memory_gb=cell.gpu_memory_gb, interconnect=cell.interconnect
    ).gpu
    if cell.modelled is not None:
        known = msgspec.convert(cell.modelled.engine, EngineSpec)
        if known.engine == asked.engine:
            return msgspec.structs.replace(known, gpu=on.name, gpu_memory_gb=None)
    default = EngineSpec(
        model=cell.model, gpu=on.name, tp=cell.tp, engine=asked.engine
    )  # fmt: skip
    if cell.origin == "predicted":
        return default
    most = max(usual_running(asked.engine, on), _capacity(cell))
    return msgspec.structs.replace(default, max_running=most)


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


def _broken(found: Rehearsed, slo: Slo) -> list[str]:
    seen, broken = found.seen, []
    requests = seen.answered + seen.failed
    for limit in slo.limits:
        value = figure(seen, limit)
        if value is None:
            broken.append(f"{limit} cannot be told by the simulation")
        elif value > limit.at_most_s:
            broken.append(f"{limit.metric}.{limit.statistic} {_ms(value)} breaks {limit}")
    if requests and seen.failed / requests > slo.error_share_max:
        broken.append(f"{seen.failed / requests:.1%} of the requests fail")
    return broken


def _told(when: str, of: Rehearsed, slo: Slo) -> str:
    means = ", ".join(
        f"mean {metric.upper()} {_ms(mean)}{_off(of, metric)}"
        for metric in ("ttft", "tpot")
        if (mean := of.seen.mean(metric)) is not None
    )
    open_ = [str(x) for x in slo.limits if not of.decided(x)]
    close = f"; too close to {' and '.join(open_)} to be sure" if open_ else ""
    return (
        f"{when}: {means or 'nothing was answered'}, {of.requests_per_s:.3g} requests/s; an "
        f"instance has {of.in_flight:.3g} requests at once, {of.seen.peak} at most{close}"
    )


def _off(of: Rehearsed, metric: str) -> str:
    """How far the mean over all routers may be off, 95% of the time."""
    half = of.half_width(Limit(metric, "mean", 1.0))
    return "" if half is None else f" +- {_ms(half)}"


def _ms(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"

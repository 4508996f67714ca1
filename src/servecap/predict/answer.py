"""A predicted cell: figures with intervals, what binds, and how far the knowledge reaches."""

from __future__ import annotations

import math

import msgspec

from servecap.cell import Cell
from servecap.engine.cost import StepWork
from servecap.engine.gpu_file import Fabric
from servecap.engine.scheduler import PrefillFirst
from servecap.errors import UsageError
from servecap.predict import intervals, shares, untold
from servecap.predict.figures import SEEDS, USERS_MAX, Case, Figures
from servecap.predict.intervals import in_flight, kind_of, reaches
from servecap.predict.place import Tuning
from servecap.predict.profile import Kind, Profile, Spread
from servecap.predict.uncertainty import SHARE
from servecap.slo import Slo

_FULL = 0.85  # of the room for KV, or of the places: from here on newcomers wait for them


class Range(msgspec.Struct, frozen=True):
    """A figure, and between what it lies in `SHARE` of the cases."""

    value: float
    low: float
    high: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a load test of the place would show; seconds, per second.

    Latencies and rates are those at `users`: given, or else at the predicted capacity.
    `impossible`: why there are no figures at all.
    """

    model: str
    gpu: str
    tp: int
    scenario: str
    kind: Kind
    fabric: Fabric | None = None  # that connects the GPUs
    context_tokens: int | None = None  # mean of prompt + answer
    users: int | None = None
    max_users: Range | None = None
    ttft_s: Range | None = None
    tpot_s: Range | None = None
    requests_per_s: Range | None = None
    output_tokens_per_s: Range | None = None
    total_tokens_per_s: Range | None = None
    error_rate: float | None = None  # requests that are too long, as a share
    interval_share: float = SHARE
    kv_tokens: int | None = None
    binds: str | None = None
    limited_by: str | None = None  # the limit that is nearest to breaking, as the SLO writes it
    step_shares: dict[str, float] = msgspec.field(default_factory=dict)  # of a decode step
    prefill_compute_share: float | None = None  # of a mean prompt's own step; the rest is reading
    time_shares: dict[str, float] = msgspec.field(default_factory=dict)  # of all, at that load
    notes: tuple[str, ...] = ()
    impossible: str | None = None


def answer(
    case: Case,
    profile: Profile,
    slo: Slo,
    *,
    scenario: str = "",
    users: int | None = None,
    seeds: int = SEEDS,
    users_max: int = USERS_MAX,
) -> Answer:
    """The cell as *profile* has it; a model that does not fit is an answer, too.

    Args:
        users: the load that latencies and rates are of; None: the capacity.
        users_max: no more are tried.
    """
    blank = _blank(case, profile, scenario)
    case = untold.as_fitted(case, profile)
    tuning = profile.tuning(case.place.gpu)
    try:
        room = case.room(tuning)
    except UsageError as error:
        return msgspec.structs.replace(blank, impossible=str(error))
    of_most = case
    most, shown = untold.capacity(case, profile, slo, seeds=seeds, users_max=users_max)
    if most == case.harness.queue:  # as many as it can tell: how many does the place carry?
        steady = _steady(case)
        more, there = untold.capacity(steady, profile, slo, seeds=seeds, users_max=users_max)
        if more > most:
            of_most, most, shown = steady, more, there
    if users is not None:
        shown = untold.figures(case, profile, users, slo=slo, seeds=seeds)
    if shown.refused_share >= 1:
        return msgspec.structs.replace(blank, impossible=_too_long(case, room))
    step, limit, binds = _binds(case, tuning, shown, slo, room)
    kind = kind_of(case, profile, shown)
    spreads = intervals.spreads(case, of_most, profile, kind, slo, shown, most, users_max)
    return msgspec.structs.replace(
        _with_ranges(blank, most, shown, spreads),
        kind=kind,
        users=shown.users if most or users else 0,
        kv_tokens=room,
        binds=binds,
        limited_by=limit,
        step_shares=step,
        prefill_compute_share=shares.of_prompt_computing(case, tuning),
        time_shares=shares.of_time(case, tuning, shown),
        notes=(*_of_queue(case, most), *_notes(case, profile, most, shown, users_max)),
    )


def _steady(case: Case) -> Case:
    """The same load without an end, instead of the classic run's queue."""
    harness = msgspec.structs.replace(case.harness, queue=None, untold=False)
    return msgspec.structs.replace(case, harness=harness)


def without_figures(cell: Cell, why: str) -> Answer:
    """The answer for a row of a table that cannot be modelled."""
    return Answer(
        model=cell.model,
        gpu=cell.gpu,
        tp=cell.tp,
        scenario=cell.scenario,
        kind="spec-only",
        impossible=why,
    )


def _blank(case: Case, profile: Profile, scenario: str) -> Answer:
    """What is known of the cell before anything is computed."""
    place, lengths = case.place, case.lengths
    return Answer(
        model=place.model.name,
        gpu=place.gpu.name,
        tp=place.tp,
        scenario=scenario,
        fabric=place.gpu.fabric,
        context_tokens=round(lengths.prompt_tokens + lengths.output_tokens),
        kind=profile.kind(place.gpu),
    )


def _with_ranges(blank: Answer, most: int, shown: Figures, spreads: dict[str, Spread]) -> Answer:
    """The cell's figures with their intervals; tokens are as unsure as the requests they are of."""

    def ranged(figure: str, value: float) -> Range | None:
        if not math.isfinite(value):
            return None
        spread = spreads[figure]
        return Range(value, value * math.exp(spread.low), value * math.exp(spread.high))

    return msgspec.structs.replace(
        blank,
        max_users=ranged("max_users", float(most)),
        ttft_s=ranged("ttft_s", shown.ttft_s),
        tpot_s=ranged("tpot_s", shown.tpot_s),
        requests_per_s=ranged("requests_per_s", shown.requests_per_s),
        output_tokens_per_s=ranged("requests_per_s", shown.output_tokens_per_s),
        total_tokens_per_s=ranged("requests_per_s", shown.total_tokens_per_s),
        error_rate=shown.refused_share,
    )


def _too_long(case: Case, room: int) -> str:
    lengths, model = case.lengths, case.place.model
    tokens = f"{lengths.prompt_tokens:.0f} + {lengths.output_tokens:.0f} tokens"
    most = f"{model.name} takes {model.max_context_tokens}, and {room} fit into memory"
    return f"all requests are refused: {tokens} each, but {most}"


def _binds(
    case: Case, tuning: Tuning, figures: Figures, slo: Slo, room: int
) -> tuple[dict[str, float], str, str]:
    """Shares of a decode step at that load, the tightest limit, and that with what is behind it."""
    lengths = case.lengths
    places = case.harness.policy.max_running
    sequences = shares.in_step(case, figures)
    step = shares.of_decode_step(case, tuning, sequences)
    step_s = sum(shares.decode_step_s(case, tuning, sequences).values())
    ratio = [v / x.at_most_s for v, x in zip(figures.held, slo.limits, strict=True)]
    tightest = slo.limits[ratio.index(max(ratio))]
    largest = max(step, key=lambda name: step[name])
    held = sequences * (lengths.prompt_tokens + lengths.output_tokens * 0.75)
    held -= (sequences - 1) * min(case.harness.prefix_tokens, lengths.prompt_tokens)
    if tightest.metric in ("ttft", "queue") and held > _FULL * room:
        return step, str(tightest), f"{tightest}: KV memory (newcomers wait for it)"
    budget = _prefill_budget(case, tuning, figures, step_s)
    if tightest.metric in ("ttft", "queue") and budget is not None:
        return step, str(tightest), f"{tightest}: {budget}"
    waiting_too = figures.requests_per_s * figures.e2e_s / case.harness.instances
    if tightest.metric in ("ttft", "queue") and waiting_too > _FULL * places:
        return step, str(tightest), f"{tightest}: places ({places} run at once, the rest waits)"
    if tightest.metric in ("ttft", "queue"):
        why = f"waiting for a prefill and computing it; steps: {largest}"
    else:
        why = f"{largest}, {step[largest]:.0%} of a decode step"
    return step, str(tightest), f"{tightest}: {why}"


def _prefill_budget(case: Case, tuning: Tuning, figures: Figures, step_s: float) -> str | None:
    """Said where prompts come about as fast as a prefill-first server lets them in; else None."""
    policy, prompt = case.harness.policy, case.lengths.prompt_tokens
    if not isinstance(policy, PrefillFirst):
        return None
    tokens = policy.max_batch_prefill_tokens
    sequences = max(1, round(tokens / prompt))
    work = StepWork(0, 0, tokens, sequences * prompt**2 / 2, 0, sequences, sequences)
    prefill_s = case.place.coefficients(tuning).step_s(work)
    rate = tokens / prompt / (prefill_s + policy.max_waiting_tokens * step_s)
    if figures.requests_per_s / case.harness.instances <= _FULL * rate:
        return None
    waits = policy.max_waiting_tokens
    return f"prefill budget ({tokens} tokens of prompts, then up to {waits} decode steps)"


def _of_queue(case: Case, most: int) -> tuple[str, ...]:
    """What a classic run of so few requests cannot tell."""
    queue = case.harness.queue
    if queue is None or most < queue:
        return ()
    few = f"{queue} requests in all never keep more than {queue} users at work"
    if most == queue:
        return (f"{few}; it carries at least these",)
    return (f"{few}: the most users are those of the steady state",)


def _notes(
    case: Case, profile: Profile, most: int, shown: Figures, users_max: int
) -> tuple[str, ...]:
    """What is odd, and where the prediction leaves what the calibration covered."""
    notes = []
    harness, kind = case.harness, profile.kind(case.place.gpu)
    if harness.instances > 1:
        notes.append(f"of {harness.instances} instances together, routed by {harness.routing}")
    if harness.prefix_tokens:
        notes.append(
            f"all prompts begin with the same {harness.prefix_tokens} tokens, kept in a cache"
        )
    if shown.refused_share > 0:
        notes.append(f"{shown.refused_share:.2%} of the requests are too long and refused")
    if most == users_max:
        notes.append(f"the search ended at {users_max} users; it carries at least these")
    if kind == "spec-only":
        if case.place.gpu.of_user:
            notes.append(
                "a data sheet of one's own: how much of its peaks any software reaches is not "
                "known, so that all may be off by several times: calibrate"
            )
        return (*notes, "no measured rows behind it: data sheets and other engines' kernels")
    known = profile.validity
    if kind == "transferred":
        notes.append(f"nothing was measured on {case.place.gpu.name}")
    if case.place.model.name not in known.models:
        notes.append(f"{case.place.model.name} was not measured")
    context = case.lengths.prompt_tokens + case.lengths.output_tokens
    low, high = known.context_tokens
    if not reaches(case, profile):
        notes.append(f"context {context:.0f} tokens; measured {low:.0f} to {high:.0f}")
    at_once = in_flight(case, shown)
    if at_once > 1.5 * known.in_flight_max > 0:
        notes.append(f"{at_once:.0f} requests at once; measured up to {known.in_flight_max:.0f}")
    if case.place.tp > known.tp_max:
        notes.append(f"tp {case.place.tp}; measured up to {known.tp_max}")
    return tuple(notes)

"""Cells of a table as cases: which load test a row of measured figures stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median

import msgspec

from servecap import slo as slos
from servecap.cell import Cell
from servecap.engine.hardware import Gpu
from servecap.engine.model import KvDtype
from servecap.engine.router import Routing
from servecap.engine.spec import EngineKind, usual_running, usual_step_tokens
from servecap.errors import UsageError
from servecap.predict.calibrate import Measured
from servecap.predict.figures import Case
from servecap.predict.harness import (
    CHAT_OUTPUT_SHARE,
    PROMPT_LIMIT_TOKENS,
    Harness,
    Lengths,
)
from servecap.predict.place import Tuning, place
from servecap.slo import Slo
from servecap.workload.fixed import PREFIX, parse
from servecap.workload.tokens import Estimate

# Mean tokens and spreads, where a row or a command names a scenario and no lengths. Source: 400
# requests each of the built-in workloads of the same names (tokens estimated).
SCENARIOS = {
    "chat": Lengths(prompt_tokens=237, output_tokens=188),
    "chat-en": Lengths(prompt_tokens=237, output_tokens=188),
    "chat-zh": Lengths(prompt_tokens=105, output_tokens=243),
    "docqa": Lengths(prompt_tokens=3153, output_tokens=180, prompt_spread=0.05, output_spread=0.4),
    "docqa-zh": Lengths(
        prompt_tokens=2640, output_tokens=155, prompt_spread=0.13, output_spread=0.33
    ),
}

USERS_LIMIT = 100_000


def usual(scenario: str) -> Lengths | None:
    """Lengths of a scenario of that name, or of equal requests, "fixed:IN/OUT"; None: of neither.

    Raises:
        UsageError: it begins like the latter and cannot be read.

    >>> usual("fixed:512/128")
    Lengths(prompt_tokens=512, output_tokens=128, prompt_spread=0.0, output_spread=0.0)
    """
    if not scenario.startswith(PREFIX):
        return SCENARIOS.get(scenario)
    fixed = parse(scenario, Estimate())
    return Lengths(
        prompt_tokens=fixed.in_tokens,
        output_tokens=fixed.out_tokens,
        prompt_spread=0.0,
        output_spread=0.0,
    )


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How rows were measured, as far as they do not say so themselves.

    `queue`: requests of the classic stop rule; 0: the steady state; None: 250 for rows that tell
    their answers' tokens apart, and `cycles` requests of each user for others. So it was in the
    published tables of this form: Little's law holds in the older rows, but their first tokens
    took as long as a start of all users at once makes them; in the newer ones the tail of 250
    requests takes up to two thirds of the rate; these also waited for 8 tokens instead of 20.
    Neither table tells how many cycles there were, or how fast the users were started: `cycles` and
    `start_s` are assumptions, which calibration replaces (`servecap.predict.untold`).
    """

    engine: EngineKind = "tgi"
    slo: Slo
    queue: int | None = None
    think_s: tuple[float, float] = (1.0, 3.0)
    max_waiting_tokens: int | None = None
    cycles: int = 5
    start_s: float = 1.0
    max_batch_prefill_tokens: int = 32768
    reserve_tokens: int | None = None
    reserve_share: float = 0.5  # as LightLLM-like backends of that time
    # Tables do not tell: as good as no limit. None: the engine's own on the row's GPU.
    max_running: int | None = 2000
    memory_share: float = 0.95
    prefix_tokens: int = 0
    instances: int = 1
    routing: Routing = "least-load"
    weights: str | None = None  # these two as `model` takes them, where rows do not say
    kv_dtype: KvDtype | None = None

    def harness(self, cell: Cell, device: Gpu) -> Harness:
        """Of that row, whose place has such GPUs."""
        newer = cell.avg_output_tokens is not None
        running = self.max_running or usual_running(self.engine, device)
        told_little = self.engine == "tgi" and self.queue is None and not newer
        queue = self.queue if self.queue is not None else 250 if newer else 0
        waiting = self.max_waiting_tokens
        if waiting is None:
            waiting = 8 if newer else 20
        return Harness(
            engine=self.engine,
            queue=queue or None,
            start_s=self.start_s,
            untold=told_little or (newer and self.queue is None),
            cycles=self.cycles if told_little else None,
            think_s=self.think_s,
            max_waiting_tokens=waiting,
            max_batch_prefill_tokens=self.max_batch_prefill_tokens,
            step_tokens=usual_step_tokens(self.engine, device),
            reserve_tokens=self.reserve_tokens,
            reserve_share=self.reserve_share,
            max_running=running,
            memory_share=self.memory_share,
            prefix_tokens=self.prefix_tokens,
            instances=self.instances,
            routing=self.routing,
        )


def output_share(cells: Iterable[Cell]) -> float:
    """Of a context, that is answer: the median of the cells that tell both, else the usual one."""
    known = [
        cell.avg_output_tokens / cell.avg_context_tokens
        for cell in cells
        if cell.avg_output_tokens and cell.avg_context_tokens
    ]
    return median(known) if known else CHAT_OUTPUT_SHARE


def lengths_of(cell: Cell, share: float) -> Lengths:
    """Mean lengths as the row tells them, else those of its scenario.

    Raises:
        UsageError: the row tells no lengths and its scenario is none of SCENARIOS.
    """
    context, output = cell.avg_context_tokens, cell.avg_output_tokens
    if (context or 0) > PROMPT_LIMIT_TOKENS:
        raise UsageError(
            f"{cell.provenance}: avg_context_tokens {context:g}: requests of more than "
            f"{PROMPT_LIMIT_TOKENS} tokens are not simulated"
        )
    if context is None:
        known = usual(cell.scenario or "chat")
        if known is None:
            raise UsageError(
                f"{cell.provenance}: no avg_context_tokens, and the scenario {cell.scenario!r} is "
                f"none of {', '.join(SCENARIOS)}"
            )
        return known if output is None else msgspec.structs.replace(known, output_tokens=output)
    answer = share * context if output is None else output
    if not 1 <= answer < context:
        raise UsageError(
            f"{cell.provenance}: avg_output_tokens {answer:g} do not fit into "
            f"avg_context_tokens {context:g} (prompt + answer)"
        )
    spread = usual(cell.scenario) or SCENARIOS["chat"]
    return msgspec.structs.replace(
        spread, prompt_tokens=max(1.0, context - answer), output_tokens=answer
    )


def case_of(cell: Cell, rules: Rules, share: float) -> Case:
    """The row's place under the row's load test.

    Raises:
        UsageError: a name is unknown or the lengths make no sense.
    """
    lengths = lengths_of(cell, share)
    if rules.prefix_tokens > lengths.prompt_tokens:
        raise UsageError(
            f"--prefix-tokens {rules.prefix_tokens}: prompts of {lengths.prompt_tokens:.0f} tokens "
            "cannot all begin with more"
        )
    on = place(
        cell.model,
        cell.gpu,
        cell.tp,
        memory_gb=cell.gpu_memory_gb,
        interconnect=cell.interconnect,
        weights=rules.weights,
        kv_dtype=rules.kv_dtype,
    )
    return Case(place=on, lengths=lengths, harness=rules.harness(cell, on.gpu))


def users_of(cell: Cell) -> int | None:
    """The load that the row's other figures are of; None: it does not tell.

    Raises:
        UsageError: more than are simulated.
    """
    users = cell.capacity.users if cell.capacity else 0
    if users > USERS_LIMIT:
        raise UsageError(
            f"{cell.provenance}: max_users {users}: at most {USERS_LIMIT} are simulated"
        )
    return users or None


def slo_of(cell: Cell, rules: Rules) -> Slo:
    """The SLO that the row names, else that of the table."""
    return slos.parse(cell.slo) if cell.slo else rules.slo


def measured(
    cells: Iterable[Cell], rules: Rules, *, tuning: Callable[[Gpu], Tuning]
) -> tuple[list[Measured], list[str]]:
    """The cells that were measured and tell a number of users, as rows to calibrate with.

    Where several are of one place and one length each is a load, and so is one with more users
    than its test had requests; of others `users` is the capacity.

    Args:
        tuning: of a GPU, for the room that a model has in its memory.
    Returns:
        The rows, and of each cell that cannot be modelled why it is left out.
    Raises:
        UsageError: none is left.
    """
    cells = [c for c in cells if c.origin == "measured" and c.capacity and c.capacity.users > 0]
    share = output_share(cells)
    found: list[Measured] = []
    left_out: list[str] = []
    loads = Counter(_place(cell) for cell in cells)
    for cell in cells:
        try:
            case, users = case_of(cell, rules, share), users_of(cell)
            _carried(case, tuning(case.place.gpu))
        except UsageError as error:
            left_out.append(told(cell, error))
            continue
        short = users is not None and users >= (case.harness.queue or USERS_LIMIT)
        found.append(
            Measured(
                case=case,
                users=users or 0,
                slo=slo_of(cell, rules) if loads[_place(cell)] == 1 and not short else None,
                ttft_s=cell.ttft_s,
                tpot_s=cell.tpot_s,
                requests_per_s=cell.requests_per_s or None,  # 0: nothing was measured
                label=f"{cell.model} on {cell.gpu}, TP{cell.tp}, {cell.scenario}",
            )
        )
    if not found:
        why = left_out[0] if left_out else "no measured cell with a number of users"
        raise UsageError(f"{why}: nothing to calibrate with")
    return found, left_out


def told(cell: Cell, error: UsageError) -> str:
    """What is wrong with the cell, and where it stands."""
    where = f"{cell.provenance}: "
    return f"{where}{str(error).removeprefix(where)}"


def _place(cell: Cell) -> tuple[object, ...]:
    return (cell.model, cell.gpu, cell.gpu_memory_gb, cell.interconnect, cell.tp, cell.scenario,
            cell.avg_context_tokens, cell.avg_output_tokens)  # fmt: skip


def _carried(case: Case, tuning: Tuning) -> None:
    """Raises UsageError where the model does not fit, or takes no request of the mean length."""
    lengths, model = case.lengths, case.place.model
    most = min(case.room(tuning), model.max_context_tokens)
    if lengths.prompt_tokens + lengths.output_tokens > most:
        raise UsageError(
            f"{lengths.prompt_tokens + lengths.output_tokens:.0f} tokens a request, but "
            f"{case.place.gpu.name} carries at most {most} of {model.name}"
        )

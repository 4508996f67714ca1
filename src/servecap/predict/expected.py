"""What a spec of an engine and a workload come to as a case to predict."""

from __future__ import annotations

from itertools import islice
from statistics import fmean, pstdev

from servecap.emulate.answers import AnswerLengths, count_tokens
from servecap.engine.spec import EngineSpec, default_policy
from servecap.errors import UsageError
from servecap.predict.figures import Case
from servecap.predict.harness import Harness, Lengths
from servecap.predict.place import place
from servecap.predict.rows import SCENARIOS
from servecap.record import Request
from servecap.scenario import ClosedLoop, Scenario, WorkloadSpec
from servecap.workload import source

_SAMPLE = 400  # requests whose lengths are looked at
_NATURAL_MEAN_TOKENS = 200.0  # of answers that the model ends by itself, as in the emulator
_USUAL = WorkloadSpec()


def case_of(spec: EngineSpec, scenario: Scenario, *, interconnect: str | None = None) -> Case:
    """The engine under the scenario's users, in the steady state.

    Raises:
        UsageError: a name is unknown, or the scenario has no users who think between times.
    """
    load = scenario.load
    if spec.prefix_cache:
        raise UsageError(
            "prefix_cache: a predicted cell knows no texts; emulate the cell, or tell "
            "`servecap predict` the --prefix-tokens that all prompts share"
        )
    if not isinstance(load, ClosedLoop) or load.think is not None:
        raise UsageError("a prediction needs users with think times between two numbers")
    return Case(
        place=place(
            spec.model,
            spec.gpu,
            spec.tp,
            memory_gb=spec.gpu_memory_gb,
            interconnect=interconnect,
            weights=spec.weights,
            kv_dtype=spec.kv_dtype,
        ),
        lengths=lengths_of(scenario.workload),
        harness=harness_of(spec, think_s=load.think_s),
    )


def harness_of(spec: EngineSpec, *, think_s: tuple[float, float]) -> Harness:
    """The steady state of such users on the engine's own scheduler."""
    policy = spec.policy or default_policy(spec)
    return Harness(
        engine=spec.engine, think_s=think_s, max_running=policy.max_running, scheduler=policy
    )


def lengths_of(workload: WorkloadSpec) -> Lengths:
    """Mean tokens of the workload's prompts and answers, and how much they vary.

    Raises:
        UsageError: the workload cannot be loaded.
    """
    usual = SCENARIOS.get(workload.source)
    if usual is not None and workload.output == _USUAL.output and not workload.sessions:
        return usual
    requests = list(islice(source.load(workload).requests(0), _SAMPLE))
    natural = AnswerLengths(mean_tokens=_NATURAL_MEAN_TOKENS, seed=0)
    prompts = [_prompt_tokens(request) for request in requests]
    answers = [_answer_tokens(request, natural) for request in requests]
    prompt_mean, answer_mean = fmean(prompts), fmean(answers)
    return Lengths(
        prompt_tokens=prompt_mean,
        output_tokens=answer_mean,
        prompt_spread=pstdev(prompts) / prompt_mean,
        output_spread=pstdev(answers) / answer_mean,
    )


def _prompt_tokens(request: Request) -> int:
    if request.prompt_tokens is not None:
        return max(1, request.prompt_tokens)
    return max(1, sum(count_tokens(m.content) for m in request.messages))


def _answer_tokens(request: Request, natural: AnswerLengths) -> int:
    at_most = request.max_output_tokens or 1 << 20
    tokens, _ = natural.length(at_most=at_most, at_least=1, ignore_eos=request.exact_output)
    return tokens

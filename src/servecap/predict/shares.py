"""Where an engine's time goes: in a decode step, in a prompt's step, and in both together."""

from __future__ import annotations

from servecap.engine.cost import StepParts, StepWork
from servecap.predict.figures import Case, Figures
from servecap.predict.place import Tuning


def in_step(case: Case, figures: Figures) -> int:
    """Sequences of a mean decode step at that load, by Little's law."""
    waiting_too = round(figures.requests_per_s * figures.e2e_s / case.harness.instances)
    return max(1, min(waiting_too, case.harness.policy.max_running))


def of_decode_step(case: Case, tuning: Tuning, sequences: int) -> dict[str, float]:
    """Shares of the step that gives so many sequences a token each; together 1."""
    seconds = decode_step_s(case, tuning, sequences)
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


def decode_step_s(case: Case, tuning: Tuning, sequences: int) -> dict[str, float]:
    """Seconds of such a step by what they are spent on; together the whole step."""
    lengths = case.lengths
    context = round(sequences * (lengths.prompt_tokens + lengths.output_tokens / 2))
    cost = case.place.coefficients(tuning)
    parts = cost.parts(StepWork(sequences, context, 0, 0.0, 0, sequences))
    read_only = cost.read_s(sequences)
    return {
        "host": parts.host_s + max(0.0, parts.floor_s - parts.gpu_s),
        "weights (bandwidth)": min(parts.linear_s, read_only),
        "matrices (compute)": max(0.0, parts.linear_s - read_only) + parts.output_layer_s,
        "attention (bandwidth)": parts.attention_s,
        "interconnect": parts.allreduce_s,
        "norms and activations (bandwidth)": parts.elementwise_s,
    }


def _prompt_step(case: Case, tuning: Tuning) -> tuple[StepParts, float]:
    """The step that computes a prompt of mean length alone, and what of it computes (seconds)."""
    tokens = max(1, round(case.lengths.prompt_tokens - case.harness.prefix_tokens))
    work = StepWork(
        prefill_tokens=tokens,
        prefill_pairs=tokens * (case.harness.prefix_tokens + (tokens + 1) / 2),
        prefill_context=case.harness.prefix_tokens,
        sampled=1,
        prefill_sequences=1,
    )
    cost = case.place.coefficients(tuning)
    parts = cost.parts(work)
    return parts, max(0.0, parts.linear_s - cost.read_s(tokens)) + parts.attention_s


def of_prompt_computing(case: Case, tuning: Tuning) -> float:
    """Of the step that computes a prompt of mean length alone, what is not reading or host."""
    parts, compute_s = _prompt_step(case, tuning)
    return compute_s / parts.total_s


def of_time(case: Case, tuning: Tuning, figures: Figures) -> dict[str, float]:
    """Shares of the engine's time at that load, prompts and answers together; together 1.

    For each request the engine computes its prompt once, and its part of the decode steps of its
    answer: a step of n sequences is to n parts theirs. What a prompt's tokens read is read for
    decoding anyway, so of the prompt only what comes on top counts.
    """
    n = in_step(case, figures)
    parts, compute_s = _prompt_step(case, tuning)
    each = {
        name: value * case.lengths.output_tokens / n
        for name, value in decode_step_s(case, tuning, n).items()
    }
    seconds = {
        "compute": compute_s + each["matrices (compute)"],
        "bandwidth": parts.elementwise_s + sum(v for k, v in each.items() if "bandwidth" in k),
        "interconnect": parts.allreduce_s + each["interconnect"],
        "host": parts.host_s + each["host"],
    }
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}

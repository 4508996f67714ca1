"""What a workload amounts to in numbers, for reports."""

from __future__ import annotations

import msgspec

from servecap.record import TokenSource
from servecap.stats import Distribution
from servecap.stats import describe as distribution
from servecap.workload.source import NATURAL_CAP_TOKENS, Workload


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths in tokens, before the mark that `unique` puts in front of each prompt.

    `n` is None where prompts are made without end. `answer_tokens` is what the data has and
    `asked_tokens` what is asked for (None: the model ends by itself, at `cap_tokens` at last).
    """

    name: str
    note: str
    n: int | None
    records: int | None
    dropped: dict[str, int]
    token_source: TokenSource
    prompt_tokens: Distribution | None
    answer_tokens: Distribution | None
    asked_tokens: Distribution | None
    cap_tokens: int | None


def describe(workload: Workload) -> Description:
    """The workload's size and the distributions of its lengths."""
    plan, samples = workload.fixed, workload.samples
    if plan is not None:
        prompts, answers = [plan.in_tokens], [plan.out_tokens]
    else:
        prompts = [s.prompt_tokens for s in samples if s.prompt_tokens is not None]
        answers = [s.answer_tokens for s in samples if s.answer_tokens is not None]
    match workload.output:
        case "data":
            asked = answers
        case "natural":
            asked = []
        case number:
            asked = [int(number)]
    return Description(
        name=workload.name,
        note=workload.note,
        n=None if plan is not None else len(samples),
        records=None if plan is not None else workload.records,
        dropped=workload.dropped,
        token_source=workload.token_source,
        prompt_tokens=distribution(prompts),
        answer_tokens=distribution(answers),
        asked_tokens=distribution(asked),
        cap_tokens=NATURAL_CAP_TOKENS if workload.output == "natural" else None,
    )

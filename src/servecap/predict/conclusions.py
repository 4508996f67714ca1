"""What a row of predictions says together: where more tensor parallelism stops paying."""

from __future__ import annotations

from collections.abc import Sequence

from servecap.predict.answer import Answer

# A GPU of a larger group carries at least this share of what one did at the best smaller degree:
# then twice the GPUs carry about twice the users or more.
_PAYS = 0.9


def conclusions(answers: Sequence[Answer]) -> list[str]:
    """For each model and GPU with several degrees, up to which one users per GPU are kept up."""
    rows: dict[tuple[str, str, str], dict[int, Answer]] = {}
    for answer in answers:
        if answer.max_users is not None and answer.max_users.value:
            row = rows.setdefault((answer.model, answer.gpu, answer.scenario), {})
            row.setdefault(answer.tp, answer)
    return [_row(found) for found in rows.values() if len(found) > 1]


def _row(found: dict[int, Answer]) -> str:
    degrees = sorted(found)
    best = degrees[0]
    for tp in degrees[1:]:
        peak = max(_per_gpu(found[n]) for n in degrees if n < tp)
        if _per_gpu(found[tp]) < _PAYS * peak:
            break
        best = tp
    told = ", ".join(f"{_per_gpu(found[tp]):.3g} at TP{tp}" for tp in degrees)
    first = found[degrees[0]]
    where = f"{first.model} on {first.gpu}"
    if best == degrees[-1]:
        return f"{where}: users per GPU {told}: more TP goes on paying"
    after = degrees[degrees.index(best) + 1]
    share = found[after].step_shares.get("interconnect", 0.0)
    return (
        f"{where}: users per GPU {told}: more than TP{best} does not pay; at TP{after} it is "
        f"limited by {found[after].binds}, and the interconnect takes {share:.0%} of a decode step"
    )


def _per_gpu(answer: Answer) -> float:
    assert answer.max_users is not None
    return answer.max_users.value / answer.tp

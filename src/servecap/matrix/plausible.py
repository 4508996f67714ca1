"""What one row's throughput figures must satisfy, before anything is computed from them.

Only contradictions inside a row are sought. A figure that cannot be is dropped (None) and a note
says which and why; a figure that is only odd is kept, with a note.
"""

from __future__ import annotations

from typing import Literal

import msgspec

TokensCounted = Literal["output", "total"]

DEFAULT_THINK_MEAN_S = 2.0  # the default test: users think U(1, 3) s

# Means of different samples and rounded figures: a bound must be missed by more than this.
ROUNDING = 1.1
# With the answer's mean length in play: decode time is not exactly length x mean TPOT.
LENGTHS = 1.25
# Two figures of one row that differ by more than this factor cannot both be right.
CONTRADICTION = 1.5


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a row says of its load and latency; absent is None."""

    users: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    context_tokens: float | None = None  # prompt + output, mean
    output_tokens: float | None = None  # mean
    error_rate: float | None = None
    think_mean_s: float = DEFAULT_THINK_MEAN_S

    def fixed_s(self) -> float | None:
        """Shortest cycle of a user: first token and think time, before any decoding."""
        return None if self.ttft_s is None else self.ttft_s + self.think_mean_s

    def answer_tokens(self, rate_rps: float) -> float | None:
        """Tokens per answer that Little's law implies for that request rate.

        users = rate x (TTFT + (tokens - 1) x TPOT + think), solved for tokens.

        Source:
            Little, A proof for the queuing formula L = lambda W, Oper. Res. 9 (1961), for a
            closed loop.
        """
        fixed = self.fixed_s()
        if fixed is None or self.tpot_s is None:
            return None
        return 1 + (self.users / rate_rps - fixed) / self.tpot_s


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The throughput that may be used, and what was found about it."""

    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    notes: tuple[str, ...] = ()


def usable_rates(
    load: Load,
    *,
    requests_per_s: float | None,
    tokens_per_s: float | None = None,
    tokens_counted: TokensCounted | None = None,
    output_tokens_per_s: float | None = None,
    total_tokens_per_s: float | None = None,
) -> Rates:
    """The rates that do not contradict the row's own users, latencies and lengths.

    `tokens_per_s` is a figure whose row may not say whether it counts output tokens only or
    prompts as well (`tokens_counted` None): it is then taken as what fits the request rate, and
    dropped when that cannot be told.
    """
    notes: list[str] = []
    requests = _possible_rate(load, requests_per_s, notes)
    output, total = output_tokens_per_s, total_tokens_per_s
    if tokens_per_s is not None:
        if tokens_counted is None:
            requests, tokens_counted = _reading(load, requests, tokens_per_s, notes)
        output = tokens_per_s if tokens_counted == "output" else output
        total = tokens_per_s if tokens_counted == "total" else total
    requests, output = _agree(requests, output, load.output_tokens, "output", notes)
    requests, total = _agree(requests, total, load.context_tokens, "total", notes)
    output = _possible_output(load, output, notes)
    total = _possible_total(load, total, notes)
    if output is not None and total is not None and output > total:
        notes.append(
            f"more output tokens/s ({output:g}) than tokens/s in all ({total:g}): not used"
        )
        output = total = None
    return Rates(
        requests_per_s=requests,
        output_tokens_per_s=output,
        total_tokens_per_s=total,
        notes=tuple(notes),
    )


def _possible_rate(load: Load, rate: float | None, notes: list[str]) -> float | None:
    """The request rate, unless its cycle is shorter than what a user must wait and think."""
    fixed = load.fixed_s()
    if rate is None or rate == 0 or fixed is None:
        return rate
    cycle = load.users / rate
    answered = 1 - (load.error_rate or 0.0)  # a failed request may end at once
    if cycle * ROUNDING < (load.think_mean_s + (fixed - load.think_mean_s) * answered):
        notes.append(
            f"requests/s {rate:g} is impossible: {load.users} users would each send one every "
            f"{cycle:.3g} s, but first token ({load.ttft_s:g} s) and thinking "
            f"({load.think_mean_s:g} s) alone take {fixed:.3g} s; not used"
        )
        return None
    if load.output_tokens is None or load.tpot_s is None:
        return rate
    expected = fixed + max(0.0, load.output_tokens - 1) * load.tpot_s
    if cycle * LENGTHS < load.think_mean_s + (expected - load.think_mean_s) * answered:
        notes.append(
            f"requests/s {rate:g} is impossible: a cycle of {cycle:.3g} s is shorter than first "
            f"token, {load.output_tokens:g} tokens and thinking ({expected:.3g} s); not used"
        )
        return None
    if cycle > LENGTHS * expected:
        notes.append(
            f"requests/s {rate:g} is {rate * expected / load.users:.0%} of the steady rate by "
            f"Little's law ({load.users / expected:.3g}): a short run with a drain tail?"
        )
    return rate


def _reading(
    load: Load, requests: float | None, tokens: float, notes: list[str]
) -> tuple[float | None, TokensCounted | None]:
    """What an unlabelled tokens/s counts, and the request rate if the two do not contradict."""
    unlabelled = f"tokens/s {tokens:g} does not say whether prompts are counted"
    if not requests:
        notes.append(f"{unlabelled}, and no usable requests/s tells; not used")
        return requests, None
    each = tokens / requests
    if each < 1:
        notes.append(
            f"tokens/s {tokens:g} is below requests/s {requests:g}: columns swapped? Neither used"
        )
        return None, None
    answer = load.output_tokens or load.answer_tokens(requests)
    if load.context_tokens is None or answer is None:
        notes.append(f"{unlabelled}, and the row lacks the lengths that would tell; not used")
        return requests, None
    as_total, as_output = _close(each, load.context_tokens), _close(each, answer)
    if as_total and as_output:
        notes.append(f"{unlabelled}, and both readings fit; not used")
        return requests, None
    if as_total or as_output:
        reading: TokensCounted = "total" if as_total else "output"
        notes.append(f"{unlabelled}; at {each:.4g} a request only '{reading}' fits")
        return requests, reading
    source = "as stated" if load.output_tokens else "by Little's law"
    notes.append(
        f"requests/s {requests:g} and tokens/s {tokens:g} contradict each other: {each:.4g} tokens "
        f"a request is neither prompt + answer ({load.context_tokens:g}) nor the answer alone "
        f"({answer:.3g} {source}); neither is used"
    )
    return None, None


def _agree(
    requests: float | None,
    tokens: float | None,
    each: float | None,
    what: TokensCounted,
    notes: list[str],
) -> tuple[float | None, float | None]:
    """Both rates, or neither when tokens/s is far from requests/s x tokens per request."""
    if not requests or tokens is None or not each or _close(tokens / requests, each):
        return requests, tokens
    notes.append(
        f"requests/s {requests:g} and {what} tokens/s {tokens:g} contradict each other: "
        f"{tokens / requests:.4g} tokens a request instead of {each:g}; neither is used"
    )
    return None, None


def _possible_output(load: Load, output: float | None, notes: list[str]) -> float | None:
    """Output tokens/s, unless it exceeds one token per user and TPOT."""
    fixed = load.fixed_s()
    if output is None or load.tpot_s is None or fixed is None:
        return output
    most = load.users / min(load.tpot_s, fixed)  # one-token answers need no decode step at all
    if output <= most * ROUNDING:
        return output
    notes.append(
        f"output tokens/s {output:g} is impossible: {load.users} users with one token every "
        f"{load.tpot_s * 1e3:g} ms get at most {most:.4g}; not used"
    )
    return None


def _possible_total(load: Load, total: float | None, notes: list[str]) -> float | None:
    """Tokens/s in all, unless the request rate that it stands for is impossible."""
    if not total or not load.context_tokens:
        return total
    rate = total / load.context_tokens
    if _possible_rate(load, rate, []) is not None:
        return total
    notes.append(
        f"tokens/s {total:g} is impossible: at {load.context_tokens:g} tokens a request it stands "
        f"for {rate:.3g} requests/s, more than {load.users} users can send; not used"
    )
    return None


def _close(a: float, b: float) -> bool:
    return a > 0 and b > 0 and max(a / b, b / a) <= CONTRADICTION

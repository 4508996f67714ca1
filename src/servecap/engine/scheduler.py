"""Who runs in the next step: one small class per engine's policy."""

from __future__ import annotations

import math
from typing import Protocol

import msgspec

from servecap.engine.kv import BLOCK_TOKENS
from servecap.engine.queues import Batch, Queues, Sequence


class Scheduler(Protocol):
    """A policy: it moves sequences between the queues and says what the next step computes."""

    def next_batch(self, queues: Queues) -> Batch:
        """The next step's work; empty only where nobody waits and nobody runs."""

    def refusal(self, sequence: Sequence) -> str | None:
        """Why this policy can never run *sequence*; None: it can."""


class ChunkedPrefill(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="chunked-prefill",
):
    """vLLM since V1 (and SGLang): decodes first, then prompts in chunks, up to a token budget.

    Keys and values are given block by block. Where they run out, the youngest running sequence is
    preempted: it loses them and computes them again later. Nobody is let in whose whole prompt
    would not fit, although it is given its blocks chunk by chunk.

    `plans_ahead`: a step is planned when the one before it begins, so that who comes in the
    meantime waits for one step more. Where nobody runs, nothing is planned.

    Source: vLLM V1's scheduler (vllm/v1/core/sched/scheduler.py) with its default budget for
    online serving, 2048 tokens; `scheduler_reserve_full_isl` as vLLM 0.19 reports it of itself.
    Planning ahead: vLLM's asynchronous scheduling (pull request 19970: the scheduler operates one
    step ahead of the execution; 39592: on by default by then, and it can cost time to first token).
    """

    step_tokens: int = 2048
    max_running: int = 256
    plans_ahead: bool = False

    def refusal(self, sequence: Sequence) -> str | None:  # noqa: ARG002 - any length can be cut
        return None

    def next_batch(self, queues: Queues) -> Batch:
        batch = Batch()
        budget = self._run_on(queues, batch)
        if not batch.preempted:  # else memory is short: nobody new is let in
            self._admit(queues, batch, budget)
        return batch

    def _run_on(self, queues: Queues, batch: Batch) -> int:
        budget = self.step_tokens
        index = 0
        running = queues.running
        while index < len(running) and budget > 0:
            sequence = running[index]
            tokens = min(sequence.missing, budget)
            if not queues.make_room(sequence, sequence.cached + tokens, batch):
                break  # it was the youngest itself: it waits now
            if sequence.decoding:
                batch.decodes.append(sequence)
            else:
                batch.chunks.append((sequence, tokens))
            budget -= tokens
            index += 1
        return budget

    def _admit(self, queues: Queues, batch: Batch, budget: int) -> None:
        while queues.waiting and budget > 0 and len(queues.running) < self.max_running:
            sequence = queues.waiting[0]
            if queues.needed(sequence, sequence.missing) > queues.pool.free:
                return
            queues.admit(sequence)
            tokens = min(sequence.missing, budget)
            queues.hold(sequence, sequence.cached + tokens)
            batch.chunks.append((sequence, tokens))
            budget -= tokens


class Vllm2023(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="vllm-2023",
):
    """vLLM until 0.7 (V0): a step computes whole prompts or else one token of all that run.

    Prompts go first, as many as fit into the budget, the places and the memory, of which
    `watermark_share` stays free then. Where blocks run out in decode, the youngest running
    sequence is preempted and computed again later, its answer so far like a prompt.

    Source: vLLM's scheduler of 2023 (vllm/core/scheduler.py, 0.1 to 0.4) with its defaults. Here
    an idle engine lets anybody in who fits at all, where vLLM would wait or give up.
    """

    step_tokens: int = 4096  # vLLM: the model's context, at least 2048
    max_running: int = 256
    watermark_share: float = 0.01

    def refusal(self, sequence: Sequence) -> str | None:
        if sequence.prompt_tokens <= self.step_tokens:
            return None
        tokens = sequence.prompt_tokens
        return f"the prompt's {tokens} tokens are more than step_tokens {self.step_tokens}"

    def next_batch(self, queues: Queues) -> Batch:
        batch = Batch()
        self._admit(queues, batch)
        if batch.chunks:
            return batch
        index = 0
        while index < len(queues.running):
            sequence = queues.running[index]
            if not queues.make_room(sequence, sequence.cached + 1, batch):
                break
            batch.decodes.append(sequence)
            index += 1
        return batch

    def _admit(self, queues: Queues, batch: Batch) -> None:
        budget = self.step_tokens
        spared = int(self.watermark_share * queues.pool.total)
        while queues.waiting and len(queues.running) < self.max_running:
            sequence = queues.waiting[0]
            left = queues.pool.free - queues.needed(sequence, sequence.missing)
            if left < (spared if queues.running else 0):
                return
            tokens = sequence.missing - queues.known(sequence) * BLOCK_TOKENS
            if tokens > budget and batch.chunks:  # one alone may be too long: computed again
                return
            queues.admit(sequence)
            queues.hold(sequence, sequence.cached + tokens)
            batch.chunks.append((sequence, tokens))
            budget -= tokens


class PrefillFirst(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="prefill-first",
):
    """TGI: whole prompts go first and stall decode; the longest answer is reserved beforehand.

    While some decode, newcomers are let in when there are at least `waiting_served_ratio` times as
    many as run, or unconditionally after `max_waiting_tokens` decode steps. Nothing is preempted.
    `decode_between`: when newcomers have joined a running batch, it decodes before the next join.
    `plans_ahead`: as of `ChunkedPrefill`; TGI does not.

    Source: TGI's router (router/src/infer.rs and queue.rs, 1.x) with its documented defaults.
    """

    waiting_served_ratio: float = 1.2
    max_waiting_tokens: int = 20
    max_batch_prefill_tokens: int = 4096
    max_running: int = 256
    decode_between: bool = True
    plans_ahead: bool = False

    def refusal(self, sequence: Sequence) -> str | None:
        if sequence.prompt_tokens <= self.max_batch_prefill_tokens:
            return None
        return (
            f"the prompt's {sequence.prompt_tokens} tokens are more than "
            f"max_batch_prefill_tokens {self.max_batch_prefill_tokens}"
        )


class PrefillFirstScheduler:
    """`PrefillFirst` at work.

    In TGI, after newcomers have joined a running batch there is always one decode step; only the
    first batch of a busy period may be followed by a second prefill at once. The counter of
    waiting tokens starts at 1. (Both as in the router's loop.)
    """

    def __init__(self, policy: PrefillFirst) -> None:
        self._policy = policy
        self._waiting_tokens = 1
        self._joined = False

    def refusal(self, sequence: Sequence) -> str | None:
        return self._policy.refusal(sequence)

    def next_batch(self, queues: Queues) -> Batch:
        batch = Batch()
        chosen = [] if self._joined else self._newcomers(queues)
        self._joined = bool(chosen and queues.running and self._policy.decode_between)
        for sequence in chosen:
            queues.admit(sequence)
            queues.hold(sequence, sequence.prompt_tokens + sequence.reserve_tokens)
            batch.chunks.append((sequence, sequence.missing))
        if chosen:
            self._waiting_tokens = 1
        elif queues.running:
            self._waiting_tokens += 1
            batch.decodes.extend(queues.running)
        else:  # the batch that was joined has ended or was cancelled meanwhile
            return self.next_batch(queues)
        return batch

    def _newcomers(self, queues: Queues) -> list[Sequence]:
        least = self._least(len(queues.running))
        if len(queues.waiting) < least:
            return []
        prompt_budget = self._policy.max_batch_prefill_tokens
        blocks = queues.pool.free
        room = self._policy.max_running - len(queues.running)
        chosen: list[Sequence] = []
        for sequence in queues.waiting:
            prompt_budget -= sequence.missing - queues.known(sequence) * BLOCK_TOKENS
            blocks -= queues.needed(sequence, sequence.prompt_tokens + sequence.reserve_tokens)
            if prompt_budget < 0 or blocks < 0 or len(chosen) == room:
                break
            chosen.append(sequence)
        return chosen if len(chosen) >= least else []

    def _least(self, running: int) -> int:
        if running == 0 or self._waiting_tokens >= self._policy.max_waiting_tokens:
            return 1
        return max(1, math.floor(running * self._policy.waiting_served_ratio))


def static_batching(*, max_running: int, step_tokens: int = 16384) -> PrefillFirst:
    """A batch is taken when nobody runs, and nobody joins until its last answer is whole.

    So did servers before continuous batching: FasterTransformer, and whoever calls `generate`
    with a list of prompts. An answer is handed out as it grows; its place then stays empty.
    """
    return PrefillFirst(
        waiting_served_ratio=_NEVER,
        max_waiting_tokens=int(_NEVER),
        max_batch_prefill_tokens=step_tokens,
        max_running=max_running,
    )


_NEVER = 1e12  # times as many as run, or decode steps: more than there will be

Policy = ChunkedPrefill | Vllm2023 | PrefillFirst


def scheduler_for(policy: Policy) -> Scheduler:
    """The machine that carries out *policy*."""
    match policy:
        case ChunkedPrefill() | Vllm2023():
            return policy  # they keep no state of their own
        case PrefillFirst():
            return PrefillFirstScheduler(policy)


def plans_ahead(policy: Policy) -> bool:
    """Whether a step is planned before the one before it has ended."""
    match policy:
        case ChunkedPrefill() | PrefillFirst():
            return policy.plans_ahead
        case Vllm2023():
            return False


def step_tokens(policy: Policy) -> int:
    """Most tokens that one step computes."""
    match policy:
        case ChunkedPrefill() | Vllm2023():
            return policy.step_tokens
        case PrefillFirst():
            return max(policy.max_batch_prefill_tokens, policy.max_running)

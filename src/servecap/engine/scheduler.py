"""Who runs in the next step: one small class per engine's policy."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

import msgspec

from servecap.engine.cost import StepWork
from servecap.engine.kv import BLOCK_TOKENS, BlockPool, blocks_for


class Sequence:
    """A request inside the engine.

    `cached` tokens have their keys and values in the pool. A sequence gets its next token when
    all of `prompt_tokens + generated` have been computed; after a preemption, that means again.
    """

    __slots__ = (
        "blocks", "cached", "generated", "id", "output_tokens", "prompt_tokens", "reserve_tokens",
        "started",
    )  # fmt: skip

    def __init__(
        self, id: int, *, prompt_tokens: int, output_tokens: int, reserve_tokens: int
    ) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.reserve_tokens = reserve_tokens  # longest answer that the server must expect
        self.generated = 0
        self.cached = 0
        self.blocks = 0
        self.started = False

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while decoding."""
        return self.prompt_tokens + self.generated - self.cached

    @property
    def decoding(self) -> bool:
        return self.generated > 0 and self.cached == self.prompt_tokens + self.generated - 1


class Queues:
    """The state that a scheduler decides on: who waits, who runs (oldest first), free blocks."""

    def __init__(self, pool: BlockPool) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.pool = pool

    def hold(self, sequence: Sequence, tokens: int) -> bool:
        """Makes *sequence* hold blocks for *tokens* tokens; False where the pool has too few."""
        more = blocks_for(tokens) - sequence.blocks
        if more > 0:
            if not self.pool.take(more):
                return False
            sequence.blocks += more
        return True

    def release(self, sequence: Sequence) -> None:
        self.pool.give(sequence.blocks)
        sequence.blocks = 0

    def preempt_youngest(self) -> Sequence:
        """Sends the youngest running sequence back to the head of the queue, without its KV."""
        victim = self.running.pop()
        self.release(victim)
        victim.cached = 0
        self.waiting.appendleft(victim)
        return victim


class Batch:
    """One step's work: sequences that decode a token, and chunks of prompts (with their length)."""

    __slots__ = ("chunks", "decodes", "preempted")

    def __init__(self) -> None:
        self.decodes: list[Sequence] = []
        self.chunks: list[tuple[Sequence, int]] = []
        self.preempted: list[Sequence] = []

    def __bool__(self) -> bool:
        return bool(self.decodes or self.chunks)

    def work(self) -> StepWork:
        """What the step costs depends on this only."""
        decodes = self.decodes
        context = sum([s.cached for s in decodes]) + len(decodes)
        if not self.chunks:
            return StepWork(len(decodes), context, 0, 0.0, 0, len(decodes))
        return StepWork(
            decode_sequences=len(decodes),
            decode_context=context,
            prefill_tokens=sum([n for _, n in self.chunks]),
            # A chunk's queries see all that is cached and, on average, half of the chunk.
            prefill_pairs=sum([n * (s.cached + (n + 1) / 2) for s, n in self.chunks]),
            prefill_context=sum([s.cached for s, _ in self.chunks]),
            sampled=len(decodes) + sum([n == s.missing for s, n in self.chunks]),
            prefill_sequences=len(self.chunks),
        )


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

    Source: vLLM V1's scheduler (vllm/v1/core/sched/scheduler.py) with its default budget for
    online serving, 2048 tokens; `scheduler_reserve_full_isl` as vLLM 0.19 reports it of itself.
    """

    step_tokens: int = 2048
    max_running: int = 256

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
            if sequence.cached + tokens > sequence.blocks * BLOCK_TOKENS and not self._make_room(
                queues, batch, sequence, sequence.cached + tokens
            ):
                break  # it was the youngest itself: it waits now
            if sequence.decoding:
                batch.decodes.append(sequence)
            else:
                batch.chunks.append((sequence, tokens))
            budget -= tokens
            index += 1
        return budget

    def _make_room(self, queues: Queues, batch: Batch, sequence: Sequence, tokens: int) -> bool:
        while not queues.hold(sequence, tokens):
            victim = queues.preempt_youngest()
            batch.preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _admit(self, queues: Queues, batch: Batch, budget: int) -> None:
        while queues.waiting and budget > 0 and len(queues.running) < self.max_running:
            sequence = queues.waiting[0]
            tokens = min(sequence.missing, budget)
            if blocks_for(sequence.missing) > queues.pool.free:
                return
            queues.hold(sequence, tokens)
            queues.running.append(queues.waiting.popleft())
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

    Source: TGI's router (router/src/infer.rs and queue.rs, 1.x) with its documented defaults.
    """

    waiting_served_ratio: float = 1.2
    max_waiting_tokens: int = 20
    max_batch_prefill_tokens: int = 4096
    max_running: int = 256
    decode_between: bool = True

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
            queues.hold(sequence, sequence.prompt_tokens + sequence.reserve_tokens)
            queues.running.append(queues.waiting.popleft())
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
            prompt_budget -= sequence.prompt_tokens
            blocks -= blocks_for(sequence.prompt_tokens + sequence.reserve_tokens)
            if prompt_budget < 0 or blocks < 0 or len(chosen) == room:
                break
            chosen.append(sequence)
        return chosen if len(chosen) >= least else []

    def _least(self, running: int) -> int:
        if running == 0 or self._waiting_tokens >= self._policy.max_waiting_tokens:
            return 1
        return max(1, math.floor(running * self._policy.waiting_served_ratio))


Policy = ChunkedPrefill | PrefillFirst


def scheduler_for(policy: Policy) -> Scheduler:
    """The machine that carries out *policy*."""
    match policy:
        case ChunkedPrefill():
            return policy  # it keeps no state of its own
        case PrefillFirst():
            return PrefillFirstScheduler(policy)


def step_tokens(policy: Policy) -> int:
    """Most tokens that one step computes."""
    match policy:
        case ChunkedPrefill():
            return policy.step_tokens
        case PrefillFirst():
            return max(policy.max_batch_prefill_tokens, policy.max_running)

"""Continuous batching as a machine without I/O: requests in, steps out, in virtual time."""

from __future__ import annotations

import msgspec

from servecap.engine.cost import StepCost
from servecap.engine.kv import BLOCK_TOKENS, BlockPool, blocks_for
from servecap.engine.queues import Batch, Queues, Sequence
from servecap.engine.scheduler import Policy, plans_ahead, scheduler_for


class EngineRequest(msgspec.Struct, frozen=True):
    """A prompt and an answer of known length; `reserve_tokens`: the longest answer allowed.

    `keys` stand for the prompt's leading blocks of 16 tokens, each for its block's content and all
    before it: whoever has the same key shares the block. Only an engine with a prefix cache looks.

    Raises:
        ValueError: a length is less than 1, or the answer longer than what is reserved.
    """

    id: int
    prompt_tokens: int
    output_tokens: int
    reserve_tokens: int | None = None  # None: as long as the answer
    keys: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"request {self.id}: prompt and answer need at least one token each")
        if self.reserve_tokens is not None and self.reserve_tokens < self.output_tokens:
            raise ValueError(f"request {self.id}: the answer is longer than what is reserved")


class Step(msgspec.Struct, frozen=True):
    """What one step did; its tokens are there at `end_s`. Ids are in order of admission."""

    start_s: float
    end_s: float
    tokens: dict[int, int]  # id -> how many tokens it got
    started: tuple[int, ...] = ()  # computed for the first time in this step: left the queue
    first: tuple[int, ...] = ()  # got their first token
    finished: tuple[int, ...] = ()
    preempted: tuple[int, ...] = ()
    hits: dict[int, int] = {}  # id -> prompt tokens found in the prefix cache, when it started


class Engine:
    """One instance of an LLM server.

    The caller owns the clock: it submits requests as they come and asks for one step after the
    other, each to start no earlier than the last one ended.

    Args:
        cost: how long a step takes.
        policy: who runs in it.
        kv_tokens: tokens whose keys and values fit into memory.
        max_context_tokens: longest prompt and answer together.
        prefix_cache: whether blocks of prompts are shared and kept.
    Raises:
        ValueError: not even one block of KV fits.
    """

    def __init__(
        self,
        cost: StepCost,
        policy: Policy,
        *,
        kv_tokens: int,
        max_context_tokens: int,
        prefix_cache: bool = False,
    ) -> None:
        if kv_tokens < BLOCK_TOKENS:
            raise ValueError(f"kv_tokens {kv_tokens} are less than one block")
        self._cost = cost
        self._scheduler = scheduler_for(policy)
        self._queues = Queues(BlockPool(kv_tokens))
        self._plans_ahead = plans_ahead(policy)
        self._late: list[Sequence] = []  # came when the next step was planned already
        self._sequences: dict[int, Sequence] = {}
        self._max_context_tokens = max_context_tokens
        self._last_s = 0.0
        self.prefix_cache = prefix_cache
        self.preemptions = 0

    @property
    def running(self) -> int:
        """Sequences that hold a place in the batch."""
        return len(self._queues.running)

    @property
    def waiting(self) -> int:
        """Sequences that queue for one."""
        return len(self._queues.waiting) + len(self._late)

    @property
    def kv_used_share(self) -> float:
        return self._queues.pool.used_share

    @property
    def kv_tokens(self) -> int:
        """Room for keys and values, in whole blocks."""
        return self._queues.pool.total * BLOCK_TOKENS

    @property
    def max_context_tokens(self) -> int:
        """Longest prompt and answer together."""
        return self._max_context_tokens

    @property
    def idle(self) -> bool:
        return not self._sequences

    def submit(self, request: EngineRequest) -> str | None:
        """Queues the request; the reason where it can never be served, and then it is not queued.

        Raises:
            ValueError: a request of that id is already there.
        """
        if request.id in self._sequences:
            raise ValueError(f"request {request.id} is already in the engine")
        sequence = self._sequence(request)
        reason = self._refusal(sequence)
        if reason is None:
            self._sequences[request.id] = sequence
            queue = self._late if self._plans_ahead else self._queues.waiting
            queue.append(sequence)
        return reason

    def refusal(self, request: EngineRequest) -> str | None:
        """Why the request could never be served; None: it could."""
        return self._refusal(self._sequence(request))

    def _sequence(self, request: EngineRequest) -> Sequence:
        return Sequence(
            request.id,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            reserve_tokens=request.reserve_tokens or request.output_tokens,
            keys=request.keys if self.prefix_cache else (),
        )

    def _refusal(self, sequence: Sequence) -> str | None:
        total = sequence.prompt_tokens + sequence.reserve_tokens
        lengths = f"prompt {sequence.prompt_tokens} + answer {sequence.reserve_tokens} tokens"
        if total > self._max_context_tokens:
            return f"{lengths} are more than the model's context of {self._max_context_tokens}"
        if blocks_for(total) > self._queues.pool.total:
            return f"{lengths} are more than the {self.kv_tokens} that fit into the KV cache"
        return self._scheduler.refusal(sequence)

    def step(self, now_s: float) -> Step | None:
        """The step that starts at *now_s*; None where there is nothing to do.

        Raises:
            ValueError: the last step had not ended yet at *now_s*.
        """
        if now_s < self._last_s:
            raise ValueError(f"a step at {now_s} s, but the last one ends at {self._last_s} s")
        if not self._sequences:
            return None
        if not self._queues.running:  # no step was planned
            self._let_wait()
        batch = self._scheduler.next_batch(self._queues)
        self._let_wait()
        end_s = now_s + self._cost.step_s(batch.work())
        self._last_s = end_s
        return self._advance(batch, now_s, end_s)

    def _let_wait(self) -> None:
        """Those who came since the last plan was made are there for the next one."""
        self._queues.waiting.extend(self._late)
        self._late.clear()

    def _advance(self, batch: Batch, start_s: float, end_s: float) -> Step:
        decoded = batch.decodes
        for sequence in decoded:
            sequence.cached += 1
            sequence.generated += 1
        started: list[int] = []
        hits: dict[int, int] = {}
        first: list[int] = []
        sampled = decoded if not batch.chunks else list(decoded)
        for sequence, tokens in batch.chunks:
            if not sequence.started:
                sequence.started = True
                started.append(sequence.id)
                if sequence.hit_tokens:
                    hits[sequence.id] = sequence.hit_tokens
            whole = tokens == sequence.missing
            sequence.cached += tokens
            if whole:
                sequence.generated += 1
                sampled.append(sequence)
                if sequence.generated == 1:
                    first.append(sequence.id)
        self.preemptions += len(batch.preempted)
        return Step(
            start_s,
            end_s,
            dict.fromkeys([s.id for s in sampled], 1),
            tuple(started),
            tuple(first),
            self._finish(sampled),
            tuple([s.id for s in batch.preempted]),
            hits,
        )

    def _finish(self, sampled: list[Sequence]) -> tuple[int, ...]:
        done = [s for s in sampled if s.generated == s.output_tokens]
        for sequence in done:
            self._queues.release(sequence)
            del self._sequences[sequence.id]
        if done:
            gone = set(map(id, done))
            self._queues.running = [s for s in self._queues.running if id(s) not in gone]
        return tuple([s.id for s in done])

    def cancel(self, request_id: int) -> bool:
        """Drops the request and frees its memory; False where it is not (or no longer) there."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        self._queues.release(sequence)
        if sequence in self._queues.running:
            self._queues.running.remove(sequence)
        elif sequence in self._late:
            self._late.remove(sequence)
        else:
            self._queues.waiting.remove(sequence)
        return True

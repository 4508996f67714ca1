"""What schedulers work on: sequences, who waits and who runs, and one step's work."""

from __future__ import annotations

from collections import deque

from servecap.engine.cost import StepWork
from servecap.engine.kv import BLOCK_TOKENS, BlockPool, blocks_for


class Sequence:
    """A request inside the engine.

    `cached` tokens have their keys and values in the pool. A sequence gets its next token when
    all of `prompt_tokens + generated` have been computed; after a preemption, that means again.
    `keys` stand for the prompt's leading full blocks, as far as others may have the same;
    `held_keys` are those under which it holds a block.
    """

    __slots__ = (
        "blocks", "cached", "generated", "held_keys", "hit_tokens", "id", "keys", "named",
        "output_tokens", "prompt_tokens", "reserve_tokens", "started",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        *,
        prompt_tokens: int,
        output_tokens: int,
        reserve_tokens: int,
        keys: tuple[int, ...] = (),
    ) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.reserve_tokens = reserve_tokens  # longest answer that the server must expect
        self.keys = keys[: prompt_tokens // BLOCK_TOKENS]
        self.generated = 0
        self.cached = 0
        self.blocks = 0
        self.named = 0  # so many of its keys have been looked at
        self.held_keys: list[int] = []
        self.hit_tokens = 0  # of the prompt, found in the pool when it was let in last
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

    def known(self, sequence: Sequence) -> int:
        """Leading blocks of a waiting sequence that are in the pool; its last token never is."""
        if not sequence.keys:
            return 0
        return min(self.pool.known(sequence.keys), (sequence.missing - 1) // BLOCK_TOKENS)

    def needed(self, sequence: Sequence, tokens: int) -> int:
        """Free blocks that a waiting sequence of so many tokens takes, with those it shares."""
        known = self.known(sequence)
        return blocks_for(tokens) - known + self.pool.unheld(sequence.keys[:known])

    def admit(self, sequence: Sequence) -> None:
        """Moves the first that waits to those that run, with what is known of its prompt."""
        assert self.waiting[0] is sequence
        self.running.append(self.waiting.popleft())
        known = self.known(sequence)
        if known:
            sequence.held_keys = list(sequence.keys[:known])
            self.pool.share(sequence.held_keys)
        sequence.named = sequence.blocks = known
        sequence.cached = sequence.hit_tokens = known * BLOCK_TOKENS

    def hold(self, sequence: Sequence, tokens: int) -> bool:
        """Makes *sequence* hold blocks for *tokens* tokens; False where the pool has too few."""
        more = blocks_for(tokens) - sequence.blocks
        if more > 0:
            if not self.pool.take(more):
                return False
            sequence.blocks += more
        if sequence.named < len(sequence.keys):
            self._name(sequence, tokens)
        return True

    def _name(self, sequence: Sequence, tokens: int) -> None:
        """From now on others share the full blocks of the first *tokens* tokens."""
        upto = min(len(sequence.keys), tokens // BLOCK_TOKENS)
        new = sequence.keys[sequence.named : upto]
        sequence.held_keys += [key for key in new if self.pool.name(key)]
        sequence.named = max(sequence.named, upto)

    def release(self, sequence: Sequence) -> None:
        self.pool.give(sequence.blocks - len(sequence.held_keys), sequence.held_keys)
        sequence.blocks = sequence.named = 0
        sequence.held_keys = []

    def make_room(self, sequence: Sequence, tokens: int, batch: Batch) -> bool:
        """As `hold`, where others that are younger lose their memory for it; False: it did."""
        while not self.hold(sequence, tokens):
            victim = self._preempt_youngest()
            batch.preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _preempt_youngest(self) -> Sequence:
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

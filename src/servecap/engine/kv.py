"""The pool of KV-cache blocks that running sequences share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 16  # vLLM's and TGI's block size


def blocks_for(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


class BlockPool:
    """A fixed number of blocks; who holds how many is kept by the holders.

    A block may have a key, which stands for its content and all before it. It can be held by
    several sequences at once, and keeps its content when nobody holds it any more, until it is
    given out again: free blocks go out in the order in which they became free.

    Source: vLLM V1's block pool (vllm/v1/core/block_pool.py): reference counts, and one queue of
    free blocks from whose head the content is evicted.
    """

    def __init__(self, tokens: int) -> None:
        self.total = tokens // BLOCK_TOKENS
        self.free = self.total
        self._holders: dict[int, int] = {}  # key -> how many hold it; 0: free, content still there
        # Free blocks, first to go first: a key >= 0 is one block, another number a run of blocks.
        self._queue: OrderedDict[int, int] = OrderedDict({-1: self.total})
        self._runs = 1

    @property
    def used_share(self) -> float:
        return 1 - self.free / self.total

    def take(self, blocks: int) -> bool:
        """Takes that many blocks, or none and False where fewer are free."""
        if blocks > self.free:
            return False
        self.free -= blocks
        while blocks:
            node = next(iter(self._queue))
            count = self._queue[node]
            if count > blocks:
                self._queue[node] = count - blocks
                return True
            blocks -= count
            del self._queue[node]
            if node >= 0:
                del self._holders[node]
        return True

    def give(self, blocks: int, keys: Sequence[int] = ()) -> None:
        """Returns blocks that were taken, and lets go of those with *keys*, the last one first.

        Raises:
            ValueError: more come back than were taken.
        """
        if self.free + blocks > self.total:
            raise ValueError(f"{blocks} blocks given back, but only {self.total - self.free} out")
        if blocks:
            self._runs += 1
            self._queue[-self._runs] = blocks
            self.free += blocks
        for key in reversed(keys):
            self._holders[key] -= 1
            if self._holders[key] == 0:
                self._queue[key] = 1
                self.free += 1

    def known(self, keys: Sequence[int]) -> int:
        """How many of the leading *keys* have their content in the pool."""
        for index, key in enumerate(keys):
            if key not in self._holders:
                return index
        return len(keys)

    def unheld(self, keys: Sequence[int]) -> int:
        """How many of these known keys nobody holds: they count as free."""
        return sum([self._holders[key] == 0 for key in keys])

    def share(self, keys: Sequence[int]) -> None:
        """Holds the blocks with these known keys once more."""
        for key in keys:
            if self._holders[key] == 0:
                del self._queue[key]
                self.free -= 1
            self._holders[key] += 1

    def name(self, key: int) -> bool:
        """Gives a block that was taken the key; False where another block has it already."""
        if key in self._holders:
            return False
        self._holders[key] = 1
        return True

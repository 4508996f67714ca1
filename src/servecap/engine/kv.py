"""The pool of KV-cache blocks that running sequences share."""

from __future__ import annotations

BLOCK_TOKENS = 16  # vLLM's and TGI's block size


def blocks_for(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


class BlockPool:
    """A fixed number of blocks; who holds how many is kept by the holders."""

    def __init__(self, tokens: int) -> None:
        self.total = tokens // BLOCK_TOKENS
        self.free = self.total

    @property
    def used_share(self) -> float:
        return 1 - self.free / self.total

    def take(self, blocks: int) -> bool:
        """Takes that many blocks, or none and False where fewer are free."""
        if blocks > self.free:
            return False
        self.free -= blocks
        return True

    def give(self, blocks: int) -> None:
        """Returns blocks that were taken.

        Raises:
            ValueError: more come back than were taken.
        """
        if self.free + blocks > self.total:
            raise ValueError(f"{blocks} blocks given back, but only {self.total - self.free} out")
        self.free += blocks

"""A trace as requests: prompts of its lengths, sharing the prefixes that it says are shared."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import msgspec

from servecap import rand
from servecap.errors import UsageError
from servecap.record import Message, Request
from servecap.scenario import Replay
from servecap.workload.fixed import Fixed
from servecap.workload.traces import Row, Trace
from servecap.workload.words import Draws

_BLOCKS_KEPT = 4096
_UNIQUE_PIECES = 3


class Played(msgspec.Struct, frozen=True):
    """A row and when it is sent; `copy` is 0 but for rows that are sent more than once."""

    due_s: float
    row: Row
    copy: int


class Player(msgspec.Struct, frozen=True, kw_only=True):
    """A trace ready to be played.

    Random words stand for its prompts. With `share`, equal blocks have equal words, so that the
    server sees the trace's shared prefixes; else every prompt starts with words of its own.
    """

    trace: Trace
    scale: Replay
    words: Fixed  # its pieces and counter; its lengths are replaced by those of each row
    share: bool

    def played(self, seed: int) -> list[Played]:
        """The rows that are sent, by time: thinned or repeated by `rate_scale`."""
        rng = rand.stream(seed, "trace", "rate")
        rows, rate = self.trace.rows, self.scale.rate_scale
        played: list[Played] = []
        for i, row in enumerate(rows):
            times = int(rate) + (rng.random() < rate % 1)
            gap_s = rows[i + 1].due_s - row.due_s if i + 1 < len(rows) else 0.0
            for copy in range(times):
                late_s = gap_s * rng.random() if copy else 0.0
                played.append(Played((row.due_s + late_s) / self.scale.time_scale, row, copy))
        return sorted(played, key=lambda p: p.due_s)

    def span_s(self) -> float:
        """How long playing it takes, in seconds."""
        return self.trace.span_s / self.scale.time_scale

    def rate_rps(self, seed: int, within_s: float = math.inf) -> float:
        """Requests per second on average, in the part that is due before *within_s*.

        Raises:
            UsageError: nothing is left to send, or all at one moment.
        """
        played = [p for p in self.played(seed) if p.due_s <= within_s]
        span_s = min(within_s, self.span_s())
        if not played or span_s <= 0:
            raise UsageError(
                f"the trace has {len(played)} rows to send within {span_s:g} s: no rate can be"
                " told; use a longer part of it, or a larger --rate-scale"
            )
        return len(played) / span_s

    def requests(self, seed: int, output: int | None, *, exact: bool) -> Iterator[Request]:
        """The trace's requests in the order in which they are due.

        Args:
            output: tokens to ask for; None: those of the trace.
        """
        starts = Draws(self.words.pieces, _UNIQUE_PIECES, seed, "trace", "start")
        shared = self._shared()
        block_of = lru_cache(_BLOCKS_KEPT)(self._block)
        sessions = 1 + max((row.session or 0 for row in self.trace.rows), default=0)
        for number, played in enumerate(self.played(seed)):
            row = played.row
            if self.share and row.blocks:
                start = [p for h in row.blocks for p in block_of(seed, played.copy, h)]
            else:
                start = starts[number]
            fixed = msgspec.structs.replace(self.words, in_tokens=row.in_tokens)
            rng = rand.stream(seed, "trace", "prompt", number)
            text = fixed.text(rng, start[: row.in_tokens])
            session = row.session
            yield Request(
                request_id=number,
                messages=(Message("user", text),),
                prompt_tokens=row.in_tokens,
                max_output_tokens=row.out_tokens if output is None else output,
                exact_output=exact,
                session=None if session is None else session + played.copy * sessions,
                turn=row.turn,
                prefix_tokens=self._prefix(row, shared) if self.share else None,
                due_s=played.due_s,
            )

    def _block(self, seed: int, copy: int, block: int) -> list[str]:
        """The words of one block; a repeated row belongs to other users with other blocks."""
        rng: random.Random = rand.stream(seed, "trace", "block", copy, block)
        return rng.choices(self.words.pieces, k=self.trace.block_tokens or 0)

    def _shared(self) -> Counter[int]:
        return Counter(h for row in self.trace.rows for h in dict.fromkeys(row.blocks))

    def _prefix(self, row: Row, shared: Counter[int]) -> int | None:
        return prefix_tokens(row, shared, self.trace.block_tokens) or None


def prefix_tokens(row: Row, shared: Counter[int], block_tokens: int | None) -> int:
    """Leading tokens of the row that another row has too, by whole blocks.

    Args:
        shared: in how many rows each block occurs.
    """
    leading = 0
    for block in row.blocks:
        if shared[block] < 2:
            break
        leading += 1
    return min(row.in_tokens, leading * (block_tokens or 0))

"""Records as columns: one array for each figure, for arithmetic over all requests at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import compress
from operator import attrgetter
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from servecap import pauses
from servecap.record import Outcome, Record
from servecap.stats import Floats

Bools = npt.NDArray[np.bool_]
S = TypeVar("S", bound=np.generic)

_by_end_s = attrgetter("end_s")


class _Column(cached_property[npt.NDArray[S]]):
    """A figure of each record, by default the attribute of the same name; unknown is NaN."""

    def __init__(
        self, kind: type[S], of_all: Callable[[Sequence[Record]], npt.ArrayLike] | None = None
    ) -> None:
        def read(told: Columns) -> npt.NDArray[S]:
            if told.cut_from is not None:
                whole, chosen = told.cut_from
                column: npt.NDArray[S] = getattr(whole, str(self.attrname))[chosen]
                return column
            if of_all is not None:
                return np.asarray(of_all(told.records), dtype=kind)
            return np.array(list(map(attrgetter(str(self.attrname)), told.records)), dtype=kind)

        super().__init__(read)


class Columns:
    """Records and their figures as arrays, in the same order; unknown is NaN.

    What a figure means is said in `Record`, once. A column is read when it is first asked for and
    then held, also for all parts that are cut from these records: nobody may write to one.
    """

    user = _Column(np.float64)
    part = _Column(np.float64)
    turn = _Column(np.float64)
    attempt = _Column(np.float64)
    planned_s = _Column(np.float64)
    sent_s = _Column(np.float64)
    end_s = _Column(np.float64)
    lag_s = _Column(np.float64)
    ttft_s = _Column(np.float64)
    ttft_sent_s = _Column(np.float64)
    tpot_s = _Column(np.float64)
    e2e_s = _Column(np.float64)
    chunks = _Column(np.float64, lambda records: [len(r.chunk_s) for r in records])
    gap_max_s = _Column(np.float64, pauses.longest_gaps_s)  # NaN with fewer than two chunks
    prompt_tokens = _Column(np.float64)
    output_tokens = _Column(np.float64)
    ok = _Column(np.bool_)
    exact_output = _Column(np.bool_)
    resent = _Column(np.bool_)

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.cut_from: tuple[Columns, Bools | slice] | None = None

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def ended(self) -> Bools:
        """Whether it ended by itself: neither given up nor still running at the end."""
        return ~self._failed(lambda r: r.outcome in (Outcome.CENSORED, Outcome.CANCELLED))

    @cached_property
    def turned_away(self) -> Bools:
        return self._failed(lambda r: r.turned_away)

    @cached_property
    def made_good(self) -> Bools:
        return self.ok & (self.attempt > 1)

    def _failed(self, so: Callable[[Record], bool]) -> Bools:
        """Which of those that did not succeed, few mostly, are *so*."""
        found = np.zeros(len(self), dtype=np.bool_)
        for i in np.flatnonzero(~self.ok).tolist():
            found[i] = so(self.records[i])
        return found

    def at(self, chosen: Bools | slice) -> Columns:
        """Only the records where *chosen* is true."""
        if isinstance(chosen, slice):
            part = Columns(self.records[chosen])
        else:
            part = Columns(list(compress(self.records, chosen.tolist())))
        part.cut_from = self, chosen
        return part

    def by_end(self) -> Columns:
        """The same in the order in which they ended."""
        if (self.end_s[1:] >= self.end_s[:-1]).all():
            return self
        return Columns(sorted(self.records, key=_by_end_s))

    def once_each(self) -> Columns:
        """What failures are held against: no request counts as failed *and* as well.

        A success after a retry is left out, for its request has failed already. So a retry can
        add a failure to a share of errors, but can never make that share smaller.
        """
        return self.at(~self.made_good)


def present(values: Floats) -> Floats:
    """A copy without what is unknown."""
    return values[~np.isnan(values)]

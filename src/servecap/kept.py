"""What is held in memory of a run's records: all of them, or of a soak the latest and figures."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from servecap import sample, stats
from servecap.columns import Columns, present
from servecap.record import Outcome, Record, Times, error_kind
from servecap.run import STALL_S, Header, Run, Slice
from servecap.scenario import Scenario

SLICES = 96  # equal parts of a soak's time
LATEST = 10_000  # records of a soak that are held, fewer where they have many chunks
LATEST_CHUNKS = 2_000_000
LATEST_EACH = 4  # for every user at least, so that a window of whole cycles can be found
_UNBORN = (Outcome.CENSORED, Outcome.CANCELLED)


class Slicer:
    """Makes slices of records that come in the order in which they ended; it holds none of them."""

    def __init__(self, length_s: float, start_s: float = 0.0) -> None:
        self._length_s = length_s
        self._start_s = start_s
        self._over: list[Slice] = []
        self._open = _Figures()

    def add(self, record: Record) -> None:
        """One more request has ended."""
        if record.outcome in _UNBORN:
            return
        while record.end_s >= self._start_s + self._length_s:
            self._close()
        self._open.add(record)

    def take(self, told: Columns) -> None:
        """As `add` for each of them, which all ended by themselves."""
        at = 0
        while at < len(told):
            until = int(np.searchsorted(told.end_s, self._start_s + self._length_s))
            self._open.take(told.at(slice(at, until)))
            if until < len(told):
                self._close()
            at = until

    def _close(self) -> None:
        end_s = self._start_s + self._length_s
        self._over.append(self._open.slice(self._start_s, end_s))
        self._start_s, self._open = end_s, _Figures()

    def slices(self, end_s: float) -> tuple[Slice, ...]:
        """All that were over at *end_s*; one that was still open is not among them."""
        while self._start_s + self._length_s <= end_s * (1 + 1e-12):
            self._close()
        return tuple(self._over)


def _longest_gap_s(record: Record) -> float | None:
    if len(record.chunk_s) < 2:
        return None
    return float(np.diff(np.frombuffer(record.chunk_s)).max())


class _Figures:
    """What a slice comes to, as arrays of plain numbers."""

    def __init__(self) -> None:
        self._requests = 0
        self._errors: Counter[str] = Counter()
        self._output_tokens = 0
        self._ttft_s, self._tpot_s, self._e2e_s = Times(), Times(), Times()
        self._gap_max_s: float | None = None
        self._stalled = 0

    def add(self, record: Record) -> None:
        self._requests += not record.made_good  # see `Columns.once_each`
        if not record.ok:
            self._errors[error_kind(record)] += 1
            return
        self._output_tokens += record.output_tokens or 0
        self._e2e_s.append(record.e2e_s)
        for value, values in ((record.ttft_s, self._ttft_s), (record.tpot_s, self._tpot_s)):
            if value is not None:
                values.append(value)
        gap_s = _longest_gap_s(record)
        if gap_s is not None:
            self._gap_max_s = max(gap_s, self._gap_max_s or 0.0)
            self._stalled += gap_s > STALL_S

    def take(self, told: Columns) -> None:
        """As `add` for each of them."""
        good = told.at(told.ok)
        self._requests += len(told.once_each())
        self._errors.update(map(error_kind, told.at(~told.ok).records))
        self._output_tokens += int(np.nansum(good.output_tokens))
        self._e2e_s.frombytes(good.e2e_s.tobytes())
        self._ttft_s.frombytes(present(good.ttft_s).tobytes())
        self._tpot_s.frombytes(present(good.tpot_s).tobytes())
        gaps_s = present(good.gap_max_s)
        if len(gaps_s):
            self._gap_max_s = max(float(gaps_s.max()), self._gap_max_s or 0.0)
            self._stalled += int((gaps_s > STALL_S).sum())

    def slice(self, start_s: float, end_s: float) -> Slice:
        ttft, tpot, e2e = (
            stats.describe(np.frombuffer(values)) if values else None
            for values in (self._ttft_s, self._tpot_s, self._e2e_s)
        )
        return Slice(
            start_s=start_s,
            end_s=end_s,
            requests=self._requests,
            failed=self._errors.total(),
            errors=dict(self._errors),
            output_tokens=self._output_tokens,
            ttft_mean_s=_statistic(ttft, "mean"),
            ttft_p95_s=_statistic(ttft, "p95"),
            tpot_mean_s=_statistic(tpot, "mean"),
            tpot_p95_s=_statistic(tpot, "p95"),
            e2e_mean_s=_statistic(e2e, "mean"),
            e2e_p95_s=_statistic(e2e, "p95"),
            gap_max_s=self._gap_max_s,
            stalled=self._stalled,
        )


def _statistic(told: stats.Distribution | None, name: str) -> float | None:
    return None if told is None else told.statistic(name)


class Kept:
    """Takes a run's records one by one, live or from its file, and becomes the `Run`."""

    def __init__(self, scenario: Scenario) -> None:
        self._records: deque[Record] | list[Record] = []
        self._slicer: Slicer | None = None
        self._dropped = self._chunks = 0
        self._dropped_s = 0.0
        self._least = LATEST_EACH * (scenario.users or 0)
        stop = scenario.stop
        if stop.soak and stop.duration_s is not None:
            self._records = deque()
            self._slicer = Slicer(stop.duration_s / SLICES)

    def add(self, record: Record) -> None:
        """One more request has ended."""
        self._records.append(record)
        if self._slicer is None:
            return
        self._slicer.add(record)
        self._chunks += len(record.chunk_s)
        assert isinstance(self._records, deque)
        while self._too_many():
            gone = self._records.popleft()
            self._chunks -= len(gone.chunk_s)
            self._dropped += 1
            self._dropped_s = max(self._dropped_s, gone.end_s)

    def _too_many(self) -> bool:
        held = len(self._records)
        most = max(self._least, LATEST)
        return held > most or (self._chunks > LATEST_CHUNKS and held > max(self._least, 1))

    def latest(self) -> tuple[Sequence[Record], float]:
        """The records that are held, and since when they are all that ended."""
        return self._records, self._dropped_s

    def run(self, header: Header, path: str) -> Run:
        """The run with these records, and what was seen around it by now."""
        return Run(
            header=header,
            records=list(self._records),
            path=path,
            slices=() if self._slicer is None else self._slicer.slices(header.load_end_s or 0.0),
            telemetry=sample.read(Path(path)),
            dropped=self._dropped,
        )

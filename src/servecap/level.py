"""One level of a load: a run's records, folder, stop rule, and its own zero of time."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from servecap import __version__, process, steady
from servecap.errors import DiskError
from servecap.kept import Kept
from servecap.record import NOT_SENT, Arrival, Outcome, Record, Times
from servecap.run import Header, Health, Run, Status
from servecap.scenario import ClosedLoop, Load, OpenLoop, Scenario
from servecap.store import Later, RunWriter

if TYPE_CHECKING:
    from servecap.preflight import Prepared
    from servecap.telemetry import Sampler


def header_of(scenario: Scenario, prepared: Prepared, workload_note: str) -> Header:
    """What is known of a run before its first request."""
    return Header(
        scenario=scenario,
        target=prepared.target,
        source="measured",
        servecap_version=__version__,
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        workload_note=workload_note,
        environment=process.environment(),
        notes=prepared.notes,
        command=prepared.command,
    )


class Level:
    """Takes the records of one run while the load lives, and becomes the `Run`.

    Times given to it are the load's own; `zero_s` is when the level began on that clock, and all
    that it keeps counts from there. So a request that was sent under the load before it has times
    below 0.
    """

    def __init__(
        self,
        header: Header,
        out: Path,
        ended: asyncio.Future[None],
        sampler: Sampler | None = None,
    ) -> None:
        """
        Raises:
            UsageError: *out* cannot be written.
        """
        self.scenario = header.scenario
        self.ended = ended
        self.zero_s = 0.0
        self.status = Status.COMPLETE
        self.stop_reason: str | None = None
        self.load_end_s: float | None = None
        self.health = Health()
        self.notes: list[str] = []
        self._header = header
        self.out = out
        self._writer = RunWriter(out, header)
        self._sampler = sampler
        if sampler is not None:
            stop = header.scenario.stop
            sampler.into(out, stop.duration_s or stop.max_duration_s)
        self._enough = steady.Enough(header.scenario)
        self.kept = Kept(header.scenario)

    def add(self, record: Record) -> None:
        """One request has ended.

        Raises:
            DiskError: it could not be stored.
        """
        record = shifted(record, self.zero_s)
        self._writer.add(record)
        self.kept.add(record)
        if self.load_end_s is None:
            self._enough.note(record)

    def came(self, arrival: Arrival) -> None:
        """One request is sent."""
        self._enough.came(arrival.planned_s - self.zero_s)

    def enough(self, now_s: float) -> str | None:
        """Why the level may end now; None: it must go on."""
        return self._enough.reason(now_s - self.zero_s)

    def stop(self, now_s: float, reason: str) -> None:
        """The load's part of the level is over; what ends later belongs to the drain.

        Only the first time counts.
        """
        if self.load_end_s is not None:
            return
        self.stop_reason = reason
        self.load_end_s = now_s - self.zero_s

    def given_up(self) -> bool:
        """Whether its load was far beyond what the SLO allows, so that it was ended early."""
        return self.stop_reason is not None and self.stop_reason.startswith(steady.GIVEN_UP)

    def run(self) -> Run:
        """The level as it is stored.

        Raises:
            DiskError: the disk is full; the records are kept.
        """
        header = msgspec.structs.replace(
            self._header,
            status=self.status,
            stop_reason=self.stop_reason,
            load_end_s=self.load_end_s,
            health=self.health,
            notes=(*self._header.notes, *self.notes),
        )
        self._look_no_more()
        try:
            self._writer.close(header)
        except OSError as error:
            raise DiskError(
                f"cannot finish {str(self.out)!r} ({error.strerror}): the records in it are kept"
            ) from None
        return self.kept.run(header, str(self.out))

    def broken(self) -> None:
        """The program ends in the middle of it: what was measured is marked as a part."""
        self._look_no_more()
        with contextlib.suppress(OSError):
            self._writer.close(msgspec.structs.replace(self._header, status=Status.PARTIAL))

    def _look_no_more(self) -> None:
        if self._sampler is not None:
            self._sampler.rest()


class Between:
    """What ends after one level and before the next, whose it is; it waits in the folder of *last*.

    So a search that is killed between two levels has lost nothing either.
    """

    def __init__(self, last: Level | None = None) -> None:
        self._records: list[Record] = []
        self._zero_s = 0.0 if last is None else last.zero_s
        self._later = None if last is None else Later(last.out)

    def add(self, record: Record) -> None:
        """One request has ended.

        Raises:
            DiskError: it could not be stored.
        """
        self._records.append(record)
        if self._later is not None:
            self._later.add(shifted(record, self._zero_s))

    def into(self, level: Level) -> None:
        """The next level begins with them.

        Raises:
            DiskError: they could not be stored there; they stay where they wait.
        """
        try:
            for record in self._records:
                level.add(record)
        except DiskError:
            self.close(keep=True)
            raise
        self.close()

    def close(self, *, keep: bool = False) -> None:
        """They are in the next level, or there is none, and they are nobody's.

        With *keep* their file stays, for the disk is full and they may be nowhere else.
        """
        self._records = []
        if self._later is not None:
            self._later.close(keep=keep)


def shifted(record: Record, zero_s: float) -> Record:
    """The record with all its times counted from *zero_s*."""
    if not zero_s:
        return record

    def moved(at_s: float | None) -> float | None:
        return None if at_s is None else at_s - zero_s

    return msgspec.structs.replace(
        record,
        planned_s=record.planned_s - zero_s,
        sent_s=record.sent_s - zero_s,
        end_s=record.end_s - zero_s,
        first_token_s=moved(record.first_token_s),
        last_token_s=moved(record.last_token_s),
        first_planned_s=moved(record.first_planned_s),
        chunk_s=Times(at_s - zero_s for at_s in record.chunk_s),
    )


def cut_off(arrival: Arrival, now_s: float) -> Record:
    """A request that goes on into the next level, as the one that it was sent in sees it.

    It was in flight there to the end, and nothing more is known of it; its answer is kept where
    it ends.
    """
    return Record(
        request_id=arrival.request.request_id,
        user=arrival.user,
        planned_s=arrival.planned_s,
        sent_s=arrival.planned_s,
        end_s=now_s,
        outcome=Outcome.CENSORED,
        session=arrival.request.session,
        turn=arrival.request.turn,
        part=arrival.request.part,
        attempt=arrival.attempt,
        first_planned_s=arrival.first_planned_s,
    )


def turned_away(arrival: Arrival, now_s: float, ceiling: int) -> Record:
    """Too many are in flight: this arrival has failed; it is never sent late instead."""
    return Record(
        request_id=arrival.request.request_id,
        user=arrival.user,
        planned_s=arrival.planned_s,
        sent_s=now_s,
        end_s=now_s,
        outcome=Outcome.REFUSED,
        error=f"{NOT_SENT} {ceiling} requests were in flight already",
        session=arrival.request.session,
        turn=arrival.request.turn,
        part=arrival.request.part,
        attempt=arrival.attempt,
        first_planned_s=arrival.first_planned_s,
    )


def gone_on(scenario: Scenario, before: Load | None) -> Scenario:
    """The scenario as it is measured where the load goes on from *before*."""
    match scenario.load, before:
        case (ClosedLoop() as load, ClosedLoop()):
            going: Load = msgspec.structs.replace(load, users_before=before.users)
        case (OpenLoop() as load, OpenLoop()):
            going = msgspec.structs.replace(load, rate_before_rps=before.rate_rps)
        case _:
            return scenario
    return msgspec.structs.replace(scenario, load=going)

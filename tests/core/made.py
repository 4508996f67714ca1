"""Records and runs made by hand, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from servecap.record import Outcome, Record, ServerTimings, Times, TokenSource
from servecap.run import Header, Run, Source, Status
from servecap.scenario import ClosedLoop, OpenLoop, Scenario, StopRule, Target, Timings
from servecap.slo import Slo, parse


def record(
    end_s: float,
    *,
    e2e_s: float = 1.0,
    ttft_s: float | None = 0.2,
    outcome: Outcome = Outcome.OK,
    user: int = 0,
    number: int = 0,
    tokens: int = 11,
    server: ServerTimings | None = None,
) -> Record:
    """A request that ended at *end_s*, streamed as two chunks unless it has no first token."""
    planned_s = end_s - e2e_s
    first_s = None if ttft_s is None else planned_s + ttft_s
    return Record(
        request_id=number,
        user=user,
        planned_s=planned_s,
        sent_s=planned_s,
        end_s=end_s,
        outcome=outcome,
        first_token_s=first_s,
        chunk_s=Times() if first_s is None else Times([first_s, end_s]),
        prompt_tokens=5,
        output_tokens=tokens,
        token_source=TokenSource.SERVER,
        server=server,
    )


def records(
    values: Sequence[float], *, every_s: float = 0.1, failed: Sequence[int] = ()
) -> list[Record]:
    """One record per TTFT in *values*, ending *every_s* after each other."""
    return [
        record(
            (i + 1) * every_s + 10,
            e2e_s=v + 1.0,
            ttft_s=v,
            number=i,
            outcome=Outcome.TIMEOUT if i in failed else Outcome.OK,
        )
        for i, v in enumerate(values)
    ]


def scenario(
    slo: str | Slo = "ttft.mean<1s",
    *,
    load: ClosedLoop | OpenLoop | None = None,
    stop: StopRule | None = None,
    timings: Timings = "client",
) -> Scenario:
    return Scenario(
        load=load or ClosedLoop(users=4),
        slo=parse(slo) if isinstance(slo, str) else slo,
        stop=stop or StopRule(),
        timings=timings,
    )


def run(
    found: list[Record],
    asked: Scenario,
    *,
    end_s: float | None = None,
    source: Source = "measured",
    status: Status = Status.COMPLETE,
) -> Run:
    return Run(
        header=Header(
            scenario=asked,
            target=Target(url="http://x", api="openai-chat"),
            source=source,
            servecap_version="0",
            started_utc="2026-01-01T00:00:00+00:00",
            status=status,
            load_end_s=end_s,
        ),
        records=found,
    )

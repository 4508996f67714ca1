"""A closed loop played out by arithmetic: deterministic runs of any size, with every outcome."""

from __future__ import annotations

import heapq
import random

from servecap.record import Counts, Outcome, Record, ServerTimings, Times, TokenSource
from servecap.run import Header, Health, Run, Source, Status
from servecap.scenario import ClosedLoop, OpenLoop, Scenario, StopRule, Target, Timings
from servecap.slo import parse

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\x00 \"'&`{{7*7}}</style> $x_1$"


def run(
    *,
    users: int = 64,
    end_s: float = 60.0,
    error_share: float = 0.03,
    slo: str = "ttft.mean<3s,tpot.mean<100ms",
    seed: int = 0,
    source: Source = "measured",
    server: bool = False,
    timings: Timings = "client",
    streamed: bool = True,
    text: str = "",
    tokens: int = 120,
    tpot_s: float = 0.045,
    status: Status = Status.COMPLETE,
    token_source: TokenSource = TokenSource.SERVER,
    load: ClosedLoop | OpenLoop | None = None,
) -> Run:
    """N users for *end_s* seconds against a server whose times rise with the users in flight.

    Args:
        text: put into every place that a server or a prompt can write to.
    """
    rng = random.Random(seed)
    records: list[Record] = []
    due = [(user * 4.0 / users, user) for user in range(users)]
    number = 0
    while due:
        planned_s, user = heapq.heappop(due)
        if planned_s >= end_s:
            break
        record = _record(
            rng, number, user, planned_s, users, end_s, error_share, server, streamed, text,
            tokens, tpot_s, token_source,
        )  # fmt: skip
        number += 1
        records.append(record)
        heapq.heappush(due, (record.end_s + rng.uniform(1, 3), user))
    header = Header(
        scenario=Scenario(
            load=load or ClosedLoop(users=users),
            slo=parse(slo),
            stop=StopRule(duration_s=end_s),
            timings=timings,
            seed=seed,
        ),
        target=Target(
            url="http://127.0.0.1:8000",
            api="openai-chat",
            model="llama-13b" + text,
            stream=streamed,
            server=text or None,
        ),
        source=source,
        servecap_version="0.1.0",
        started_utc="2026-11-14T09:30:00Z",
        status=status,
        stop_reason=f"{end_s:g} s passed" + text,
        load_end_s=end_s,
        health=Health(
            loop_delay_p99_s=0.0021, loop_delay_max_s=0.0115, cpu_share=0.31, rss_bytes=81 << 20
        )
        if source == "measured"
        else Health(),
        workload_note="250 prompts" + text,
        environment={"cpu": "2 cores", "python": "3.11" + text},
        notes=(text,) if text else (),
    )
    return Run(header=header, records=sorted(records, key=lambda r: r.end_s), path="runs/0001")


def _record(
    rng: random.Random,
    number: int,
    user: int,
    planned_s: float,
    users: int,
    cut_s: float,
    error_share: float,
    server: bool,
    streamed: bool,
    text: str,
    tokens: int,
    tpot_s: float,
    token_source: TokenSource,
) -> Record:
    sent_s = planned_s + rng.expovariate(1 / 0.0004)
    prompt = int(min(900, 20 + rng.lognormvariate(3.6, 0.8)))
    queue_s = rng.expovariate(1 / (0.002 * users))
    prefill_s = 0.02 + prompt * 0.0006
    first_s = sent_s + queue_s + prefill_s
    fails = rng.random() < error_share
    if fails and rng.random() < 0.6:
        refused = rng.random() < 0.4
        return Record(
            request_id=number, user=user, planned_s=planned_s, sent_s=sent_s,
            end_s=sent_s + rng.uniform(0.01, 0.3),
            outcome=Outcome.REFUSED if refused else Outcome.HTTP_ERROR,
            status=None if refused else 503, error="overloaded" + text,
        )  # fmt: skip
    out = max(1, int(rng.gauss(tokens, tokens / 4)))
    step_s = tpot_s * rng.uniform(0.85, 1.2)
    times = [first_s + i * step_s for i in range(out)]
    outcome = Outcome.OK
    if fails:
        times = times[: out // 2 + 1]
        outcome = Outcome.BROKEN_STREAM
    if times[-1] > cut_s:
        times = [t for t in times if t <= cut_s]
        outcome = Outcome.CENSORED
    got_first = bool(times)
    return Record(
        request_id=number,
        user=user,
        planned_s=planned_s,
        sent_s=sent_s,
        end_s=cut_s if outcome is Outcome.CENSORED else times[-1],
        outcome=outcome,
        first_token_s=times[0] if got_first and streamed else None,
        chunk_s=Times(times if streamed else ()),
        chunk_tokens=Counts([1] * len(times) if streamed else ()),
        prompt_tokens=prompt,
        output_tokens=len(times) if outcome is Outcome.OK else None,
        token_source=token_source,
        server=ServerTimings(
            origin="x-*-time headers" + text,
            queue_s=queue_s,
            prefill_s=prefill_s,
            inference_s=times[-1] - first_s + prefill_s,
            tpot_s=step_s,
        )
        if server and outcome is Outcome.OK
        else None,
        status=200,
        finish_reason=text or "length",
    )

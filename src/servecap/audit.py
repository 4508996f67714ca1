"""Whether a run's numbers can be believed: each reason against is told in one line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from servecap import steady
from servecap.columns import Columns
from servecap.metrics import Summary, Verdict
from servecap.record import Record, TokenSource, last_tries
from servecap.run import Run
from servecap.scenario import ClosedLoop, OpenLoop

LAG_P99_MAX_S = 0.020  # later than this and the client, not the server, shapes the arrivals
LOOP_DELAY_P99_MAX_S = 0.050
CPU_SHARE_MAX = 0.90
CACHED_SHARE_MAX = 0.20
OUTPUT_SHORT_SHARE = 0.90
RATE_LIMITED_SHARE_MAX = 0.01
BURSTS_TOLD = 3
NOT_STATIONARY = "not stationary"
CLOCK_S = 0.001  # kernel stamps are converted between clocks: so much may times be out of order


def audit(run: Run, summary: Summary, told: Columns) -> tuple[list[str], list[str]]:
    """Reasons why the run is INVALID, and warnings that leave it valid.

    Args:
        summary: the run's figures.
        told: the run's records, in the order in which they ended.
    """
    inside = steady.counted(told, summary.window)
    if not len(inside):
        return [_empty(summary)], []
    change = _drift(run, summary, told)
    unsettled = [*_drifts(change), *_little(run, summary)]
    rising = change is not None and change > 0 and summary.verdict is Verdict.FAIL
    growing = summary.flow is not None and summary.flow.state == "growing"
    if rising or growing or steady.given_up(summary.window):
        # What fails now and still gets slower fails in steady state all the more.
        unsettled = []
    reasons = [
        *_client_limited(run, summary),
        *_population(run, summary, told, inside),
        *unsettled,
        *_limited(summary),
        *_answers(run, inside),
        *_timings(run, summary),
    ]
    return reasons, _warnings(run, summary, inside)


def _empty(summary: Summary) -> str:
    censored = summary.requests_censored
    running = f" ({censored} were still running)" if censored else ""
    return (
        f"no request ended in the measured window{running}: run longer "
        f"(--duration, now {summary.window.end_s:.0f} s), or with {_less(summary)}"
    )


def _less(summary: Summary) -> str:
    return "a lower rate" if summary.users is None else "fewer users"


def _client_limited(run: Run, summary: Summary) -> list[str]:
    if run.header.source == "simulated":
        return []
    found: list[str] = []
    lag = summary.client.get("lag")
    if lag is not None and lag.p99 > LAG_P99_MAX_S:
        found.append(f"requests were sent {lag.p99 * 1e3:.0f} ms late (p99, bound 20 ms)")
    if run.header.source == "imported":
        return [f"client_limited: by the other tool's own times {found[0]}"] if found else []
    health = run.header.health
    if health.loop_delay_p99_s is not None and health.loop_delay_p99_s > LOOP_DELAY_P99_MAX_S:
        found.append(f"the event loop ran {health.loop_delay_p99_s * 1e3:.0f} ms late (p99)")
    if health.cpu_share is not None and health.cpu_share > CPU_SHARE_MAX:
        found.append(f"the client used {health.cpu_share:.0%} of a core")
    clocks = [
        f"the clock of node {node.name} is known to ±{wrong_s * 1e3:.0f} ms only (bound 20 ms)"
        for node in health.nodes
        if (wrong_s := node.error_s + abs(node.drift_s or 0.0)) > LAG_P99_MAX_S
    ]
    found += clocks
    lost = [] if health.failure is None else [f"client_failed: {health.failure}: run again"]
    if not found:
        return lost
    return [
        *lost,
        f"client_limited: {'; '.join(found)}. Give the client more processes (--workers, now "
        f"{health.processes}), more CPU or a machine of its own, or {_less(summary)}",
    ]


def _population(run: Run, summary: Summary, told: Columns, inside: Columns) -> list[str]:
    load = run.scenario.load
    if not isinstance(load, ClosedLoop) or not summary.requests_ok:
        return []  # where all fail, more of them would not change that
    wanted = load.queue if load.each is None else load.users * load.each
    if wanted is not None:
        ended = len(last_tries(inside.records, run.scenario.retries))
        if ended == wanted:
            return []
        return [
            f"only {ended} of the {wanted} requests had ended when the run did: "
            "classic figures are over all of them"
        ]
    if run.dropped:
        return []  # when they started is no longer held
    seen, asked = len(steady.joined(told, load)), steady.newcomers(load)
    if seen < asked:
        new = "" if load.users_before is None else "new "
        return [
            f"only {seen} of {asked} {new}users had started when the load ended "
            f"at {summary.window.end_s:.0f} s: run longer, or set a shorter --ramp"
        ]
    return []


def _drift(run: Run, summary: Summary, told: Columns) -> float | None:
    load = run.scenario.load
    if isinstance(load, ClosedLoop) and (load.queue is not None or load.each is not None):
        return None  # a burst and a drain are never stationary: that is what was asked for
    if isinstance(load, OpenLoop) and not load.stationary:
        return None  # the load itself changes, and the answers with it
    return steady.slo_drift(told, summary.window, run.scenario)


def _drifts(change: float | None) -> list[str]:
    if change is None:
        return []
    way = "rose" if change > 0 else "fell"
    return [
        f"{NOT_STATIONARY}: the response time (or a limited part of it) {way} by {abs(change):.0%} "
        "from the first half of the window to the second: run longer, or with less load"
    ]


def _little(run: Run, summary: Summary) -> list[str]:
    """Little's law: users = requests/s x (response + think), failures included."""
    load = run.scenario.load
    if not isinstance(load, ClosedLoop) or load.queue is not None or load.each is not None:
        return []
    e2e = summary.client.get("e2e")
    if e2e is None or summary.error_rate > 0.01:
        return []  # failed requests hold a user for times of their own
    implied = steady.little_gap(run.scenario, summary.qps, e2e.mean, summary.requests)
    if implied is None:
        return []
    return [
        f"Little's law does not hold: {summary.qps:.3g} requests/s x "
        f"({e2e.mean:.3g} s response + think) is {implied:.1f} users, not {load.users}: "
        "the load was not steady; run longer"
    ]


def _limited(summary: Summary) -> list[str]:
    """A server that turns requests away by a rule of its own was not measured, its rule was."""
    share = summary.errors.get("http_429", 0) / summary.requests if summary.requests else 0.0
    if share <= RATE_LIMITED_SHARE_MAX:
        return []
    return [
        f"rate limited: {share:.0%} of the requests were answered with 429: the endpoint's own "
        "limit was met, not its capacity; raise that limit, or ask for a higher one"
    ]


def _answers(run: Run, inside: Columns) -> list[str]:
    found: list[str] = []
    good = inside.at(inside.ok)
    prompt = int(np.nansum(good.prompt_tokens))
    cached = sum(r.cached_tokens or 0 for r in good.records)
    # Later turns begin with the history: that is taken from the cache by right.
    alike = not run.scenario.workload.unique or inside.turn.any()
    if not alike and prompt and cached / prompt > CACHED_SHARE_MAX:
        found.append(
            f"the server took {cached / prompt:.0%} of the prompt tokens from its prefix cache, "
            "though all prompts differ: restart it, switch its cache off, or measure caching "
            "on purpose with --repeat-prompts"
        )
    exact = good.at(good.exact_output & ~np.isnan(good.output_tokens))
    asked = sum(r.asked_output_tokens or 0 for r in exact.records)
    got = int(exact.output_tokens.sum())
    if asked and got / asked < OUTPUT_SHORT_SHARE:
        found.append(
            f"answers were shorter than asked: {got / len(exact):.0f} tokens of "
            f"{asked / len(exact):.0f} on average: this server does not honour exact lengths; "
            "use --output natural to test with its own"
        )
    return found


def _timings(run: Run, summary: Summary) -> list[str]:
    if run.scenario.timings == "server" and not summary.server:
        return [
            "--timings server was asked for, but the server told none: use --timings client, "
            "or --no-stream with TGI"
        ]
    return []


def _warnings(run: Run, summary: Summary, inside: Columns) -> list[str]:
    found: list[str] = []
    if run.header.source == "imported":
        found.append(
            f"imported from {run.header.imported_from}: whether that tool's client kept up is not "
            "known"
        )
    good = inside.at(inside.ok)
    estimated = summary.token_sources.get(TokenSource.ESTIMATE, 0)
    if estimated:
        found.append(
            f"token counts of {estimated} of {len(good)} requests are estimates: TPOT and tokens/s "
            "are too; give --tokenizer FILE"
        )
    short = int((good.chunks > np.nan_to_num(good.output_tokens)).sum())
    if short:
        found.append(
            f"{short} of {len(good)} answers have fewer tokens than chunks, which cannot be: the "
            "server's counts are wrong, and TPOT and tokens/s with them"
        )
    resent = int(inside.resent.sum())
    if resent:
        found.append(
            f"{resent} requests were sent again over a fresh connection, for the server had closed "
            "the kept-open one without an answer: it closes idle connections early, or dropped them"
        )
    load = run.scenario.load
    if isinstance(load, ClosedLoop) and load.queue is not None:
        found.append(_tail(run, summary))
    found += [*_over_saturated(summary), *_course(run, summary)]
    if run.header.status != "complete":
        found.append(f"the run is {run.header.status}: it ended before it had enough requests")
    return found


def _over_saturated(summary: Summary) -> list[str]:
    """A queue that grows is told from a server that is slow."""
    flow = summary.flow
    if flow is None or flow.state != "growing":
        return []
    return [
        f"over-saturated: the queue grows without bound at {flow.arrived_rps:.3g} requests/s: the "
        f"server answers {flow.answered_rps:.3g}/s; latencies are those of the time until now"
    ]


def _course(run: Run, summary: Summary) -> list[str]:
    """What happened in the run's time that its figures do not show."""
    found: list[str] = []
    course = summary.stability
    if run.dropped:
        window = summary.window
        found.append(
            f"soak: the figures are of the last {window.end_s - window.start_s:,.0f} s; "
            f"{run.dropped:,} earlier requests are in the records and under Stability"
        )
    if course is None:
        return found
    found += [
        f"errors came in a burst from {b.start_s:,.0f} to {b.end_s:,.0f} s: "
        f"{b.failed} of {b.requests} requests failed"
        for b in course.bursts[:BURSTS_TOLD]
    ]
    if run.dropped:
        found += [
            f"over all the time {limit.metric}.{limit.statistic} was above its limit in "
            f"{over} of {len(course.slices)} parts"
            for limit in run.scenario.slo.limits
            if (over := steady.parts_over(limit, course.slices))
        ]
    return found


def _tail(run: Run, summary: Summary) -> str:
    """What the drain of a fixed queue costs: requests/s while all users were busy, and over all."""
    sent_last_s = max((r.sent_s for r in run.records), default=0.0)
    before = sum(r.ok and r.end_s <= sent_last_s for r in run.records)
    share = 1 - sent_last_s / summary.window.end_s if summary.window.end_s else 0.0
    text = f"classic queue: the last {share:.0%} of the time was drain (nobody sent)"
    if sent_last_s > 0 and before:
        text += f"; until then {before / sent_last_s:.3g} requests/s, over all {summary.qps:.3g}"
    return text


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A relation that must hold between figures of one run, and whether it does."""

    name: str
    said: str
    holds: bool


def identities(run: Run, summary: Summary) -> tuple[Identity, ...]:
    """The relations between a run's figures, each from figures that were come by differently."""
    inside = steady.counted(run.columns, summary.window)
    good = [r for r in inside.records if r.ok]
    found = [_times_in_order(run.records), _requests_add_up(summary)]
    e2e = summary.client.get("e2e")
    load = run.scenario.load
    allowed = max(steady.LITTLE_SHARE, steady.LITTLE_NOISE / math.sqrt(max(1, len(inside))))
    if e2e is not None and isinstance(load, ClosedLoop) and load.queue is None and not load.each:
        cycle_s = e2e.mean + load.think_mean_s
        found.append(
            _equal("users = requests/s x (response + think)", load.users, summary.qps * cycle_s,
                   allowed)
        )  # fmt: skip
    if e2e is not None and summary.error_rate == 0:
        found.append(
            _equal("requests in flight = requests/s x response", summary.in_flight_mean,
                   summary.qps * e2e.mean, allowed)
        )  # fmt: skip
    tokens = summary.client.get("output_tokens")
    if tokens is not None and len(good) == tokens.n and summary.qps > 0:
        found.append(
            _equal("tokens/s = requests/s x tokens per answer", summary.output_tps,
                   summary.qps * tokens.mean, 1e-6)
        )  # fmt: skip
    found.append(_tokens_add_up(good))
    return tuple(found)


def _equal(name: str, one: float, other: float, allowed: float) -> Identity:
    gap = abs(one - other) / max(abs(one), abs(other), 1e-12)
    said = f"{one:.4g} against {other:.4g} ({gap:.1%} apart, {allowed:.1%} allowed)"
    return Identity(name=name, said=said, holds=gap <= allowed)


def _times_in_order(records: Sequence[Record]) -> Identity:
    """planned <= sent <= first token <= chunks <= end, for every request."""
    wrong = 0
    for r in records:
        times = [r.planned_s, r.sent_s, *r.chunk_s, r.end_s]
        if r.first_token_s is not None:
            times.insert(2, r.first_token_s)
        wrong += any(b < a - CLOCK_S for a, b in itertools.pairwise(times))
    said = f"{len(records) - wrong} of {len(records)} requests"
    return Identity(name="planned, sent, first token, end in order", said=said, holds=wrong == 0)


def _requests_add_up(summary: Summary) -> Identity:
    failed = sum(summary.errors.values())
    said = f"{summary.requests} = {summary.requests_ok} + {failed}"
    holds = summary.requests == summary.requests_ok + failed
    return Identity(name="requests = successes + failures", said=said, holds=holds)


def _tokens_add_up(good: Sequence[Record]) -> Identity:
    """No answer may have fewer tokens than chunks: a chunk with output carries at least one."""
    told = [r for r in good if r.output_tokens is not None and r.chunk_s]
    wrong = sum(len(r.chunk_s) > (r.output_tokens or 0) for r in told)
    said = f"{len(told) - wrong} of {len(told)} answers"
    return Identity(name="tokens >= chunks with output", said=said, holds=wrong * 100 <= len(told))

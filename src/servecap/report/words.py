"""The verdict of a run in sentences: one to quote, one for a person who has never heard of TTFT.

Nothing is judged here: every verdict is read from the `Summary`.
"""

from __future__ import annotations

import math

import msgspec

from servecap import schedule, verdict
from servecap.metrics import Flow, LimitCheck, Summary, Verdict
from servecap.report import units
from servecap.run import Run, Status
from servecap.scenario import ClosedLoop, Exponential, Load, Lognormal, Measured, OpenLoop
from servecap.slo import Slo
from servecap.stats import Distribution

Tone = str  # "pass", "fail", "unsure" or "invalid": how a badge is coloured

SIMULATED = "Simulated: predicted by the engine model, not measured."
IMPORTED = "Imported: another tool measured it, and whether its client kept up is not known."
_ORIGINS = {"simulated": SIMULATED, "imported": IMPORTED}


class Headline(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict, first thing read."""

    badge: str  # "VALID PASS", "INVALID", ...
    tone: Tone
    plain: str  # for a manager
    quote: str  # for an engineer
    todo: tuple[str, ...] = ()  # reasons, and what to do


def headline(run: Run, summary: Summary) -> Headline:
    """What the run says, in one sentence for each kind of reader."""
    if not summary.valid:
        return Headline(
            badge="INVALID",
            tone="invalid",
            plain=f"This test of {_users_phrase(run)} ran, but its numbers cannot be believed.",
            quote=f"INVALID: no figure of this run ({load_phrase(run.scenario.load)},"
            f" {target_name(run)}) can be quoted.",
            todo=(
                *(f"Reason: {units.clean(reason)}" for reason in summary.invalid_reasons),
                "The figures below are printed to find the cause, not to be used.",
            ),
        )
    return Headline(
        badge=_badge(run, summary),
        tone=summary.verdict.value,
        plain=_plain(run, summary),
        quote=_quote(run, summary),
        todo=_todo(run, summary),
    )


def _badge(run: Run, summary: Summary) -> str:
    """What was measured by another tool is never called VALID: its client is not known."""
    said = summary.verdict.value.upper()
    match run.header.source:
        case "imported":
            return f"IMPORTED, {said}"
        case "simulated":
            return f"VALID, {said} (simulated)"
        case "measured":
            return f"VALID, {said}"


def with_origin(text: str, run: Run) -> str:
    """The text with what is to be said of figures that servecap did not measure."""
    origin = _ORIGINS.get(run.header.source)
    return text if origin is None else f"{text} {origin}"


def _plain(run: Run, summary: Summary) -> str:
    who = _users_phrase(run)
    match summary.verdict:
        case Verdict.PASS:
            what = f"The service carried {who} within its targets"
        case Verdict.FAIL:
            what = f"The service did not carry {who} within its targets"
        case Verdict.UNSURE:
            what = f"The test could not tell whether the service carries {who} within its targets"
    felt = _felt(run, summary)
    text = f"{what}: {felt}." if felt else f"{what}."
    return with_origin(text, run)


def _felt(run: Run, summary: Summary) -> str:
    clock = _latencies(run, summary)
    parts = []
    if ttft := clock.get("ttft"):
        parts.append(f"on average an answer began after {units.spoken(ttft)}")
    if tpot := clock.get("tpot"):
        parts.append(f"then flowed at {units.count(1 / tpot, 0)} tokens a second")
    if summary.requests:
        parts.append(
            "no request failed"
            if summary.error_rate == 0
            else f"{units.share(summary.error_rate)} of the requests failed"
        )
    return units.listed(parts)


def _latencies(run: Run, summary: Summary) -> dict[str, float]:
    """Mean TTFT and TPOT by the clock that judges, else by whichever knows them."""
    found: dict[str, float] = {}
    for metric in ("ttft", "tpot"):
        told = distribution(run, summary, metric)
        value = told.mean if told else None
        if value is not None and math.isfinite(value) and value > 0:
            found[metric] = value
    return found


def distribution(run: Run, summary: Summary, metric: str) -> Distribution | None:
    """A metric by the clock that judges, else by the other one."""
    first, second = summary.client, summary.server
    if run.scenario.timings == "server":
        first, second = second, first
    return first.get(metric) or second.get(metric)


def _quote(run: Run, summary: Summary) -> str:
    slo = slo_text(run.scenario.slo)
    target = target_name(run)
    load = load_phrase(run.scenario.load)
    match summary.verdict:
        case Verdict.PASS:
            what = f"At {load}, {target} keeps {slo}"
        case Verdict.FAIL:
            what = f"At {load}, {target} breaks {_named(run, summary, Verdict.FAIL)}"
        case Verdict.UNSURE:
            open_ones = _named(run, summary, Verdict.UNSURE)
            what = f"At {load}, it is undecided whether {target} keeps {open_ones}"
    figures = [_figure(check) for check in summary.checks]
    figures.append(f"error rate {units.share(summary.error_rate)}" if summary.requests else "")
    figures.append(f"{units.count(summary.qps)} QPS")
    figures.append(f"{units.count(summary.output_tps)} output TPS")
    length_s = summary.window.end_s - summary.window.start_s
    over = f"over {units.number_word(summary.requests, 'request')} in {units.clock(length_s)}"
    text = f"{what}: {', '.join(f for f in figures if f)}; {over}."
    return with_origin(text, run)


def _named(run: Run, summary: Summary, said: Verdict) -> str:
    """The limits with that verdict, as the SLO writes them."""
    names = [str(c.limit) for c in summary.checks if c.verdict is said]
    if errors(run, summary)[0] is said:
        names.append(f"error_rate<{run.scenario.slo.error_share_max * 100:g}%")
    return units.listed(names)


def errors(run: Run, summary: Summary) -> tuple[Verdict, int | None, str]:
    """The verdict on the share of errors, requests that would settle it, and why, in words."""
    failed = summary.requests - summary.requests_ok
    return verdict.check_errors(run.scenario.slo, summary.requests - summary.retries_ok, failed)


def _figure(check: LimitCheck) -> str:
    name = f"{units.SHORT.get(check.limit.metric, check.limit.metric)} {check.limit.statistic}"
    if check.value_s is None or not math.isfinite(check.value_s):
        return f"{name} n/a"
    unit = units.time_unit(check.value_s)
    inside = interval(check, unit)
    return f"{name} {unit.text(check.value_s)}" + (
        f" ({inside})" if inside != units.UNKNOWN else ""
    )


def interval(check: LimitCheck, unit: units.Unit) -> str:
    """The range that a limit is held against; a side that nothing bounds is said to be open.

    The unit stands once, after the upper end.
    """
    low, high = unit.number(check.low_s), unit.number(check.high_s)
    if low == units.UNKNOWN and high == units.UNKNOWN:
        return units.UNKNOWN
    if high == units.UNKNOWN:
        return f"{low} {unit.name} or more"
    if low == units.UNKNOWN:
        return f"up to {high} {unit.name}"
    return f"{low} to {high} {unit.name}"


def _todo(run: Run, summary: Summary) -> tuple[str, ...]:
    out = []
    if summary.verdict is Verdict.UNSURE:
        needed = [c.requests_needed for c in summary.checks if c.requests_needed]
        if error_needed := errors(run, summary)[1]:
            needed.append(error_needed)
        if needed:
            more = max(needed)
            out.append(
                f"What to do: measure about {units.number_word(more, 'more request')}"
                f" (--requests {summary.requests + more}), or test a level further from the limit."
            )
        else:
            out.append(
                "What to do: how many more requests it takes cannot be told from these;"
                " run longer, or test a level further from the limit."
            )
    if run.header.status is not Status.COMPLETE:
        why = run.header.stop_reason
        out.append(
            f"The run is {run.header.status.value}{f' ({units.clean(why)})' if why else ''}:"
            " the figures cover what had been recorded until then."
        )
    return tuple(out)


def slo_text(slo: Slo) -> str:
    """The SLO as it is written, with room to break the line."""
    return str(slo).replace(",", ", ")


def _users_phrase(run: Run) -> str:
    match run.scenario.load:
        case ClosedLoop(users=users):
            return units.number_word(users, "simultaneous user")
        case OpenLoop(rate_rps=rate) as load:
            what = "sessions" if load.of_sessions else "requests"
            return f"{units.count(rate)} {what} a second"


def load_phrase(load: Load) -> str:
    """The load in a few words, as a subject: "64 users (think 1 to 3 s)"."""
    match load:
        case ClosedLoop(users=users, queue=queue, each=each):
            stop = f", a queue of {queue}" if queue is not None else ""
            stop += f", {each} each" if each is not None else ""
            return f"{units.number_word(users, 'user')} (think {_think(load)}{stop})"
        case OpenLoop(rate_rps=rate, arrivals="trace"):
            return f"{rate:.3g} requests/s on average (arrivals of a trace)"
        case OpenLoop(rate_rps=rate, arrivals=arrivals):
            spread = f", cv {load.cv:g}" if arrivals == "gamma" else ""
            rates = schedule.text(rate, load.schedule)
            if not load.of_sessions:
                return f"{rates} ({arrivals} arrivals{spread})"
            rates = rates.replace("requests/s", "sessions/s")
            return f"{rates} ({arrivals} arrivals{spread}; think {_think(load)} between turns)"


def _think(load: ClosedLoop | OpenLoop) -> str:
    low, high = load.think_s or (0.0, 0.0)
    match load.think:
        case None:
            return f"{low:g} s" if low == high else f"{low:g} to {high:g} s"
        case Exponential(mean_s=mean_s):
            return f"{mean_s:g} s on average, exponential"
        case Lognormal(mean_s=mean_s, cv=cv):
            return f"{mean_s:g} s on average, lognormal with cv {cv:g}"
        case Measured(values_s=values_s):
            return f"{load.think_mean_s:.3g} s on average, drawn from {len(values_s)} measured"


def target_name(run: Run) -> str:
    """The model if it is known, else the URL."""
    target = run.header.target
    return units.clean(target.model or target.url, 80)


def flow(of: Flow) -> str:
    """Whether the queue of an open loop settles, and what came and was answered."""
    return (
        f"{_FLOWS[of.state]}: {units.count(of.arrived_rps)} requests/s came, "
        f"{units.count(of.answered_rps)} answered (±{1.96 * of.answered_error:.1%})"
    )


_FLOWS = {
    "settled": "the queue settles",
    "growing": "the queue grows without bound",
    "unclear": "whether the queue settles is unclear",
}

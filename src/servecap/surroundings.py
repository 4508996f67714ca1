"""From samples of a run's surroundings to figures of its window, and what they tell of it."""

from __future__ import annotations

from collections.abc import Sequence

from servecap.metrics import Reading, ServerSeen, Summary, Telemetry, Window
from servecap.run import Run
from servecap.sample import Histogram, Sample

COUNTERS = frozenset(
    {"preemptions", "prefix_hit_tokens", "prefix_asked_tokens", "prompt_tokens", "output_tokens",
     "disk_read_bytes", "disk_written_bytes", "received_bytes", "sent_bytes", "idle_s", "cpu_s"}
)  # fmt: skip
KV_FULL_SHARE = 0.95
THROTTLED_SHARE = 0.05  # of the time, or of the GPUs
CACHED_SHARE_MAX = 0.20  # as `audit` allows where the server tells it of each request
MACHINE_FULL_SHARE = 0.95
AGREE_SHARE = 0.10  # the server's mean and the client's may differ by so much ...
AGREE_S = 0.010  # ... and this: the windows differ by up to a sample at both ends
FOREIGN_SHARE = 0.20  # requests that the server counts above ours, and then
FOREIGN_LEAST = 20
_SLOW_S = 1.0  # for an exporter to answer


def telemetry(samples: Sequence[Sample], window: Window) -> Telemetry | None:
    """The figures of the samples in the window; None where there is none."""
    inside = [s for s in samples if window.start_s <= s.at_s <= window.end_s]
    if not inside:
        return None
    readings: dict[str, Reading] = {}
    for source in ("server", "gpu", "client", "node"):
        told = [s for s in inside if s.source == source and s.values]
        for name in dict.fromkeys(name for s in told for name in s.values):
            course = [(s.at_s, s.values[name]) for s in told if name in s.values]
            found = _counted(course) if name in COUNTERS else _gauged(course)
            if found is not None:
                readings[f"{source}.{name}"] = found
    _derive(readings)
    looks = [s for s in inside if s.source == "server"]
    return Telemetry(
        readings=readings,
        server=_server_seen(inside),
        looks=len(looks),
        unanswered=sum(s.error is not None for s in looks),
        slowest_s=max((s.took_s for s in looks), default=None),
        missing={s.source: s.error for s in samples if s.over and s.error is not None},
    )


def _gauged(course: Sequence[tuple[float, float]]) -> Reading:
    values = [value for _, value in course]
    return Reading(
        mean=sum(values) / len(values),
        low=min(values),
        high=max(values),
        first=values[0],
        last=values[-1],
    )


def _counted(course: Sequence[tuple[float, float]]) -> Reading | None:
    """How much was counted between the first sample and the last; None after a restart."""
    (first_s, first), (last_s, last) = course[0], course[-1]
    if last_s <= first_s or last < first:
        return None
    return Reading(total=last - first, per_s=(last - first) / (last_s - first_s))


def _derive(readings: dict[str, Reading]) -> None:
    """Shares that follow from two counters."""
    for name, part, whole, rest in (
        ("server.prefix_hit_share", "server.prefix_hit_tokens", "server.prefix_asked_tokens", 0),
        ("node.cpu_share", "node.idle_s", "node.cpu_s", 1),
    ):
        some, every = readings.get(part), readings.get(whole)
        if some is not None and every is not None and every.total and some.total is not None:
            share = some.total / every.total
            readings[name] = Reading(mean=1 - share if rest else share)
    for name in ("node.idle_s", "node.cpu_s"):
        readings.pop(name, None)


def _server_seen(inside: Sequence[Sample]) -> dict[str, ServerSeen]:
    """The server's histograms over the window: of what ended between two samples in it."""
    first: dict[str, Histogram] = {}
    last: dict[str, Histogram] = {}
    for sample in inside:
        for name, histogram in sample.histograms.items():
            first.setdefault(name, histogram)
            last[name] = histogram
    found: dict[str, ServerSeen] = {}
    for name, histogram in last.items():
        between = histogram.since(first[name])
        if between is not None:
            low_s, high_s = between.between(0.95)
            found[name] = ServerSeen(
                count=round(between.count),
                mean_s=between.mean_s,
                p95_low_s=low_s,
                p95_high_s=high_s,
            )
    return found


def judged(run: Run, summary: Summary) -> tuple[list[str], list[str]]:
    """Reasons against the run, and warnings, that its surroundings give."""
    told = summary.telemetry
    if told is None:
        return [], []
    return _reasons(run, summary, told), [*_limits(told), *_apart(summary, told)]


def _reasons(run: Run, summary: Summary, told: Telemetry) -> list[str]:
    found: list[str] = []
    hits = told.readings.get("server.prefix_hit_share")
    unique = run.scenario.workload.unique and not any(
        r.turn or r.cached_tokens is not None  # later turns hit by right; told ones `audit` judges
        for r in run.records
    )
    if unique and hits is not None and (hits.mean or 0.0) > CACHED_SHARE_MAX:
        found.append(
            f"the server counts {hits.mean:.0%} of the prompt tokens as found in its prefix cache, "
            "though all prompts differ: restart it, switch its cache off, or measure caching "
            "on purpose with --repeat-prompts"
        )
    seen = told.server.get("ttft")
    if seen is not None and seen.count > (1 + FOREIGN_SHARE) * summary.requests + FOREIGN_LEAST:
        found.append(
            f"the server began {seen.count:,} answers in the window, while {summary.requests:,} of "
            "ours ended: others use it, too; measure it alone"
        )
    return found


def _limits(told: Telemetry) -> list[str]:
    """What the server, its GPUs or the client's machine ran into."""
    found: list[str] = []
    read = told.readings.get
    kv, waiting = read("server.kv_used_share"), read("server.waiting")
    if kv is not None and (kv.high or 0.0) >= KV_FULL_SHARE:
        queue = f"; {waiting.mean:.1f} requests waited on average" if waiting is not None else ""
        found.append(f"the server's KV cache was full (up to {kv.high:.0%}){queue}")
    preempted = read("server.preemptions")
    if preempted is not None and preempted.total:
        found.append(
            f"the server preempted {preempted.total:,.0f} requests for want of KV cache: it "
            "computed parts of them twice"
        )
    slow = read("gpu.throttled_share")
    if slow is not None and (slow.mean or 0.0) > THROTTLED_SHARE:
        found.append(
            f"GPUs were throttled {slow.mean:.0%} of the time (heat or power supply): the figures "
            "are those of a slowed machine"
        )
    busy = read("client.cpu_share")
    if busy is not None and (busy.mean or 0.0) > MACHINE_FULL_SHARE:
        found.append(f"the client's machine was busy to {busy.mean:.0%} of all its cores")
    if told.unanswered or (told.slowest_s or 0.0) > _SLOW_S:
        found.append(
            f"the server's metrics were slow: {told.unanswered} of {told.looks} looks failed, "
            f"the slowest took {told.slowest_s or 0.0:.1f} s"
        )
    return found


def _apart(summary: Summary, told: Telemetry) -> list[str]:
    """Where the server's own mean and the client's differ by more than the stated error.

    A client sees more than the server counts (network, proxies, the HTTP front); that is told. It
    can not see less, unless the server counts other requests than ours.
    """
    found: list[str] = []
    for name, metric in (("ttft", "ttft_sent"), ("tpot", "tpot")):
        seen, own = told.server.get(name), summary.client.get(metric)
        if seen is None or own is None:
            continue
        apart_s = own.mean - seen.mean_s
        if abs(apart_s) <= AGREE_SHARE * max(own.mean, seen.mean_s) + AGREE_S:
            continue
        term = name.upper()
        says = f"mean {term} by the server's own histogram is {seen.mean_s * 1e3:,.0f} ms, "
        if apart_s > 0:
            found.append(
                f"{says}by the client's clock {own.mean * 1e3:,.0f} ms: the rest is network, proxy "
                "or the server's HTTP front"
            )
        else:
            found.append(
                f"{says}by the client's clock only {own.mean * 1e3:,.0f} ms: the server counts "
                "something else, or other requests"
            )
    return found

"""A load test in virtual time: a feed drives an engine model, and a `Run` comes out.

The same users, arrivals and stop rule as in `measure`; only the server and the clock are not real.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from statistics import fmean

import msgspec

from servecap import __version__, rand, steady
from servecap.emulate.answers import AnswerLengths, block_keys, count_tokens
from servecap.engine.engine import EngineRequest, Step
from servecap.engine.router import Router, Routing
from servecap.engine.spec import EngineSpec, build
from servecap.level import gone_on, shifted
from servecap.load import Feed, change, feed_for
from servecap.record import (
    NOT_SENT,
    Arrival,
    Counts,
    Outcome,
    Record,
    Request,
    ServerTimings,
    Times,
    TokenSource,
)
from servecap.run import Header, Probe, Run, Status
from servecap.scenario import Load, OpenLoop, Scenario, Target

NATURAL_MEAN_TOKENS = 200.0  # of answers that the model ends by itself, as in the emulator
_TICK_S = 0.2  # how often a measured run looks whether it may stop, and at timeouts
_PEEK = 50  # requests whose mean lengths tell how long an idle server takes
# A round trip. Users without think time who are refused in no time would stop the clock.
_REFUSAL_S = 0.001
_ORIGIN = "engine model"


def simulate(
    scenario: Scenario,
    spec: EngineSpec,
    requests: Iterator[Request],
    *,
    workload_note: str = "",
    instances: int = 1,
    routing: Routing = "least-load",
) -> Run:
    """The run that the scenario would give on such an engine; its records depend on the seed only.

    Several *instances* stand behind one router.

    Requests of unknown prompt length are counted by the emulator's rule; answers of natural
    length are drawn as the emulator draws them.

    Raises:
        UsageError: the engine cannot be built: an unknown name, or the model does not fit.
    """
    first = list(islice(requests, _PEEK))
    idle_s = idle_response_s(spec, first)
    every = chain(first, requests)
    simulation = _simulation(spec, scenario, every, idle_s, instances, routing)
    return _run(simulation.level(scenario), spec, scenario, workload_note)


def simulated(
    spec: EngineSpec, requests: Iterator[Request], *, seed: int = 0, workload_note: str = ""
) -> Probe:
    """Simulates scenarios one after another under one load that lives on between them.

    As with a measured load, a level that was given up is its end: the next one starts anew.

    Raises:
        UsageError: the engine cannot be built.
    """
    first = list(islice(requests, _PEEK))
    idle_s, every = idle_response_s(spec, first), chain(first, requests)
    simulation: Simulation | None = None
    before: Load | None = None
    starts = 0

    def probe(scenario: Scenario) -> Run:
        nonlocal simulation, before, starts
        if simulation is None:
            start = msgspec.structs.replace(scenario, seed=rand.derive(seed, starts))
            simulation, before, starts = _simulation(spec, start, every, idle_s), None, starts + 1
        asked = gone_on(scenario, before)
        found = simulation.level(asked)
        before = scenario.load
        if found.stop_reason.startswith(steady.GIVEN_UP):
            simulation = None
        return _run(found, spec, asked, workload_note)

    return probe


def _simulation(
    spec: EngineSpec,
    scenario: Scenario,
    requests: Iterator[Request],
    idle_s: float,
    instances: int = 1,
    routing: Routing = "least-load",
) -> Simulation:
    feed = feed_for(scenario, requests, response_guess_s=idle_s)
    engines = [build(spec) for _ in range(instances)]
    return Simulation(Router(engines, routing, seed=scenario.seed), feed, scenario.seed)


def _run(found: Found, spec: EngineSpec, scenario: Scenario, workload_note: str) -> Run:
    kind = f"{spec.engine} on {spec.tp} x {spec.gpu}"
    header = Header(
        scenario=scenario,
        target=Target(url="simulated", api=_ORIGIN, model=spec.model, server=kind),
        source="simulated",
        servecap_version=__version__,
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        status=Status.COMPLETE,
        stop_reason=found.stop_reason,
        load_end_s=found.load_end_s,
        workload_note=workload_note,
        notes=(f"predicted by the engine model ({kind}), not measured",),
    )
    return Run(header=header, records=found.records)


def idle_response_s(spec: EngineSpec, requests: list[Request]) -> float:
    """Seconds that a request of the mean lengths takes while nobody else is served; 0 if none fits.

    Raises:
        UsageError: the engine cannot be built.
    """
    if not requests:
        return 0.0
    asked = [r.max_output_tokens or NATURAL_MEAN_TOKENS for r in requests if r.exact_output]
    output = round(fmean(asked)) if asked else round(NATURAL_MEAN_TOKENS)
    engine = build(spec)
    engine.submit(EngineRequest(0, round(fmean(map(_prompt_tokens, requests))), output))
    now_s = 0.0
    while (step := engine.step(now_s)) is not None:
        now_s = step.end_s
    return now_s


def _prompt_tokens(request: Request) -> int:
    if request.prompt_tokens is not None:
        return max(1, request.prompt_tokens)
    return max(1, sum(count_tokens(m.content) for m in request.messages))


class _Flight:
    """A request inside the engine, and what has come back so far."""

    __slots__ = ("arrival", "cached_tokens", "chunk_s", "prompt_tokens", "reason", "started_s")

    def __init__(self, arrival: Arrival, prompt_tokens: int, reason: str) -> None:
        self.arrival = arrival
        self.prompt_tokens = prompt_tokens
        self.reason = reason
        self.started_s = arrival.planned_s
        self.cached_tokens = 0
        self.chunk_s = Times()


class Found(msgspec.Struct, frozen=True):
    """What one level came to; times count from its start."""

    records: list[Record]
    stop_reason: str
    load_end_s: float


class Simulation:
    """Owns the virtual clock: it goes from step to step, and from arrival to arrival when idle."""

    def __init__(self, router: Router, feed: Feed, seed: int) -> None:
        self._router = router
        self._feed = feed
        self._lengths = AnswerLengths(mean_tokens=NATURAL_MEAN_TOKENS, seed=seed)
        self._flights: dict[int, _Flight] = {}
        self._sent = 0
        self._now_s: float | None = None  # None: nothing was simulated yet

    def level(self, scenario: Scenario) -> Found:
        """Runs to the scenario's own end, on from the level before if there was one.

        What is in flight at the end is censored, and goes on into the next level.
        """
        self._scenario = scenario
        self._enough = steady.Enough(scenario)
        load = scenario.load
        self._ceiling = load.max_in_flight if isinstance(load, OpenLoop) else None
        self._records: list[Record] = []
        self._ticks = 0
        self._zero_s = self._now_s or 0.0
        if self._now_s is not None:
            change(self._feed, load, self._zero_s)
        end_s, reason = self._ended_by(self._zero_s)
        self._now_s = end_s
        for flight in self._flights.values():
            record = _record(flight, end_s, Outcome.CENSORED)
            self._records.append(shifted(record, self._zero_s))
        return Found(self._records, reason, end_s - self._zero_s)

    def _ended_by(self, now_s: float) -> tuple[float, str]:
        """When the level ended, and why."""
        while True:
            self._take(now_s)
            if self._feed.finished and not self._flights:
                return now_s, "every request was sent and answered"
            self._router.start(now_s)
            ahead = [s for s in (self._router.next_s, self._feed.next_s()) if s is not None]
            if not ahead:
                return now_s, "nothing is left to send"
            next_s = max(now_s, min(ahead))
            stopped = self._stopped_before(next_s)
            if stopped is not None:
                return stopped  # the steps that run are the next level's
            now_s = next_s
            for step in self._router.ended(now_s):
                self._hand_out(step)

    def _take(self, now_s: float) -> None:
        for arrival in self._feed.take(now_s):
            if self._ceiling is not None and len(self._flights) >= self._ceiling:
                why = f"{NOT_SENT} {self._ceiling} requests were in flight already"
                self._turned_away(arrival, Outcome.REFUSED, why, None)
            else:
                self._enough.came(arrival.planned_s - self._zero_s)
                self._submit(arrival)

    def _submit(self, arrival: Arrival) -> None:
        request, engine = arrival.request, self._router.one
        # Blocks must be of the same tokens: with a cache they are counted as the keys are.
        texts = [m.content for m in request.messages] if engine.prefix_cache else []
        prompt = sum(map(count_tokens, texts)) if texts else _prompt_tokens(request)
        room = min(engine.max_context_tokens, engine.kv_tokens) - prompt
        at_most = request.max_output_tokens or max(1, room)
        tokens, reason = self._lengths.length(
            at_most=at_most, at_least=1, ignore_eos=request.exact_output
        )
        self._sent += 1
        asked = EngineRequest(self._sent, prompt, tokens, at_most, block_keys(texts))
        refusal = self._router.submit(asked, arrival.user)
        if refusal is not None:
            self._turned_away(arrival, Outcome.HTTP_ERROR, refusal, 400)
        else:
            self._flights[self._sent] = _Flight(arrival, prompt, reason)

    def _turned_away(
        self, arrival: Arrival, outcome: Outcome, why: str, status: int | None
    ) -> None:
        """The request failed at once, but not in no time."""
        flight = _Flight(arrival, _prompt_tokens(arrival.request), "")
        end_s = arrival.planned_s + _REFUSAL_S
        self._ended(_record(flight, end_s, outcome, error=why, status=status))

    def _stopped_before(self, next_s: float) -> tuple[float, str] | None:
        """Looks at the stop rule and the timeouts at each tick up to *next_s*."""
        while (tick_s := (self._ticks + 1) * _TICK_S) <= next_s - self._zero_s:
            self._ticks += 1
            self._sweep(self._zero_s + tick_s)
            reason = self._enough.reason(tick_s)
            if reason is not None:
                return self._zero_s + tick_s, reason
        return None

    def _sweep(self, now_s: float) -> None:
        limits = self._scenario.timeouts
        for number, flight in list(self._flights.items()):
            age_s = now_s - flight.arrival.planned_s
            why = None
            if age_s > limits.total_s:
                why = f"no end of the answer within {limits.total_s:g} s"
            elif not flight.chunk_s:
                if age_s > limits.first_token_s:
                    why = f"no first token within {limits.first_token_s:g} s"
            elif now_s - flight.chunk_s[-1] > limits.gap_s:
                why = f"nothing received for {limits.gap_s:g} s"
            if why is not None:
                self._router.cancel(number)
                del self._flights[number]
                self._ended(_record(flight, now_s, Outcome.TIMEOUT, error=why))

    def _hand_out(self, step: Step) -> None:
        flights, end_s = self._flights, step.end_s
        for number in step.started:
            if number in flights:
                flights[number].started_s = max(flights[number].started_s, step.start_s)
                flights[number].cached_tokens = step.hits.get(number, 0)
        for number in step.tokens:
            if number in flights:  # it is not where it timed out during the step
                flights[number].chunk_s.append(end_s)
        for number in step.finished:
            flight = flights.pop(number, None)
            if flight is not None:
                self._ended(_record(flight, end_s, Outcome.OK, status=200))

    def _ended(self, record: Record) -> None:
        self._feed.done(record)
        kept = shifted(record, self._zero_s)
        self._records.append(kept)
        self._enough.note(kept)


def _record(
    flight: _Flight,
    end_s: float,
    outcome: Outcome,
    *,
    error: str | None = None,
    status: int | None = None,
) -> Record:
    arrival, request = flight.arrival, flight.arrival.request
    chunks = Times(flight.chunk_s) if outcome is Outcome.CENSORED else flight.chunk_s
    ok = outcome is Outcome.OK
    return Record(
        request_id=request.request_id,
        user=arrival.user,
        planned_s=arrival.planned_s,
        sent_s=arrival.planned_s,
        end_s=end_s,
        outcome=outcome,
        first_token_s=chunks[0] if chunks else None,
        chunk_s=chunks,
        chunk_tokens=Counts([1] * len(chunks)),
        prompt_tokens=flight.prompt_tokens,
        output_tokens=len(chunks) or None,
        cached_tokens=flight.cached_tokens or None,
        asked_output_tokens=request.max_output_tokens,
        exact_output=request.exact_output,
        token_source=TokenSource.SERVER,
        server=_timings(flight, end_s) if ok else None,
        status=status,
        finish_reason=flight.reason if ok else None,
        error=error,
        session=request.session,
        turn=request.turn,
        part=request.part,
        attempt=arrival.attempt,
        first_planned_s=arrival.first_planned_s,
    )


def _timings(flight: _Flight, end_s: float) -> ServerTimings:
    """What the engine knows of an answer: it is exact, and agrees with the client's view."""
    chunks, started_s = flight.chunk_s, flight.started_s
    later = len(chunks) - 1
    return ServerTimings(
        origin=_ORIGIN,
        queue_s=started_s - flight.arrival.planned_s,
        prefill_s=chunks[0] - started_s,
        inference_s=end_s - started_s,
        tpot_s=(end_s - chunks[0]) / later if later else None,
        total_s=end_s - flight.arrival.planned_s,
    )

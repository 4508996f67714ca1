"""Users in front of several engines behind one router, in virtual time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from servecap.engine.engine import Engine, EngineRequest, Step
from servecap.rand import stream

Routing = Literal["least-load", "random", "sticky"]
_WARM_CYCLES, _WINDOW_CYCLES = 2.0, 4.0
_LOST_S = 0.001  # until a refused request is known to be


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of prompts and answers: log-normal, with a spread of (standard deviation / mean).

    Source of the spreads: 0.96 and 0.77 in the Azure 2023 conversation trace.
    """

    prompt_tokens: float
    output_tokens: float
    prompt_spread: float = 1.0
    output_spread: float = 0.8


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """A closed loop of users, each thinking between its requests."""

    users: int
    lengths: Lengths
    think_s: tuple[float, float] = (1.0, 3.0)
    cycle_s: float  # about one answer and one pause: users come in over this time
    routing: Routing = "least-load"
    seed: int = 0


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that ended in the window, in the order in which they did."""

    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    e2e_s: tuple[float, ...]
    failed: int
    window_s: float

    @property
    def requests(self) -> int:
        return len(self.ttft_s) + self.failed

    def values(self, metric: str) -> tuple[float, ...] | None:
        """The figures of that metric; None: the simulation has none."""
        return {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}.get(metric)


class _Flight:
    """A request on its way through an engine."""

    __slots__ = ("due_s", "first_s", "output_tokens", "user")

    def __init__(self, user: int, due_s: float, output_tokens: int) -> None:
        self.user = user
        self.due_s = due_s
        self.output_tokens = output_tokens
        self.first_s = math.nan


class _Group:
    """Owns the clock of all engines: an event is a user who is due, or a step that ends."""

    def __init__(self, engines: Sequence[Engine], traffic: Traffic) -> None:
        self._engines = engines
        self._traffic = traffic
        self._flights: list[dict[int, _Flight]] = [{} for _ in engines]
        self._steps: list[Step | None] = [None] * len(engines)
        self._events: list[tuple[float, int, int, bool]] = []
        self._count = 0
        self._lengths = stream(traffic.seed, "lengths")
        self._think = stream(traffic.seed, "think")
        self._route = stream(traffic.seed, "route")
        start = stream(traffic.seed, "start")
        for user in range(traffic.users):
            self._at(start.random() * traffic.cycle_s, user, due=True)
        begin_s = (1 + _WARM_CYCLES) * traffic.cycle_s
        self._window = (begin_s, begin_s + _WINDOW_CYCLES * traffic.cycle_s)
        self._ttft: list[float] = []
        self._tpot: list[float] = []
        self._e2e: list[float] = []
        self._failed = 0

    def run(self) -> Seen:
        begin_s, end_s = self._window
        while self._events and self._events[0][0] <= end_s:
            now_s, _, who, due = heapq.heappop(self._events)
            if due:
                self._send(who, now_s)
            else:
                self._step_ended(who, now_s)
        return Seen(
            ttft_s=tuple(self._ttft),
            tpot_s=tuple(self._tpot),
            e2e_s=tuple(self._e2e),
            failed=self._failed,
            window_s=end_s - begin_s,
        )

    def _at(self, when_s: float, who: int, *, due: bool) -> None:
        self._count += 1
        heapq.heappush(self._events, (when_s, self._count, who, due))

    def _choice(self, user: int) -> int:
        match self._traffic.routing:
            case "least-load":
                return min(range(len(self._engines)), key=lambda k: len(self._flights[k]))
            case "random":
                return self._route.randrange(len(self._engines))
            case "sticky":
                return user % len(self._engines)

    def _send(self, user: int, now_s: float) -> None:
        lengths = self._traffic.lengths
        prompt = _draw(self._lengths.gauss, lengths.prompt_tokens, lengths.prompt_spread)
        output = _draw(self._lengths.gauss, lengths.output_tokens, lengths.output_spread)
        k = self._choice(user)
        if self._engines[k].submit(EngineRequest(self._count, prompt, output)) is not None:
            self._failed += self._window[0] <= now_s
            self._at(now_s + _LOST_S + self._pause_s(), user, due=True)
            return
        self._flights[k][self._count] = _Flight(user, now_s, output)
        self._count += 1
        if self._steps[k] is None:
            self._step(k, now_s)

    def _pause_s(self) -> float:
        return self._think.uniform(*self._traffic.think_s)

    def _step(self, k: int, now_s: float) -> None:
        self._steps[k] = step = self._engines[k].step(now_s)
        if step is not None:
            self._at(step.end_s, k, due=False)

    def _step_ended(self, k: int, now_s: float) -> None:
        step, flights = self._steps[k], self._flights[k]
        assert step is not None
        for number in step.first:
            flights[number].first_s = now_s
        for number in step.finished:
            self._answered(flights.pop(number), now_s)
        self._step(k, now_s)

    def _answered(self, flight: _Flight, now_s: float) -> None:
        if now_s >= self._window[0]:
            self._ttft.append(flight.first_s - flight.due_s)
            self._e2e.append(now_s - flight.due_s)
            if flight.output_tokens > 1:
                self._tpot.append((now_s - flight.first_s) / (flight.output_tokens - 1))
        self._at(now_s + self._pause_s(), flight.user, due=True)


def _draw(gauss: Callable[[float, float], float], mean: float, spread: float) -> int:
    """Tokens from a log-normal distribution with that mean and coefficient of variation."""
    variance = math.log(1 + spread * spread)
    return max(1, round(mean * math.exp(gauss(0.0, 1.0) * math.sqrt(variance) - variance / 2)))


def play(engines: Sequence[Engine], traffic: Traffic) -> Seen:
    """What the users see of these fresh engines, once the load is steady; depends on the seed only.

    Everyone comes in over one cycle, two cycles warm up, four are measured.
    """
    return _Group(engines, traffic).run()

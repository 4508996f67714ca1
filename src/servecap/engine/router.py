"""Several engines behind one router, in virtual time; one engine is allowed, too."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

from servecap.engine.engine import Engine, EngineRequest, Step
from servecap.rand import stream

Routing = Literal["least-load", "round-robin", "random", "sticky"]


class Router:
    """Sends each request to one of several equal engines, where it stays.

    The caller owns the clock. At each moment it asks first for the steps that have `ended`, then
    submits what is due, and then lets every idle engine `start`.

    Args:
        engines: fresh ones.
        routing: "least-load": where the fewest requests are, the first of several; "round-robin":
            one after the other; "random"; "sticky": each user always to the same engine.
        seed: of the random routing.
    """

    def __init__(
        self, engines: Sequence[Engine], routing: Routing = "least-load", *, seed: int = 0
    ) -> None:
        self._engines = engines
        self._routing = routing
        self._draws = stream(seed, "route")
        self._turn = 0
        self._there: dict[int, int] = {}  # request -> its engine
        self._load = [0] * len(engines)
        self._steps: list[Step | None] = [None] * len(engines)
        self._ends: list[tuple[float, int]] = []
        self._woken: list[int] = []  # engines that have got work, or have ended a step

    @property
    def one(self) -> Engine:
        """Any of the engines: they are equal in what they take."""
        return self._engines[0]

    @property
    def next_s(self) -> float | None:
        """When the next step ends; None: nobody works."""
        return self._ends[0][0] if self._ends else None

    def submit(self, request: EngineRequest, user: int = 0) -> str | None:
        """Sends the request to an engine; the reason where it can never be served."""
        refusal = self.one.refusal(request)
        if refusal is not None:
            return refusal
        k = self._choice(user)
        self._engines[k].submit(request)
        self._there[request.id] = k
        self._load[k] += 1
        self._woken.append(k)
        return None

    def _choice(self, user: int) -> int:
        count = len(self._engines)
        match self._routing:
            case "least-load":
                return self._load.index(min(self._load))
            case "round-robin":
                self._turn += 1
                return (self._turn - 1) % count
            case "random":
                return self._draws.randrange(count)
            case "sticky":
                return user % count

    def cancel(self, request_id: int) -> bool:
        """Drops the request; False where it is not (or no longer) there."""
        k = self._there.pop(request_id, None)
        if k is None:
            return False
        self._load[k] -= 1
        return self._engines[k].cancel(request_id)

    def start(self, now_s: float) -> None:
        """Starts a step on each engine that has work and no step under way."""
        for k in sorted(set(self._woken)):
            if self._steps[k] is None:
                step = self._engines[k].step(now_s)
                if step is not None:
                    self._steps[k] = step
                    heapq.heappush(self._ends, (step.end_s, k))
        self._woken.clear()

    def ended(self, now_s: float) -> list[Step]:
        """The steps that end until then, in order; their engines are idle now."""
        steps = []
        while self._ends and self._ends[0][0] <= now_s:
            _, k = heapq.heappop(self._ends)
            step = self._steps[k]
            assert step is not None
            self._steps[k] = None
            self._woken.append(k)
            for request_id in step.finished:
                if self._there.pop(request_id, None) is not None:
                    self._load[k] -= 1
            steps.append(step)
        return steps

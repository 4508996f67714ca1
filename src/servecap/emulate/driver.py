"""The engine on the wall clock: one task that takes its steps when they are due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from servecap.engine.engine import Engine, EngineRequest, Step

# A step that starts late by more (real seconds) starts now, instead of catching up: a process that
# was suspended must not answer with a burst.
_DEBT_MAX_S = 0.1


class Job:
    """A request on its way through the engine; times are emulated seconds, None until reached."""

    __slots__ = (
        "arrived_s", "cached_tokens", "done", "ended_s", "first_s", "generated", "id", "last_s",
        "on_token", "output_tokens", "prompt_tokens", "request", "started_s",
    )  # fmt: skip

    def __init__(
        self,
        request: EngineRequest,
        *,
        arrived_s: float,
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            on_token: called with the number of each token (from 0) when it is there.
        """
        self.id = request.id
        self.request = request
        self.prompt_tokens = request.prompt_tokens
        self.output_tokens = request.output_tokens
        self.on_token = on_token
        self.generated = 0
        self.cached_tokens = 0  # of the prompt, found in the prefix cache
        self.arrived_s = arrived_s
        self.started_s: float | None = None
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.ended_s: float | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def queue_s(self) -> float:
        """From arrival to the first step that worked on it."""
        return max(0.0, (self.started_s or self.arrived_s) - self.arrived_s)

    @property
    def prefill_s(self) -> float:
        """From that step's start to the first token."""
        if self.first_s is None or self.started_s is None:
            return 0.0
        return self.first_s - self.started_s

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        if self.first_s is None or self.ended_s is None:
            return 0.0
        return self.ended_s - self.first_s


class Driver:
    """Runs an engine in real time, *speed* times as fast as it would be.

    Args:
        on_gap: called with a time (emulated seconds) and how many tokens came in this step so
            long after the one before.
        on_first: called for each job that got its first token.
        on_end: called for each job that has all its tokens.
        freeze_at_s: when to stand still once (real seconds), for `freeze_s` real seconds.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        speed: float,
        on_gap: Callable[[float, int], None],
        on_first: Callable[[Job], None],
        on_end: Callable[[Job], None],
        freeze_at_s: float = 0.0,
        freeze_s: float = 0.0,
    ) -> None:
        self.engine = engine
        self.speed = speed
        self.lag_s = 0.0  # real seconds by which the last step came too late
        self.lag_max_s = 0.0
        self._on_gap = on_gap
        self._on_first = on_first
        self._on_end = on_end
        self._freeze_at_s = freeze_at_s
        self._freeze_s = freeze_s
        self._jobs: dict[int, Job] = {}
        self._wake = asyncio.Event()
        self._zero_s = time.monotonic()

    def now_s(self) -> float:
        """Emulated seconds since the start."""
        return (time.monotonic() - self._zero_s) * self.speed

    def submit(self, job: Job) -> None:
        """Queues the job. Its `done` comes true with the last token.

        Raises:
            ValueError: the engine can never serve it; ask `engine.refusal` first.
        """
        reason = self.engine.submit(job.request)
        if reason is not None:
            raise ValueError(reason)
        self._jobs[job.id] = job
        self._wake.set()

    def cancel(self, job: Job) -> None:
        """Drops the job if it has not ended: its client is gone."""
        if self._jobs.pop(job.id, None) is not None:
            self.engine.cancel(job.id)

    async def run(self) -> None:
        """Takes steps for ever; ends by being cancelled."""
        free_s = 0.0  # when the engine is free for its next step
        while True:
            if self.engine.idle:
                self._wake.clear()
                await self._wake.wait()
                free_s = max(free_s, self.now_s())
            step = self.engine.step(free_s)
            if step is None:
                continue
            await self._until(step.end_s)
            self._hand_out(step)
            free_s = step.end_s
            now_s = self.now_s()
            if now_s - free_s > _DEBT_MAX_S * self.speed:
                free_s = now_s

    async def _until(self, end_s: float) -> None:
        if self._freeze_s and time.monotonic() - self._zero_s >= self._freeze_at_s:
            seconds, self._freeze_s = self._freeze_s, 0.0
            await asyncio.sleep(seconds)
        # A due step still lets other tasks run once, or a fast server would read no requests.
        await asyncio.sleep(max(0.0, (end_s - self.now_s()) / self.speed))
        self.lag_s = max(0.0, (self.now_s() - end_s) / self.speed)
        self.lag_max_s = max(self.lag_max_s, self.lag_s)

    def _hand_out(self, step: Step) -> None:
        jobs = self._jobs
        for request_id in step.started:
            if request_id in jobs:
                jobs[request_id].started_s = step.start_s
                jobs[request_id].cached_tokens = step.hits.get(request_id, 0)
        gaps: dict[float, int] = {}
        for request_id, count in step.tokens.items():
            job = jobs.get(request_id)
            if job is None:
                continue  # cancelled while the step ran
            if job.last_s is None:
                job.first_s = step.end_s
                self._on_first(job)
            else:
                gap_s = step.end_s - job.last_s
                gaps[gap_s] = gaps.get(gap_s, 0) + count
            job.last_s = step.end_s
            for _ in range(count):
                if job.on_token is not None:
                    job.on_token(job.generated)
                job.generated += 1
        for gap_s, number in gaps.items():
            self._on_gap(gap_s, number)
        for request_id in step.finished:
            job = jobs.pop(request_id, None)
            if job is not None:
                job.ended_s = step.end_s
                self._on_end(job)
                if not job.done.done():
                    job.done.set_result(None)

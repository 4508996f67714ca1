"""Engines in virtual time as servers under search: what they are, and who plays on them.

Peers play whole runs on the compiled engine, which gives the records of the reference; servecap
plays its own search on the reference itself, with the population that lives on from level to level.
Each pays for the users who were there: from a user's first moment in a run to the last.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rules import Answer
from servers import Floats

from servecap import rand, slo
from servecap.engine import fast
from servecap.engine.fast import Answers, Traffic
from servecap.engine.spec import EngineKind, EngineSpec, Instance, instance
from servecap.errors import InvalidRun, UsageError
from servecap.predict.harness import Lengths
from servecap.record import Request
from servecap.run import Probe, Run
from servecap.scenario import ClosedLoop, Scenario
from servecap.search import find
from servecap.simulate import simulated
from servecap.slo import Limit

Ints = fast.Ints


@dataclass(frozen=True)
class Asked:
    """How long prompts and answers are; log-normal, cut off at the longest."""

    name: str
    lengths: Lengths
    longest: tuple[int, int]  # prompt, answer; tokens

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Ints, Ints]:
        """So many prompts and answers, in tokens."""
        x, (prompt, answer) = self.lengths, self.longest
        return (
            _drawn(rng, x.prompt_tokens, x.prompt_spread, count, prompt),
            _drawn(rng, x.output_tokens, x.output_spread, count, answer),
        )


def _drawn(rng: np.random.Generator, mean: float, spread: float, count: int, most: int) -> Ints:
    """Independent of each other: no mean is forced on them."""
    variance = math.log1p(spread**2)
    values = rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), count)
    return np.clip(np.rint(values), 1, most).astype(np.int64)


def _asked(name: str, prompt: tuple[float, float, int], answer: tuple[float, float, int]) -> Asked:
    lengths = Lengths(
        prompt_tokens=prompt[0],
        output_tokens=answer[0],
        prompt_spread=prompt[1],
        output_spread=answer[1],
    )
    return Asked(name, lengths, (prompt[2], answer[2]))


WORKLOADS = (
    _asked("short chat", (120, 1.0, 1000), (200, 0.8, 800)),
    _asked("long prompts", (1200, 0.5, 3000), (150, 0.6, 600)),
    _asked("heavy tails", (400, 2.0, 3500), (180, 1.5, 1024)),
    _asked("questions on documents", (2200, 0.4, 4000), (50, 0.7, 300)),
)
SLOS = (
    slo.DEFAULT,
    slo.DEFAULT,
    slo.parse("ttft.mean<1s,tpot.mean<50ms"),
    slo.parse("ttft.p95<3s,tpot.mean<100ms"),
    slo.parse("ttft.p99<5s,tpot.mean<100ms"),
    slo.parse("ttft.mean<3s,tpot.p95<80ms"),
    slo.parse("ttft.p95<1s,tpot.p95<60ms"),
)
MACHINES: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("llama2-7b", "V100-SXM2-16GB", (1, 2)),
    ("llama2-7b", "L4", (1,)),
    ("llama2-7b", "A10", (1, 2)),
    ("llama2-13b", "A100-40GB-SXM", (1, 2)),
    ("llama2-13b", "A30", (2, 4)),
    ("llama2-13b", "L40S", (1,)),
    ("llama2-70b", "A100-80GB-SXM", (2, 4)),
    ("qwen2.5-14b", "A40", (1, 2)),
    ("qwen2.5-32b", "A100-80GB-SXM", (1, 2)),
    ("qwen2.5-72b", "H100-SXM", (2, 4)),
    ("mistral-7b", "T4", (2,)),
    ("llama-3.1-8b", "RTX-4090", (1,)),
    ("llama-3.1-8b", "A100-40GB-SXM", (1,)),
    ("qwen2.5-7b", "L40S", (1,)),
    ("qwen2.5-7b", "A30", (1, 2)),
)
KINDS: tuple[EngineKind, ...] = ("vllm", "vllm-2023", "tgi", "sglang")


@dataclass(frozen=True)
class Server:
    """An engine, what its users ask for, and the limits that it is held to."""

    number: int
    spec: EngineSpec
    asked: Asked
    slo: slo.Slo
    think_s: tuple[float, float] = (1.0, 3.0)

    @property
    def limits(self) -> tuple[Limit, ...]:
        return self.slo.limits

    def __str__(self) -> str:
        limits = ",".join(map(str, self.limits))
        x = self.spec
        return f"{x.model} {x.tp} x {x.gpu} {x.engine}, {self.asked.name}, {limits}"


def candidate(number: int) -> Server | None:
    """The number decides everything; None where the engine could not hold or would refuse."""
    rng = random.Random(f"played/{number}")
    model, gpu, tps = rng.choice(MACHINES)
    spec = EngineSpec(model=model, gpu=gpu, tp=rng.choice(tps), engine=rng.choice(KINDS))
    found = Server(number, spec, WORKLOADS[number % len(WORKLOADS)], rng.choice(SLOS))
    try:
        made = _made(spec)
    except UsageError:
        return None
    longest = sum(found.asked.longest)
    return found if longest <= min(made.kv_tokens // 2, made.max_context_tokens) else None


@functools.lru_cache(maxsize=4)
def _made(spec: EngineSpec) -> Instance:
    return instance(spec)


def played(
    server: Server, start_s: Floats, count: int, rng: np.random.Generator, *, memory: float = 1.0
) -> tuple[Answers, Ints]:
    """What became of *count* requests of users who start at those times, and their tokens.

    Args:
        memory: times the tokens that fit.
    """
    made = _made(server.spec)
    prompts, answers = server.asked.draw(rng, count)
    traffic = Traffic(start_s, prompts, answers, answers, rng.uniform(*server.think_s, count))
    found = fast.serve(
        made.cost,
        made.policy,
        traffic,
        kv_tokens=int(memory * made.kv_tokens),
        max_context_tokens=made.max_context_tokens,
    )
    if np.isnan(found.end_s).any():
        raise RuntimeError(f"{server}: a request was refused")
    return found, answers


def values(found: Answers, tokens: Ints, kept: Ints) -> dict[str, Floats]:
    """TTFT and TPOT of the requests *kept*, in the order in which they ended."""
    order = kept[np.argsort(found.end_s[kept], kind="stable")]
    ttft_s = found.first_s[order] - found.planned_s[order]
    long = order[tokens[order] > 1]
    return {"ttft": ttft_s, "tpot": (found.end_s[long] - found.first_s[long]) / (tokens[long] - 1)}


class Anew:
    """Runs of users who are all new and all start at once; the run ends with the last answer.

    With a fixed number of requests, whoever finds none left leaves after the last answer.
    """

    def __init__(self, server: Server, rng: np.random.Generator) -> None:
        self.server, self.rng = server, rng
        self.limits = server.limits
        self.user_s = 0.0
        self.levels = 0

    def level(self, users: int, requests: int, *, cold_cycles: float) -> dict[str, Floats]:
        """Values of *requests*, sent after so many of each user."""
        cold = round(cold_cycles * users)
        found, tokens = played(self.server, np.zeros(users), cold + requests, self.rng)
        last_s = np.zeros(users)
        np.maximum.at(last_s, found.user, found.end_s)
        self.user_s += float(last_s.sum())
        self.levels += 1
        return values(found, tokens, np.arange(cold, cold + requests))


class Paid:
    """A probe that adds up the user-seconds of the runs as they were."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.user_s = 0.0
        self.levels = 0

    def __call__(self, scenario: Scenario) -> Run:
        run = self._probe(scenario)
        self.user_s += user_seconds(run)
        self.levels += 1
        return run


def user_seconds(run: Run) -> float:
    """Users there, added up over the run: newcomers from their first request, leavers to the last.

    Who leaves while thinking is gone at once.
    """
    load, end_s = run.header.scenario.load, run.header.load_end_s
    assert isinstance(load, ClosedLoop)
    assert end_s is not None
    before = load.users_before or 0
    came_s: dict[int, float] = {}
    left_s: dict[int, float] = {}
    for record in run.records:
        came_s[record.user] = min(came_s.get(record.user, math.inf), max(0.0, record.planned_s))
        left_s[record.user] = max(left_s.get(record.user, 0.0), min(end_s, record.end_s))
    stayed = min(before, load.users) * end_s
    new = sum(end_s - came_s[user] for user in range(before, load.users) if user in came_s)
    return stayed + new + sum(s for user, s in left_s.items() if user >= load.users)


def asked_for(server: Server, seed: int) -> Iterator[Request]:
    """Endless requests of those lengths; nobody looks at their texts."""
    rng = np.random.default_rng([seed, server.number])
    number = 0
    while True:
        for prompt, answer in zip(*server.asked.draw(rng, 4096), strict=True):
            yield Request(
                request_id=number,
                messages=(),
                prompt_tokens=int(prompt),
                max_output_tokens=int(answer),
                exact_output=True,
            )
            number += 1


def searched(server: Server, precision: float, seed: int) -> Answer:
    """servecap's whole search, with the population that lives on, as `find` runs it by default.

    An INVALID one has no answer, and counts as one of no users.
    """
    requests = asked_for(server, rand.derive(seed, "requests"))
    paid = Paid(simulated(server.spec, requests, seed=seed))
    load = ClosedLoop(users=1, think_s=server.think_s)
    scenario = Scenario(load=load, slo=server.slo, seed=seed)
    try:
        found = find(paid, scenario, precision=precision)
    except InvalidRun:
        return Answer(0.0, 0.0, None, paid.user_s, paid.levels, clean=False, valid=False)
    estimate = found.estimate
    assert estimate is not None
    low = estimate.low if estimate.named is None else estimate.named
    clean = found.unsure is None
    return Answer(estimate.best, low, estimate.high, paid.user_s, paid.levels, clean=clean)

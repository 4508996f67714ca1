"""Users in front of a fleet of equal instances behind routers, in virtual time."""

from __future__ import annotations

import functools
import math

import msgspec
import numpy as np

from servecap.engine.fleet import Crowd, Ended, Routing, joined, serve_fleet
from servecap.engine.spec import EngineSpec, instance
from servecap.predict.harness import Lengths, drawn
from servecap.rand import derive

# Instances that one router knows the load of; a larger fleet has several routers. What so many
# instances hold stays in a core's cache: with 512 the same requests take twice the time.
PER_ROUTER = 64
_SERIES = 1 << 15  # drawn lengths and pauses, after which they come again
_WARM_CYCLES, _WINDOW_CYCLES = 2.0, 4.0
_MANY_USERS = 20_000  # from here on one cycle is window enough


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """A closed loop of users, each thinking between its requests, in front of equal instances."""

    spec: EngineSpec
    instances: int
    users: int
    lengths: Lengths
    think_s: tuple[float, float] = (1.0, 3.0)
    cycle_s: float  # about one answer and one pause: users come in over this time
    routing: Routing = "least-load"
    seed: int = 0

    @property
    def cycles(self) -> float:
        """How many requests each user sends, about."""
        return 1 + _WARM_CYCLES + self._window_cycles

    @property
    def _window_cycles(self) -> float:
        return 1.0 if self.users >= _MANY_USERS else _WINDOW_CYCLES


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """One router, its instances and its users: independent of all others."""

    traffic: Traffic
    instances: int
    users: int
    number: int
    window_cycles: float


def shards(traffic: Traffic) -> list[Shard]:
    """The fleet cut into routers of nearly as many instances, with users in proportion."""
    count = -(-traffic.instances // PER_ROUTER)
    found, before = [], 0
    for number in range(count):
        instances = traffic.instances * (number + 1) // count
        here = instances - traffic.instances * number // count
        users = round(traffic.users * instances / traffic.instances)
        if users > before:
            found.append(
                Shard(
                    traffic=traffic, instances=here, users=users - before, number=number,
                    window_cycles=traffic._window_cycles,
                )
            )  # fmt: skip
        before = users
    return found


def play(traffic: Traffic) -> Ended:
    """What the users see of these fresh instances, once the load is steady.

    Everyone comes in over one cycle, two cycles warm up, four are measured (one where there are
    20,000 users or more). The seed decides everything.
    """
    return joined([play_shard(shard) for shard in shards(traffic)])


def play_shard(shard: Shard) -> Ended:
    """What the users of one router see."""
    traffic = shard.traffic
    made = instance(traffic.spec)
    prompt, output, unit, route = _series(
        traffic.lengths, made.max_context_tokens, derive(traffic.seed, shard.number)
    )
    low_s, high_s = traffic.think_s
    begin_s = (1 + _WARM_CYCLES) * traffic.cycle_s
    start = np.random.default_rng([traffic.seed, shard.number, 1]).random(shard.users)
    crowd = Crowd(
        start_s=start * traffic.cycle_s,
        prompt_tokens=prompt,
        output_tokens=output,
        think_s=low_s + unit * (high_s - low_s),
        route=route,
        begin_s=begin_s,
        stop_s=begin_s + shard.window_cycles * traffic.cycle_s,
        routing=traffic.routing,
    )
    return serve_fleet(
        made.cost, made.policy, crowd, instances=shard.instances, kv_tokens=made.kv_tokens,
        max_context_tokens=made.max_context_tokens,
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _series(lengths: Lengths, context: int, seed: int) -> tuple[np.ndarray, ...]:
    """Prompts, answers, and two series within 0 and 1; their sizes have no common divisor, so
    that what comes together once hardly does again.

    Lengths are cut where prompt and answer would not fit the model's context, with the same mean.
    """
    rng = np.random.default_rng(seed)
    mean = lengths.prompt_tokens + lengths.output_tokens
    share = lengths.output_tokens / mean
    most = (math.floor(context * (1 - share)), math.floor(context * share))
    if mean >= context:  # too long as they are: the engine shall refuse them
        most = (1 << 40, 1 << 40)
    return (
        drawn(rng, lengths.prompt_tokens, lengths.prompt_spread, _SERIES, most[0]),
        drawn(rng, lengths.output_tokens, lengths.output_spread, _SERIES - 1, most[1]),
        rng.random(_SERIES - 3),
        rng.random(_SERIES - 5),
    )

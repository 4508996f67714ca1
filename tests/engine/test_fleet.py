"""A compiled fleet against reference engines behind the same router: the same times for all."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from servecap.engine.cost import StepCoefficients
from servecap.engine.engine import Engine, EngineRequest, Step
from servecap.engine.fleet import METRICS, Crowd, Ended, Routing, joined, serve_fleet
from servecap.engine.scheduler import ChunkedPrefill, Policy, PrefillFirst, Vllm2023

KV_TOKENS, CONTEXT = 40 * 16, 480
# Steps of 20 ms and more, no two durations alike.
COST = StepCoefficients(
    0.00131, 0.00017, 0.0213, 0.0101, 0.00013, 0.0023, 0.00011, 3.7e-5, 1.3e-8, 0.00071, 1.1e-5,
    0.0017,
)  # fmt: skip
LOG = 400
TIE_S = 1e-9  # rounding may turn round what is nearer together

policies = st.one_of(
    st.builds(ChunkedPrefill, step_tokens=st.integers(1, 300), max_running=st.integers(1, 8)),
    st.builds(
        PrefillFirst,
        waiting_served_ratio=st.floats(0, 2),
        max_waiting_tokens=st.integers(0, 20),
        max_batch_prefill_tokens=st.integers(250, 600),
        max_running=st.integers(1, 8),
        decode_between=st.booleans(),
    ),
    st.builds(Vllm2023, step_tokens=st.integers(250, 600), max_running=st.integers(1, 8)),
)
lengths = st.lists(st.integers(1, 300), min_size=1, max_size=30)
routings = st.sampled_from(["least-load", "random", "sticky"])


def crowd(
    starts: list[float],
    prompts: list[int],
    answers: list[int],
    pauses: list[float],
    routing: Routing,
) -> Crowd:
    return Crowd(
        start_s=np.array(starts, np.float64),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(answers),
        think_s=np.array(pauses, np.float64),
        route=np.array([0.1, 0.9, 0.5, 0.3]),
        begin_s=2.0,
        stop_s=6.0,
        routing=routing,
    )


def fleet(policy: Policy, of: Crowd, instances: int) -> Ended:
    return serve_fleet(
        COST, policy, of, instances=instances, kv_tokens=KV_TOKENS, max_context_tokens=CONTEXT,
        log=LOG,
    )  # fmt: skip


class Tie(Exception):
    """Two things happen at one moment, by chance: rounding alone decides which comes first."""


class Reference:
    """The same on `Engine`s, event by event; it takes the router's word and checks it."""

    def __init__(self, policy: Policy, of: Crowd, instances: int, routed: np.ndarray) -> None:
        self.crowd, self.routed = of, routed
        self.engines = [
            Engine(COST, policy, kv_tokens=KV_TOKENS, max_context_tokens=CONTEXT)
            for _ in range(instances)
        ]
        self.load = [0] * instances
        self.steps: list[Step | None] = [None] * instances
        self.due = [(float(s), user) for user, s in enumerate(of.start_s)]
        self.user: dict[int, int] = {}
        self.since = {user: -1 - user for user in range(len(of.start_s))}
        self.ends = 0
        self.log = np.full((5, LOG), math.nan)
        self.sent = self.failed = self.answered = 0

    def pause_s(self, number: int) -> float:
        return float(self.crowd.think_s[number % len(self.crowd.think_s)])

    def run(self) -> None:
        """Of one moment: the ends, then the arrivals, then the steps of whoever stands idle.

        Two users whose answers end in one step come back together if they think equally long,
        so who is due at one moment must not depend on who is looked at first.
        """
        while True:
            ends_s = [math.inf if step is None else step.end_s for step in self.steps]
            now_s = min(*ends_s, min(self.due, default=(math.inf, 0))[0])
            if now_s > self.crowd.stop_s:
                return
            self.check(now_s, ends_s)
            for k, end_s in enumerate(ends_s):
                if end_s <= now_s:
                    self.ended(k, now_s)
            while self.due and min(self.due)[0] <= now_s:
                first = min(self.due)
                self.due.remove(first)
                self.send(first[1], first[0])
            for k, step in enumerate(self.steps):
                if step is None:
                    self.steps[k] = self.engines[k].step(now_s)

    def check(self, now_s: float, ends_s: list[float]) -> None:
        """One cause a moment: the end of one step, or of the one that freed all who are due."""
        causes = {("step", k) for k, end_s in enumerate(ends_s) if end_s <= now_s + TIE_S}
        causes |= {("back", self.since[user]) for s, user in self.due if s <= now_s + TIE_S}
        if len(causes) > 1:
            raise Tie

    def send(self, user: int, now_s: float) -> None:
        number, of = self.sent, self.crowd
        self.sent += 1
        k = int(self.routed[number])
        match of.routing:
            case "least-load":
                assert self.load[k] == min(self.load)
            case "random":
                assert k == int(of.route[number % len(of.route)] * len(self.load))
            case "sticky":
                assert k == user % len(self.load)
        self.log[:3, number] = k, user, now_s
        request = EngineRequest(
            number,
            int(of.prompt_tokens[number % len(of.prompt_tokens)]),
            int(of.output_tokens[number % len(of.output_tokens)]),
        )
        if self.engines[k].submit(request) is not None:
            self.failed += now_s >= of.begin_s
            self.due.append((now_s + 0.001 + self.pause_s(number), user))
            self.ends += 1
            self.since[user] = self.ends
            return
        self.user[number] = user
        self.load[k] += 1

    def ended(self, k: int, now_s: float) -> None:
        step = self.steps[k]
        assert step is not None
        self.steps[k] = None
        self.ends += 1
        self.log[3, list(step.first)] = now_s
        for number in step.finished:
            self.log[4, number] = now_s
            self.load[k] -= 1
            self.answered += now_s >= self.crowd.begin_s
            self.due.append((now_s + self.pause_s(number), self.user[number]))
            self.since[self.user[number]] = self.ends


@settings(max_examples=150)
@example(  # both answers end in one step, and both users are back at one moment
    PrefillFirst(max_running=2), [0.25, 0.015625], [1], [2], [0.75], "least-load", 1
)
@given(
    policies, st.lists(st.floats(0.001, 0.4), min_size=1, max_size=20), lengths, lengths,
    st.lists(st.floats(0.01, 2), min_size=1, max_size=9), routings, st.integers(1, 5),
)  # fmt: skip
def test_every_request_has_the_times_of_the_reference(
    policy: Policy, gaps: list[float], prompts: list[int], answers: list[int],
    pauses: list[float], routing: Routing, instances: int,
) -> None:  # fmt: skip
    # Nobody starts at the same moment as another: rounding alone would decide who goes first.
    of = crowd(np.cumsum(np.array(gaps) + 1 / 977).tolist(), prompts, answers, pauses, routing)
    found = fleet(policy, of, instances)
    if found.sent > LOG:  # refused ones come back at once
        return
    reference = Reference(policy, of, instances, found.log[0])
    try:
        reference.run()
    except Tie:
        reject()
    assert (found.sent, found.failed) == (reference.sent, reference.failed)
    assert found.answered == reference.answered
    np.testing.assert_allclose(found.log[:3], reference.log[:3], rtol=1e-9, atol=1e-9)
    done = ~np.isnan(reference.log[4])
    np.testing.assert_allclose(
        found.log[3:, done], reference.log[3:, done], rtol=1e-9, atol=1e-9
    )  # fmt: skip
    assert np.isnan(found.log[4, ~done]).all()
    _check_figures(found, of)


def _check_figures(found: Ended, of: Crowd) -> None:
    """Means and percentiles are those of the logged requests."""
    inside = found.log[4] >= of.begin_s
    ttft = np.sort(found.log[3, inside] - found.log[2, inside])
    if len(ttft) == 0:
        assert found.mean("ttft") is None
        return
    assert found.mean("ttft") == pytest.approx(ttft.mean())
    for q in (0.5, 0.99, 1.0):
        told = found.quantile("ttft", q)
        rank = max(1, math.ceil(q * (len(ttft) + found.failed) - 1e-9))
        assert told is not None
        if rank > len(ttft):
            assert told == math.inf
        else:
            exact = ttft[rank - 1]
            assert exact * (1 - 1e-9) <= told <= max(exact * 1.0051, 1e-4)


BASE = crowd([0.1 * k for k in range(12)], [20, 30], [30, 40, 50], [0.2, 0.3], "least-load")


def test_more_room_is_found_where_one_instance_gets_all() -> None:
    lopsided = msgspec.structs.replace(
        BASE, start_s=np.zeros(60), route=np.array([0.0]), routing="random"
    )
    found = fleet(ChunkedPrefill(), lopsided, 4)
    assert set(found.log[0][: found.sent]) == {0.0}
    assert found.peak > 2 * 60 / 4 + 16


def test_least_load_keeps_instances_alike() -> None:
    even = fleet(ChunkedPrefill(), BASE, 3)
    assert even.peak <= 4
    assert even.failed == 0


def test_parts_are_joined_by_adding_up() -> None:
    one, two = fleet(ChunkedPrefill(), BASE, 3), fleet(ChunkedPrefill(), BASE, 1)
    both = joined([one, two])
    assert both.answered == one.answered + two.answered
    for metric in METRICS:
        mean, a, b = both.mean(metric), one.mean(metric), two.mean(metric)
        assert mean is not None
        assert a is not None
        assert b is not None
        assert min(a, b) <= mean <= max(a, b)
        assert both.quantile(metric, 1.0) == max(one.most_s[metric], two.most_s[metric])


def test_what_is_not_simulated_has_no_figure() -> None:
    found = fleet(ChunkedPrefill(), BASE, 3)
    assert found.mean("gap") is None
    assert found.quantile("queue", 0.5) is None

"""The pieces of `bench/find/played`: what is played there is what the product would have run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servecap import slo
from servecap.engine.spec import EngineSpec
from servecap.record import Request
from servecap.scenario import ClosedLoop, Scenario, StopRule
from servecap.simulate import simulate, simulated

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "find"))
playing: Any = importlib.import_module("playing")
rules: Any = importlib.import_module("rules")
truth: Any = importlib.import_module("truth")
errors: Any = importlib.import_module("errors")

USERS = 12
SERVER = playing.Server(
    number=3,
    spec=EngineSpec(model="llama2-7b", gpu="A10", tp=1),
    asked=playing.WORKLOADS[0],
    slo=slo.parse("ttft.mean<3s,tpot.mean<100ms"),
    think_s=(2.0, 2.0),  # so that it does not matter in which order think times are drawn
)


def drawn(seed: int, count: int) -> Iterator[Request]:
    """What `played` asks for with that seed."""
    prompts, answers = SERVER.asked.draw(np.random.default_rng(seed), count)
    for i, (prompt, answer) in enumerate(zip(prompts.tolist(), answers.tolist(), strict=True)):
        yield Request(
            request_id=i,
            messages=(),
            prompt_tokens=prompt,
            max_output_tokens=answer,
            exact_output=True,
        )


@pytest.mark.parametrize("cold", [0, 1])
def test_a_peers_run_is_that_of_a_queue_of_requests(cold: int) -> None:
    count = (2 + cold) * USERS
    load = ClosedLoop(users=USERS, queue=count, think_s=SERVER.think_s)
    run = simulate(Scenario(load=load), SERVER.spec, drawn(1, count))
    anew = playing.Anew(SERVER, np.random.default_rng(1))
    found = anew.level(USERS, 2 * USERS, cold_cycles=cold)
    told = sorted((r for r in run.records if r.request_id >= cold * USERS), key=lambda r: r.end_s)
    assert len(told) == 2 * USERS
    assert found["ttft"] == pytest.approx([r.ttft_s for r in told], rel=1e-9)
    tpot_s = [r.tpot_s for r in told if (r.output_tokens or 0) > 1]
    assert found["tpot"] == pytest.approx(tpot_s, rel=1e-9)
    last_s = {r.user: r.end_s for r in sorted(run.records, key=lambda r: r.end_s)}
    assert anew.user_s == pytest.approx(sum(last_s.values()), rel=1e-9)


def test_a_population_that_lives_on_pays_for_who_is_there() -> None:
    probe = simulated(SERVER.spec, playing.asked_for(SERVER, 0))

    def level(users: int) -> Any:
        load = ClosedLoop(users=users, think_s=SERVER.think_s)
        return probe(Scenario(load=load, stop=StopRule(requests=60)))

    first, same, more, fewer = level(10), level(10), level(20), level(5)
    ends_s = [run.header.load_end_s for run in (first, same, more, fewer)]
    paid = list(map(playing.user_seconds, (first, same, more, fewer)))
    assert 0.7 * 10 * ends_s[0] < paid[0] < 10 * ends_s[0]  # they ramp in over a cycle
    assert paid[1] == pytest.approx(10 * ends_s[1])
    assert 10 * ends_s[2] < paid[2] < 20 * ends_s[2]
    leavers_s = {r.user: r.end_s for r in fewer.records if r.user >= 5}
    assert leavers_s
    assert paid[3] == pytest.approx(5 * ends_s[3] + sum(leavers_s.values()))
    assert sum(leavers_s.values()) < 15 * ends_s[3]


@pytest.fixture(scope="module")
def told() -> Any:
    """The server's capacity, by shorter simulations than the bench's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truth, "REQUESTS", 2_000)
        return truth.truth(SERVER)


def test_the_truth_is_where_long_runs_break_a_limit(told: Any) -> None:
    assert told.low <= told.best <= told.high
    assert told.high - told.low <= max(1, 0.05 * told.best)
    sides = []
    for users in (told.low - 1, told.high + 2):
        load = ClosedLoop(users=users, think_s=SERVER.think_s)
        asked = Scenario(load=load, stop=StopRule(duration_s=600))
        run = simulate(asked, SERVER.spec, playing.asked_for(SERVER, 5))
        good = [r for r in run.records if r.ok and r.end_s > 100]
        ttft_s = np.mean([r.ttft_s for r in good if r.ttft_s is not None])
        tpot_s = np.mean([r.tpot_s for r in good if r.tpot_s is not None])
        sides.append(max(ttft_s / 3, tpot_s / 0.1))
    assert sides[0] < 1.03
    assert sides[1] > 0.97
    assert sides[0] < sides[1]


def test_peers_rules_find_the_edge_of_what_is_exact() -> None:
    class Exact:
        limits = SERVER.limits
        user_s, levels = 0.0, 0

        def level(self, users: int, requests: int, *, cold_cycles: float) -> Any:
            assert cold_cycles == 0
            self.levels += 1
            return {"ttft": np.full(requests, users / 40), "tpot": np.full(requests, 0.01)}

    for rule in (rules.double_and_bisect, rules.isotonic_root):
        assert rule(Exact(), cold_cycles=0).best == 120
    found = rules.attainment_bisect(Exact(), cold_cycles=0, within=0)
    assert found.low == 120
    assert found.high == 120


def test_a_search_on_a_played_server_meets_its_truth(told: Any) -> None:
    found = playing.searched(SERVER, 0.2, 1)
    assert found.valid
    assert found.low <= told.high
    assert found.high is not None
    assert found.high >= told.low
    assert found.user_s > 0


def test_errors_tells_whether_windows_see_their_own_scatter() -> None:
    rng = np.random.default_rng(1)
    windows = [3 + rng.standard_normal(400) for _ in range(80)]
    claimed, held, _ = errors.told(windows, np.zeros((80, 0)))
    assert 0.9 < claimed < 1.4
    assert held > 0.93
    # Each window is as a whole off by what its mean length was: nothing within it shows that.
    lengths = rng.standard_normal((80, 2))
    moved = [x + 0.2 * length for x, length in zip(windows, lengths[:, 0], strict=True)]
    claimed, held, explained = errors.told(moved, lengths)
    assert claimed < 0.4
    assert held < 0.6
    assert 0.85 < explained < 1


def test_errors_knows_the_lengths_of_what_it_counts() -> None:
    cut = list(errors._cut(SERVER, USERS, 60, 0))
    assert len(cut) == errors.WINDOWS
    means = np.array([mean for _, mean in cut]).mean(axis=0)
    asked = SERVER.asked.lengths
    assert means == pytest.approx([asked.prompt_tokens, asked.output_tokens], rel=0.15)
    # A prompt of twice the length takes longer to read: a window of long ones is slower.
    ttft_s = [seen["ttft"].mean() for seen, _ in cut]
    assert np.corrcoef(ttft_s, [mean[0] for _, mean in cut])[0, 1] > 0.5

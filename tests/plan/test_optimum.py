"""The exact optimum against brute force, and what must hold of any optimum."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servecap.plan.optimum import Offer, Problem, holds, solve
from servecap.plan.packing import Instance, packings, shared


def random_problem(rng: random.Random) -> Problem:
    """A few kinds of nodes and one or two models, small enough to try everything."""
    models, kinds = rng.choice([1, 1, 2]), rng.randint(1, 3)
    offers = []
    for kind in range(kinds):
        for _ in range(rng.choice([1, 1, 2]) if models > 1 else 1):
            loads = tuple(rng.choice([0, rng.randint(1, 60)]) for _ in range(models))
            cost, gpus = float(rng.randint(1, 40)), rng.choice([1, 2, 4, 8])
            offers.append(Offer(kind, cost, loads, gpus))
    redundancy = rng.choice(
        [(0, (0, 1)), (0, (0, 1)), (1, (0, 1)), (2, (0, 1)), (0, (1, 2)), (0, (1, 3)), (0, (2, 5))]
    )
    return Problem(
        offers=tuple(offers),
        needs=tuple(rng.randint(1, 120) for _ in range(models)),
        at_most=tuple(rng.choice([None, rng.randint(0, 6)]) for _ in range(kinds)),
        nodes_lost=redundancy[0],
        zone_lost=redundancy[1],
    )


Weight = tuple[float, int, int]  # cost, GPUs and nodes of a fleet


def weight(problem: Problem, counts: Sequence[int]) -> Weight:
    pairs = list(zip(counts, problem.offers, strict=True))
    return sum(c * o.cost for c, o in pairs), sum(c * o.gpus for c, o in pairs), sum(counts)


def brute_force(problem: Problem, most: int) -> Weight | None:
    """The least of all fleets of at most that many nodes of each offer."""
    found: Weight | None = None
    for counts in itertools.product(range(most + 1), repeat=len(problem.offers)):
        this = weight(problem, counts)
        if (found is None or this < found) and holds(problem, counts):
            found = this
    return found


def check(seed: int, most: int) -> None:
    problem = random_problem(random.Random(seed))
    answer, least = solve(problem), brute_force(problem, most)
    if answer is None:
        assert least is None, (seed, problem)
        return
    assert holds(problem, answer.counts)
    assert answer.gap_share == 0
    assert answer.cost == weight(problem, answer.counts)[0]
    assert least is None or weight(problem, answer.counts) <= least, (seed, problem)
    if max(answer.counts) <= most:
        assert weight(problem, answer.counts) == least, (seed, problem)


@pytest.mark.parametrize("part", range(4))
def test_the_optimum_is_that_of_brute_force(part: int) -> None:
    for seed in range(part * 15, part * 15 + 15):
        check(seed, 5)


@pytest.mark.slow
def test_the_optimum_is_that_of_brute_force_a_thousand_times() -> None:
    for seed in range(1000):
        check(seed, 8)


@given(st.integers(0, 10**6), st.integers(0, 200))
@settings(max_examples=25)
def test_more_load_never_costs_less_and_another_kind_never_costs_more(seed: int, more: int) -> None:
    problem = random_problem(random.Random(seed))
    base = solve(problem)
    bigger = solve(
        Problem(
            offers=problem.offers,
            needs=tuple(need + more for need in problem.needs),
            at_most=problem.at_most,
            nodes_lost=problem.nodes_lost,
            zone_lost=problem.zone_lost,
        )
    )
    assert bigger is None or (base is not None and bigger.cost >= base.cost)
    loads = tuple(7 for _ in problem.needs)
    wider = solve(
        Problem(
            offers=(*problem.offers, Offer(len(problem.at_most), 3.0, loads)),
            needs=problem.needs,
            at_most=(*problem.at_most, None),
            nodes_lost=problem.nodes_lost,
            zone_lost=problem.zone_lost,
        )
    )
    assert wider is not None
    assert base is None or wider.cost <= base.cost


def test_the_loss_of_two_nodes_is_that_of_the_two_largest() -> None:
    problem = Problem(
        offers=(Offer(0, 10.0, (50,)), Offer(1, 3.0, (10,))),
        needs=(100,), at_most=(None, None), nodes_lost=2,
    )  # fmt: skip
    assert not holds(problem, (3, 4))  # 190, less the two large ones
    assert holds(problem, (4, 0))
    assert holds(problem, (0, 12))
    assert holds(problem, (1, 11))  # 160 - 50 - 10
    assert not holds(problem, (1, 10))


def test_the_solver_says_nothing_where_json_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    offers = (Offer(kind=0, cost=1.0, loads=(7,)),)
    found = solve(Problem(offers=offers, needs=(20,), at_most=(None,)))
    print("ours")
    assert found is not None
    assert found.counts == (3,)
    assert capfd.readouterr() == ("ours\n", "")


def test_a_million_users_are_no_harder_than_ten() -> None:
    problem = Problem(
        offers=(Offer(0, 16.0, (900,)), Offer(1, 4.0, (280,)), Offer(2, 8.0, (440,))),
        needs=(1_000_000,), at_most=(None, 1000, 900), nodes_lost=3,
    )  # fmt: skip
    answer = solve(problem)
    assert answer is not None
    assert answer.gap_share == 0
    assert holds(problem, answer.counts)


def test_packings_fill_a_node_with_unequal_instances_where_that_carries_more() -> None:
    found = packings([Instance(3, 40), Instance(2, 20)], 8)
    assert (found[8].load, found[8].parts) == (100, ((3, 2), (2, 1)))
    assert (found[1].load, found[2].load, found[5].load) == (0, 20, 60)
    assert packings([Instance(4, 45), Instance(8, 90)], 8)[8].parts == ((8, 1),)


@given(
    st.dictionaries(st.integers(1, 8), st.integers(0, 500), min_size=1, max_size=4),
    st.integers(1, 8),
)
@settings(max_examples=40)
def test_no_other_cut_of_the_node_carries_more(options: dict[int, int], gpus: int) -> None:
    found = packings([Instance(tp, load) for tp, load in options.items()], gpus)[gpus]
    assert sum(tp * n for tp, n in found.parts) <= gpus
    assert sum(options[tp] * n for tp, n in found.parts) == found.load
    for tp, load in options.items():
        assert gpus // tp * load <= found.load


def test_models_share_a_node_in_every_way_that_no_other_way_beats() -> None:
    small = packings([Instance(1, 10)], 4)
    large = packings([Instance(2, 5)], 4)
    loads = {tuple(p.load for p in way) for way in shared([small, large])}
    assert loads == {(40, 0), (20, 5), (0, 10)}

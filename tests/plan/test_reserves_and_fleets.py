"""Headroom, failures, limited numbers, rates, shared models, and how firm the answer is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servecap.cell import Capacity, Cell
from servecap.errors import UsageError
from servecap.plan import Demand, Plan, Price, Supply, plan
from servecap.plan.outlook import with_outlook
from servecap.plan.sizing import nodes_needed
from servecap.report.plan_text import plan_text


def cell(gpu: str = "A30", tp: int = 4, users: int = 45, **changes: object) -> Cell:
    base = Cell(
        model="small", gpu=gpu, tp=tp, scenario="chat", origin="measured", provenance="t",
        capacity=Capacity(users=users, users_high=None), error_rate=0.0, ttft_s=2.0, tpot_s=0.06,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


PRICES = (Price("A30", 4.0, "node"), Price("A100", 16.0, "node"))
CELLS = [cell(), cell("A100", 4, 225)]


def test_headroom_is_kept_on_every_instance() -> None:
    found = plan([cell()], Demand(100), Supply(used_share_max=0.8)).models[0].gpus[0].best
    assert (found.users_per_instance, found.users_per_node, found.capacity_users) == (36, 72, 45)
    assert (found.nodes, found.users_at_peak) == (2, 25)
    (out,) = plan([cell(users=1)], Demand(100), Supply(used_share_max=0.8)).models[0].left_out
    assert "carries nobody with a headroom of 20%" in out.reason


def test_nodes_that_may_fail_are_bought_too() -> None:
    one = plan([cell()], Demand(900), Supply(spare_nodes=1))
    assert one.models[0].gpus[0].best.nodes == 11
    assert any("any 1 node may fail" in text for text in one.caveats)
    zones = plan([cell()], Demand(900), Supply(zones=3))
    assert zones.models[0].gpus[0].best.nodes == 15
    assert any("any one of 3 zones may fail" in text for text in zones.caveats)


@given(st.integers(1, 10**6), st.integers(1, 900), st.integers(2, 5))
def test_what_a_zone_leaves_is_enough_and_one_node_fewer_is_not(
    need: int, per_node: int, zones: int
) -> None:
    nodes = nodes_needed(need, per_node, Supply(zones=zones))
    fullest = -(-nodes // zones)
    assert (nodes - fullest) * per_node >= need
    fewer = nodes - 1
    assert (fewer - -(-fewer // zones)) * per_node < need


@given(
    st.integers(1, 10**6), st.integers(1, 900), st.lists(st.integers(1, 9), min_size=2, max_size=5)
)
def test_what_the_largest_of_unequal_zones_leaves_is_enough_and_one_node_fewer_is_not(
    need: int, per_node: int, weights: list[int]
) -> None:
    supply = Supply(zones=len(weights), zone_weights=tuple(weights))
    nodes = nodes_needed(need, per_node, supply)

    def left(count: int) -> int:
        fullest = -(-count * max(weights) // sum(weights))
        return (count - fullest) * per_node

    assert left(nodes) >= need > left(nodes - 1)
    assert supply.left_of(nodes) * per_node == left(nodes)
    equal = Supply(zones=len(weights))
    assert nodes >= nodes_needed(need, per_node, equal)


def test_unequal_zones_are_planned_and_told() -> None:
    supply = Supply(zones=3, zone_weights=(2, 1, 1))
    found = plan([cell()], Demand(900), supply)
    assert found.models[0].gpus[0].best.nodes == 20
    assert any("as 2:1:1; the largest holds 2/4 of each kind" in text for text in found.caveats)


def test_too_few_nodes_make_a_mixed_fleet_or_no_plan() -> None:
    supply = Supply(prices=PRICES, nodes_max_of={"A30": 3, "A100": 1})
    model = plan(CELLS, Demand(700), supply).models[0]
    assert [g.best.missing_nodes for g in model.gpus] == [1, 5]
    assert model.fleet is not None
    assert {(p.gpu, p.nodes) for p in model.fleet.parts} == {("A30", 3), ("A100", 1)}
    assert model.fleet.usd_per_h == 28
    text = plan_text(plan(CELLS, Demand(700), supply))
    assert "no GPU type alone has enough nodes; fleet of 32 GPUs, 28.00 USD/h" in " ".join(
        text.split()
    )
    none = plan(CELLS, Demand(800), supply)
    assert none.models[0].fleet is None
    assert "no plan, too few nodes can be had" in plan_text(none)


def test_a_mixed_fleet_is_named_only_where_it_is_cheaper() -> None:
    assert plan(CELLS, Demand(450), Supply(prices=PRICES)).models[0].fleet is None
    model = plan(CELLS, Demand(460), Supply(prices=(Price("A30", 6, "node"), PRICES[1]))).models[0]
    assert model.fleet is not None
    assert (model.fleet.usd_per_h, model.fleet.apart) == (22.0, 32.0)


def test_only_what_a_supply_file_lists_can_be_had() -> None:
    supply = Supply(gpus_per_node_of={"a100": 8}, only_listed=True)
    model = plan(CELLS, Demand(450), supply).models[0]
    assert [g.gpu for g in model.gpus] == ["A100"]
    assert model.left_out[0].reason == "no node of it can be had"


def test_a_rate_is_carried_by_the_cells_own_rate_or_by_littles_law() -> None:
    own = cell(requests_per_s=3.0)
    best = plan([own], Demand(requests_per_s=13.0)).models[0].gpus[0].best
    assert (best.nodes, best.load_per_node) == (3, 6000)
    # a cycle of 2 + 100 x 0.06 + 2 s carries 4.5 requests/s with 45 users
    little = cell(avg_output_tokens=101.0)
    best = plan([little], Demand(requests_per_s=13.0)).models[0].gpus[0].best
    assert (best.nodes, best.users_at_peak) == (2, 32.5)
    (out,) = plan([cell()], Demand(requests_per_s=1.0)).models[0].left_out
    assert "neither its requests/s nor the answers' length is known" in out.reason


def test_models_share_nodes_where_that_is_cheaper() -> None:
    large = cell("A100", 4, 30, model="large")
    demand = Demand(users=250, users_of={"small": 225, "large": 25})
    found = plan([*CELLS, large], demand, Supply(prices=(Price("A30", 40.0, "node"), PRICES[1])))
    assert found.fleet is not None
    (part,) = found.fleet.parts
    assert part.nodes == 1
    assert set(part.split) == {("small", 4, 1), ("large", 4, 1)}
    assert (found.fleet.usd_per_h, found.fleet.apart) == (16.0, 32.0)
    assert [m.users for m in found.models] == [225, 25]
    assert "(225 of small, 25 of large)" in plan_text(found)
    with pytest.raises(UsageError, match="model 'x'"):
        plan(CELLS, Demand(users=5, users_of={"x": 5}))


def asked(cells: list[Cell], demand: Demand, supply: Supply) -> Plan:
    return with_outlook(plan(cells, demand, supply), cells)


def test_the_outlook_says_what_would_change() -> None:
    slow = cell("A100", 8, 500, ttft_s=2.9)
    found = asked([*CELLS, slow], Demand(900), Supply(prices=PRICES)).outlook
    assert found is not None
    more, tight, loose, half = found.what_if
    assert (more.nodes, more.same_choice) == (3, True)
    assert (tight.same_choice, tight.usd_per_h) == (False, 32.0)
    assert "A100 as 2 x TP4" in tight.answer
    assert loose.same_choice
    assert half.nodes is None
    assert half.answer.startswith("not known: ")


def test_break_even_prices_are_where_the_costs_meet() -> None:
    supply = Supply(prices=PRICES)
    found = asked(CELLS, Demand(900), supply)
    assert found.outlook is not None
    first = found.outlook.break_even[0]
    # 10 nodes of A30 cost 40, 2 of A100 32
    assert "A30 would cost as little at 3.20 USD/h a node instead of 4.00" in first
    assert "A100 cost 20.00 instead of 16.00" in first
    cheaper = Supply(prices=(Price("A30", 3.19, "node"), PRICES[1]))
    assert plan(CELLS, Demand(900), cheaper).models[0].gpus[0].gpu == "A30"
    text = found.outlook.break_even[1]
    users = int(text.split(" from ")[1].split()[0])
    assert plan(CELLS, Demand(users), supply).models[0].gpus[0].gpu == "A100"
    assert plan(CELLS, Demand(users - 1), supply).models[0].gpus[0].gpu == "A30"


def test_where_a_type_has_no_price_a_dearer_choice_is_told() -> None:
    """The order is by GPUs then: the first need not be the cheapest of those with a price."""
    prices = (PRICES[0], Price("A100", 30.0, "node"))
    found = asked([*CELLS, cell("L4", 8, 20)], Demand(900), Supply(prices=prices))
    assert found.models[0].gpus[0].gpu == "A100"
    assert found.outlook is not None
    (text,) = found.outlook.break_even
    assert "A30 would cost less, 40.00 USD/h instead of 60.00" in text


def test_an_uncertain_cell_that_decides_is_worth_measuring() -> None:
    guess = cell("A30", origin="predicted", provenance="model")
    found = asked([guess, CELLS[1]], Demand(900), Supply(prices=(Price("A30", 3.0, "node"),
                  PRICES[1])))  # fmt: skip
    assert found.models[0].gpus[0].gpu == "A30"
    assert "(predicted)" in plan_text(found).split("\n\n")[0]
    assert found.outlook is not None
    text = found.outlook.worth_measuring[0]
    assert "it is predicted, not measured; at 36 users the choice would be A100" in text
    sure = asked(CELLS, Demand(900), Supply(prices=PRICES))
    assert sure.outlook is not None
    assert sure.outlook.worth_measuring == ()


def test_at_the_high_end_of_its_interval_a_cell_may_save_nodes() -> None:
    wide = cell(capacity=Capacity(users=45, users_high=50), slo="ttft.mean<3s,tpot.mean<100ms")
    found = asked([wide], Demand(900), Supply(prices=PRICES[:1]))
    assert found.outlook is not None
    (text,) = found.outlook.worth_measuring
    assert "its interval ends at 50 users" in text
    assert "the plan would need 1 node fewer (-4.00 USD/h)" in text


def test_a_tighter_slo_that_no_cell_keeps_says_so() -> None:
    found = asked([cell(ttft_s=2.9)], Demand(9), Supply())
    assert found.outlook is not None
    assert "no cell is left" in found.outlook.what_if[1].answer


@pytest.mark.parametrize(
    ("demand", "supply", "told"),
    [
        (Demand(), Supply(), "users, or requests per second"),
        (Demand(users=1, requests_per_s=1.0), Supply(), "users, or requests per second"),
        (Demand(requests_per_s=0.0), Supply(), "requests/s 0"),
        (Demand(1), Supply(used_share_max=0), "headroom 100%"),
        (Demand(1), Supply(used_share_max=1.2), "headroom -20%"),
        (Demand(1), Supply(spare_nodes=-1), "spare nodes -1"),
        (Demand(1), Supply(spare_nodes=1, zones=2), "spare nodes or zones, not both"),
        (Demand(1), Supply(zones=2, zone_weights=(2, 0)), "zones 2:0"),
        (Demand(1), Supply(zones=3, zone_weights=(2, 1)), "zones 2:1"),
        (Demand(1), Supply(nodes_max_of={"a30": -1}), "nodes a30=-1"),
        (Demand(1), Supply(nodes_max_of={"h100": 1}), "GPU 'h100' is not in the matrix"),
        (Demand(1, users_of={"small": 0}), Supply(), "users small=0"),
    ],
)
def test_a_reserve_that_makes_no_sense_is_told(demand: Demand, supply: Supply, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(CELLS, demand, supply)
    assert told in str(caught.value)


sizes = st.dictionaries(
    st.tuples(st.sampled_from(["A30", "A40", "A100"]), st.sampled_from([1, 2, 4, 8])),
    st.integers(0, 300), min_size=1, max_size=6,
)  # fmt: skip


@given(sizes, st.integers(1, 10**5), st.integers(0, 2), st.floats(0.5, 1))
@settings(max_examples=30)
def test_the_fleet_never_costs_more_than_the_best_type_and_never_less_with_more_users(
    table: dict[tuple[str, int], int], users: int, spare: int, share: float
) -> None:
    cells = [cell(gpu, tp, count) for (gpu, tp), count in table.items()]
    names = sorted({c.gpu for c in cells})
    prices = tuple(Price(name, 1.0 + len(name) * 0.7) for name in names)
    supply = Supply(prices=prices, spare_nodes=spare, used_share_max=share)

    def cost(count: int, of: Supply) -> float:
        model = plan(cells, Demand(count), of).models[0]
        if not model.gpus:
            return float("inf")
        alone = model.gpus[0].best.usd_per_h
        assert alone is not None
        if model.fleet is None:
            return alone
        assert model.fleet.usd_per_h is not None
        assert model.fleet.usd_per_h < alone
        return model.fleet.usd_per_h

    here = cost(users, supply)
    assert cost(users + 100, supply) >= here
    bare = Supply(prices=prices)
    assert cost(users, bare) <= here * (1 + 1e-9)

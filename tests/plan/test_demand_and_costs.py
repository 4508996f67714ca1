"""What must be carried, what a node costs, and the files that say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from servecap.errors import UsageError
from servecap.plan import demand
from servecap.plan.answer import Demand
from servecap.plan.costs import Purchase, costs, usd_per_h
from servecap.plan.supply import read_supply


def test_registered_users_and_growth_round_up() -> None:
    assert demand.of_registered(1_000_001, 0.01).users == 10_001
    assert demand.of_registered(10, 0.1, growth=0.2).users == 2
    assert demand.of_users(1000, growth=0.1).users == 1100  # and not 1101 by a rounding error
    assert demand.of_models({"a": 10, "b": 3}, growth=0.5).users_of == {"a": 15, "b": 5}


def test_a_day_is_carried_at_its_busiest_and_paid_for_at_its_mean(tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_text("hour,users\n0,100\n8,400\n16,100\n")
    found = demand.of_profile(demand.read_profile(path), growth=0.5)
    assert (found.users, found.mean_share) == (600, 0.5)
    path.write_text("requests_per_s\n1.5\n4.5\n")
    found = demand.of_profile(demand.read_profile(path), think_mean_s=3.0)
    assert (found.users, found.requests_per_s, found.think_mean_s) == (None, 4.5, 3.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hour,load\n1,2\n", "one of the columns users and requests_per_s"),
        ("users,requests_per_s\n1,2\n", "one of the columns"),
        ("users\n", "one of the columns"),
        ("users\n5\nmany\n", "line 3: 'many' is no load"),
        ("users\n-1\n", "line 2: '-1' is no load"),
        ("users\n0\n0\n", "every step is 0"),
    ],
)
def test_a_profile_that_is_none_is_told(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=told):
        demand.read_profile(path)


@pytest.mark.parametrize(
    ("registered", "activity", "growth", "told"),
    [
        (0, 0.1, 0.0, "registered users 0"),
        (10, 0.0, 0.0, "activity 0"),
        (10, 5.0, 0.0, "activity 5: must lie within 0 and 1"),
        (10, 0.1, -1.0, "growth -1"),
    ],
)
def test_shares_that_make_no_sense_are_told(
    registered: int, activity: float, growth: float, told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        demand.of_registered(registered, activity, growth=growth)


def test_money_is_the_same_by_hour_month_year_user_and_token() -> None:
    found = costs(10.0, Demand(users=100), users=100, output_tokens_per_s=1000.0)
    assert (found.usd_per_month, found.usd_per_year, found.usd_per_user_month) == (7300, 87600, 73)
    assert found.usd_per_million_output_tokens == pytest.approx(10 / 3.6)
    assert found.usd_per_million_total_tokens is None
    half = costs(10.0, Demand(users=100, mean_share=0.5), output_tokens_per_s=1000.0)
    assert half.usd_per_million_output_tokens == pytest.approx(20 / 3.6)


def test_a_bought_node_costs_its_share_of_each_hour() -> None:
    bought = Purchase(
        usd=87_600, years=2, power_kw=2, usd_per_kwh=0.25, overhead=1.5, usd_per_year=876
    )
    assert usd_per_h(bought, "a40") == pytest.approx(5 + 0.75 + 0.1)
    with pytest.raises(UsageError, match="a40: years 0 must be"):
        usd_per_h(Purchase(usd=1, years=0), "a40")
    with pytest.raises(UsageError, match=r"overhead 0\.9"):
        usd_per_h(Purchase(usd=1, years=1, overhead=0.9), "a40")


SUPPLY = """\
nodes:
  - {gpu: a40, gpus: 4, usd_per_h: 4.0, at_most: 30}
  - gpu: a100
    purchase: {usd: 175200, years: 4, power_kw: 5, usd_per_kwh: 0.1, overhead: 1.2}
"""


def test_a_supply_file_gives_sizes_prices_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(SUPPLY)
    found = read_supply(path)
    assert found.gpus_per_node_of == {"a40": 4, "a100": 8}
    assert found.nodes_max_of == {"a40": 30}
    assert [(p.gpu, p.per) for p in found.prices] == [("a40", "node"), ("a100", "node")]
    assert [p.usd_per_h for p in found.prices] == pytest.approx([4.0, 5.6])
    assert found.only_listed
    assert found.notes[0].startswith("a node of a100 is 5.60 USD/h: 175200 USD over 4 years, 6 kW")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("gpu: a40", "gpu: A100"), "line 3, nodes[1].gpu: 'a100' is there twice"),
        (("usd_per_h: 4.0", "price: 4.0"), "line 2, nodes[0].price: key 'price' is not known"),
        (("years: 4", "year: 4"), "did you mean 'years'?"),
        (("gpus: 4", "gpus: four"), "line 2, nodes[0].gpus"),
        (("gpu: a100", "gpu: a100\n    usd_per_h: 3"), "has usd_per_h and purchase"),
    ],
)
def test_a_supply_file_that_cannot_be_meant_is_told(
    change: tuple[str, str], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(SUPPLY.replace(*change))
    with pytest.raises(UsageError) as caught:
        read_supply(path)
    assert told in str(caught.value)

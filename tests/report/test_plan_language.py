"""Every sentence that a plan may say is there in Chinese."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from test_html import cell
from test_language import Input, hold

from servecap import slo as slos
from servecap.cell import Capacity, Cell
from servecap.plan import Demand, Price, Supply, plan
from servecap.plan.costs import Purchase
from servecap.plan.demand import Profile, of_models, of_profile, of_registered, of_users
from servecap.plan.outlook import with_outlook
from servecap.plan.supply import _bought

PRICES = (Price("A30", 4.0, "node"), Price("A100", 16.0, "node"))
CELLS = [cell(), cell("A100", 4, 225)]
LARGE = cell("A100", 4, 30, model="large")
MODELLED = cell(origin="predicted", capacity=Capacity(
    users=45, users_low=30, users_high=60, confidence=0.8))  # fmt: skip
SWAPPED = cell(tp=2, users=20, interconnect="pcie", gpu_memory_gb=24.0)


def unsure_plans() -> Iterator[Input]:
    """Plans on cells whose other ends would change them, which the outlook says."""
    whole = Cell(
        model="llama-13b", gpu="a40", tp=4, scenario="chat", origin="measured",
        provenance="here", slo=str(slos.DEFAULT), ttft_s=1.0, tpot_s=0.05, requests_per_s=20.0,
        capacity=Capacity(users=100, users_high=110),
    )  # fmt: skip
    other = msgspec.structs.replace(whole, gpu="v100", capacity=Capacity(users=99, users_high=180))
    predicted = Capacity(users=99, users_high=300, users_low=20, confidence=0.8)
    first = msgspec.structs.replace(predicted, users=150)
    less = Capacity(users=90, users_high=90)
    surer = msgspec.structs.replace(first, users_low=120)
    ended = msgspec.structs.replace(other, capacity=Capacity(users=110, users_high=None))
    for cells in (
        [whole, other],
        [whole, msgspec.structs.replace(other, origin="predicted", capacity=predicted)],
        [
            msgspec.structs.replace(
                whole, origin="predicted", capacity=Capacity(users=100, users_high=None)
            ),
            other,
        ],
        [whole, msgspec.structs.replace(other, origin="predicted", capacity=first)],
        [
            msgspec.structs.replace(whole, capacity=less),
            msgspec.structs.replace(other, origin="predicted", capacity=surer),
        ],
        [whole, ended],
        [msgspec.structs.replace(ended, capacity=Capacity(users=150, users_high=None)), whole],
    ):
        for prices in ((), (Price("a40", 1.0), Price("v100", 1.1))):
            made = plan(cells, Demand(1_000), Supply(prices=prices))
            yield {"plan": with_outlook(made, cells)}


TOLD = cell(output_tokens_per_s=900.0, total_tokens_per_s=2000.0)
BOUGHT = tuple(
    _bought("A30", Purchase(usd=50_000.0, years=4.0, power_kw=power, usd_per_kwh=0.1, **more), 2.5)
    for power in (0.0, 2.0)
    for more in ({}, {"usd_per_year": 900.0})
)
ASKED = [
    (CELLS, Demand(100), Supply(used_share_max=0.8)),
    (CELLS, Demand(900), Supply(spare_nodes=1)),
    (CELLS, Demand(900), Supply(spare_nodes=2, used_share_max=0.8)),
    (CELLS, of_users(900, growth=0.2), Supply(zones=3)),
    (CELLS, of_registered(90_000, 0.01, growth=0.2), Supply()),
    (CELLS, of_registered(90_000, 0.01), Supply(notes=BOUGHT)),
    (CELLS, of_profile(Profile("users", (20.0, 90.0)), growth=0.5), Supply()),
    (CELLS, of_profile(Profile("users", (20.0, 90.0))), Supply()),
    ([*CELLS, LARGE], of_models({"llama-13b": 225, "large": 25}, growth=0.1), Supply()),
    (CELLS, Demand(900), Supply(zones=3, zone_weights=(2, 1, 1))),
    (CELLS, Demand(700), Supply(prices=PRICES, nodes_max_of={"A30": 3, "A100": 1})),
    (CELLS, Demand(800), Supply(prices=PRICES, nodes_max_of={"A30": 3, "A100": 1})),
    (CELLS, Demand(400), Supply(nodes_max_of={"A30": 3})),
    (CELLS, Demand(460), Supply(prices=(Price("A30", 6, "node"), PRICES[1]))),
    ([MODELLED, CELLS[1]], Demand(460), Supply(prices=(Price("A30", 6, "node"), PRICES[1]))),
    ([*CELLS, cell("L4", 8, 20)], Demand(900), Supply(prices=PRICES)),
    ([TOLD], Demand(90), Supply(prices=PRICES[:1])),
    ([TOLD], Demand(requests_per_s=13.0), Supply(prices=PRICES[:1])),
    ([cell(output_tokens_per_s=900.0)], Demand(90), Supply(prices=PRICES[:1])),
    ([cell(total_tokens_per_s=900.0, requests_per_s=9.0)], Demand(90), Supply(prices=PRICES[:1])),
    (CELLS, Demand(450), Supply(gpus_per_node_of={"a100": 8}, only_listed=True)),
    ([cell(requests_per_s=3.0)], Demand(requests_per_s=13.0), Supply()),
    ([cell(avg_output_tokens=101.0)], Demand(requests_per_s=13.0), Supply()),
    ([cell(), cell("A100", requests_per_s=1.0)], Demand(requests_per_s=13.0), Supply()),
    ([*CELLS, LARGE], Demand(users=250, users_of={"llama-13b": 225, "large": 25}),
     Supply(prices=(Price("A30", 40.0, "node"), PRICES[1]))),
    ([*CELLS, LARGE], Demand(users=250, users_of={"llama-13b": 225, "large": 25}), Supply()),
    ([MODELLED, CELLS[1]], Demand(900), Supply()),
    ([cell(tp=3), cell(tp=16), cell(tp=2, users=1)], Demand(90), Supply(used_share_max=0.5)),
    ([cell(tp=2, users=22), cell(tp=4, users=44), cell(tp=8, users=88)], Demand(90), Supply()),
    ([cell(error_rate=0.03), cell("A100", ttft_s=4.0), cell("L4", error_rate=0.3),
      cell("T4", invalid_reason="no reason recorded"), cell("V100", ttft_s=None),
      cell("A40", slo="ttft.mean<9s"), cell("A10", capacity=None)], Demand(90), Supply()),
    ([cell(slo="ttft.mean<1s,tpot.mean<100ms"), SWAPPED], Demand(90), Supply()),
    ([cell(capacity=Capacity(users=9, users_high=11, limited_by="tpot.mean<100ms"))], Demand(90),
     Supply()),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ASKED)))
def test_every_text_of_a_plan_is_there(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, demand, supply = ASKED[number]
    made = with_outlook(plan(cells, demand, supply), cells)
    hold({"plan": made}, monkeypatch, drawn=False)


def test_every_text_of_what_would_change_a_plan_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ""
    for given in unsure_plans():
        hold(given, monkeypatch, drawn=False)
        told += "\n".join(given["plan"].outlook.worth_measuring)
    for said in ("interval up to", "interval from", "interval ends", "not measured", "ended before",
                 "the choice would be", "nodes fewer", "node more", "USD/h"):  # fmt: skip
        assert said in told, said

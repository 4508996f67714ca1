"""Sizing: from cells to nodes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from servecap import slo as slos
from servecap.cell import Capacity, Cell
from servecap.errors import UsageError
from servecap.matrix.table import read_csv
from servecap.plan import Demand, GpuPlan, ModelPlan, Plan, Price, Supply, plan
from servecap.slo import Limit, Slo

CHAT = Path(__file__).resolve().parents[1] / "../shared/data/matrix_chat.csv"
needs_chat = pytest.mark.skipif(not CHAT.is_file(), reason="needs ../shared/data/matrix_chat.csv")

TOLERANT = slos.parse("ttft.mean<3.2s,tpot.mean<110ms")
STRICT = slos.parse("ttft.mean<3s,tpot.mean<100ms")
NODES = Supply(gpus_per_node_of={"a40": 4})


def cell(tp: int = 4, users: int = 45, **changes: object) -> Cell:
    """A cell that keeps the default SLO."""
    base = Cell(
        model="llama-13b", gpu="A30", tp=tp, scenario="chat", origin="measured",
        provenance=f"t.csv, TP{tp}", capacity=Capacity(users=users, users_high=None),
        gpu_memory_gb=24, interconnect="pcie", error_rate=0.0, ttft_s=2.5, tpot_s=0.09,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def only(found: Plan) -> ModelPlan:
    (model,) = found.models
    return model


def only_gpu(found: Plan) -> GpuPlan:
    (gpu,) = only(found).gpus
    return gpu


def splits(gpu: GpuPlan) -> list[tuple[str, int, int]]:
    return [(s.name, s.users_per_node, s.nodes) for s in gpu.splits]


def of(found: Plan, model: str, gpu: str) -> GpuPlan:
    (m,) = [m for m in found.models if m.model == model]
    (g,) = [g for g in m.gpus if g.gpu == gpu]
    return g


@needs_chat
def test_ten_thousand_users_with_the_tolerance_of_the_source() -> None:
    found = plan(read_csv(CHAT).cells, Demand(10_000), NODES, slo=TOLERANT)
    assert splits(of(found, "llama-13b", "A30-24GB")) == [
        ("2 x TP4", 90, 112), ("4 x TP2", 80, 125), ("1 x TP8", 60, 167),
    ]  # fmt: skip
    # TP1 carries 4 x 60 = 240, but 7% of its requests failed
    assert splits(of(found, "llama-13b", "A40-48GB")) == [
        ("2 x TP2", 280, 36),
        ("1 x TP4", 220, 46),
    ]
    # The source names TP8 and TP4, which tie; its own row of TP2 (110 users, 2.885 s, 82 ms, 2%
    # errors) keeps every limit and contradicts nothing, and four of them carry more.
    assert splits(of(found, "llama-13b", "V100-32GB")) == [
        ("4 x TP2", 440, 23), ("1 x TP8", 320, 32), ("2 x TP4", 320, 32),
    ]  # fmt: skip
    assert splits(of(found, "llama-13b", "A100-40GB")) == [
        ("2 x TP4", 900, 12), ("1 x TP8", 700, 15), ("4 x TP2", 480, 21),
    ]  # fmt: skip
    nodes = {gpu: of(found, "llama-65b", gpu).best.nodes for gpu in
             ("A30-24GB", "A40-48GB", "V100-32GB", "A100-40GB")}  # fmt: skip
    assert nodes == {"A30-24GB": 1000, "A40-48GB": 1000, "V100-32GB": 112, "A100-40GB": 56}


@needs_chat
def test_without_the_two_gpu_row_the_tie_on_v100_is_named() -> None:
    cells = [c for c in read_csv(CHAT).cells if (c.gpu, c.tp) != ("V100", 2)]
    v100 = of(plan(cells, Demand(10_000), NODES, slo=TOLERANT), "llama-13b", "V100-32GB")
    assert splits(v100) == [("1 x TP8", 320, 32), ("2 x TP4", 320, 32)]
    assert [s.name for s in v100.ties] == ["2 x TP4"]
    assert v100.reasons[0] == (
        "1 x TP8 and 2 x TP4 tie at 320 users a node; 1 x TP8 is named first: it uses 91% of its "
        "nearest limit, 2 x TP4 97%"
    )


@needs_chat
def test_the_strict_slo_changes_the_answer_and_names_what_breaks_it() -> None:
    found = plan(read_csv(CHAT).cells, Demand(10_000), NODES, slo=STRICT)
    assert splits(of(found, "llama-13b", "A30-24GB")) == [
        ("4 x TP2", 80, 125),
        ("1 x TP8", 60, 167),
    ]
    out = {c.cell: c.reason for m in found.models for c in m.left_out}
    assert out["llama-13b on A30-24GB, TP4, chat"] == "TPOT 102 ms breaks tpot.mean<100ms"
    assert out["llama-13b on A40-48GB, TP4, chat"] == (
        "TTFT 3.08 s breaks ttft.mean<3s; TPOT 101 ms breaks tpot.mean<100ms"
    )
    assert out["llama-65b on V100-32GB, TP8, chat"].startswith("TTFT 3.179 s breaks ttft.mean<3s")
    assert [c.cell for c in found.left_out] == ["llama-13b on A100-40GB, TP1, chat-zh"]


def test_nodes_are_rounded_up() -> None:
    for users, nodes in ((1, 1), (90, 1), (91, 2), (10_000, 112)):
        assert only_gpu(plan([cell()], Demand(users))).best.nodes == nodes


def test_gpus_that_no_instance_uses_are_counted_and_named() -> None:
    gpu = only_gpu(plan([cell(tp=3)], Demand(100)))
    assert (gpu.best.name, gpu.best.gpus, gpu.best.idle_gpus_per_node) == ("2 x TP3", 16, 2)
    assert "2 GPUs of each node stay idle" in gpu.warnings


def test_equal_splits_go_to_the_measured_then_the_roomier_then_the_larger() -> None:
    tight, roomy = cell(tp=8, users=90, ttft_s=2.9), cell(tp=4, users=45, ttft_s=2.0, tpot_s=0.06)
    assert only_gpu(plan([tight, roomy], Demand(1))).best.tp == 4
    guess = msgspec.structs.replace(roomy, origin="predicted")
    assert only_gpu(plan([tight, guess], Demand(1))).best.tp == 8
    assert only_gpu(plan([cell(tp=4, users=45), cell(tp=8, users=90)], Demand(1))).best.tp == 8


def test_a_measured_cell_stands_in_front_of_a_predicted_one() -> None:
    guess = cell(users=99, origin="predicted")
    for cells in ([cell(), guess], [guess, cell()]):
        gpu = only_gpu(plan(cells, Demand(1)))
        assert (gpu.best.users_per_node, gpu.best.origin) == (90, "measured")
    alone = only_gpu(plan([guess], Demand(1)))
    assert any("predicted" in warning for warning in alone.warnings)


def test_scenarios_are_never_mixed() -> None:
    cells = [cell(), cell(tp=8), cell(tp=2, users=500, scenario="chat-zh")]
    assert plan(cells, Demand(1)).scenario == "chat"
    assert only_gpu(plan(cells, Demand(1))).best.tp == 4
    chinese = plan(cells, Demand(1), scenario="chat-zh")
    assert splits(only_gpu(chinese)) == [("4 x TP2", 2000, 1)]
    assert len(chinese.left_out) == 2


def test_the_same_gpu_with_another_memory_or_link_is_another_type() -> None:
    cells = [cell(), cell(gpu_memory_gb=80.0), cell(interconnect="nvlink")]
    found = {(g.gpu, g.interconnect) for g in only(plan(cells, Demand(1))).gpus}
    assert found == {("A30-24GB", "pcie"), ("A30-80GB", "pcie"), ("A30-24GB", "nvlink")}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ttft_s": 3.1}, "TTFT 3.1 s breaks ttft.mean<3s"),
        ({"tpot_s": None}, "tpot.mean is not known, so tpot.mean<100ms cannot be checked"),
        ({"error_rate": 0.07}, "error rate 0.07 breaks error_rate<5%"),
        ({"tp": 16}, "needs 16 GPUs in one node, which has 8"),
        ({"capacity": None, "invalid_reason": "slow client"}, "has no capacity: slow client"),
        ({"invalid_reason": "slow client"}, "is not valid: slow client"),
        ({"capacity": Capacity(users=0, users_high=0)}, "no number of users was seen"),
    ],
)
def test_a_cell_that_cannot_be_used_is_left_out_with_the_reason(
    changes: dict[str, object], reason: str
) -> None:
    good, bad = cell(tp=2), msgspec.structs.replace(cell(), **changes)
    model = only(plan([good, bad], Demand(100)))
    assert [s.tp for s in model.gpus[0].splits] == [2]
    (out,) = model.left_out
    assert out.reason.startswith(reason)


def test_no_usable_cell_is_an_answer_too() -> None:
    model = only(plan([cell(ttft_s=9.0)], Demand(100)))
    assert (model.gpus, len(model.left_out)) == ((), 1)


def test_an_unknown_error_rate_is_not_held_against_a_cell_but_told() -> None:
    found = plan([cell(error_rate=None)], Demand(100))
    assert only_gpu(found).best.error_rate is None
    assert any("no error rate is reported for 1 of 1" in text for text in found.caveats)


def test_a_percentile_is_taken_from_the_slo_that_a_cell_was_measured_under() -> None:
    asked = slos.parse("ttft.p99<5s")
    own = cell(slo="ttft.p99<4s,error_rate<1%")
    gpu = only_gpu(plan([own], Demand(1), slo=asked))
    assert any("found under ttft.p99<4s" in warning for warning in gpu.warnings)
    loose = cell(tp=2, slo="ttft.p99<6s")
    (out,) = only(plan([own, loose], Demand(1), slo=asked)).left_out
    assert "found under ttft.p99<6s, which is looser than ttft.p99<5s" in out.reason
    with pytest.raises(UsageError, match=r"SLO limit ttft\.p99<5s cannot be checked"):
        plan([cell()], Demand(1), slo=asked)


def test_a_search_that_was_cut_short_gives_a_lower_bound_and_says_so() -> None:
    own = "ttft.mean<3s,tpot.mean<100ms"
    cut, whole = cell(slo=own), cell(tp=8, slo=own, capacity=Capacity(users=60, users_high=61))
    gpu = only_gpu(plan([cut, whole], Demand(1)))
    assert [s.lower_bound for s in gpu.splits] == [True, False]
    assert any("users of 2 x TP4 are a lower bound" in reason for reason in gpu.reasons)
    imported = only_gpu(plan([cell(slo=None)], Demand(1)))
    assert not imported.best.lower_bound


def test_prices_rank_the_gpu_types() -> None:
    cells = [cell(), cell(gpu="A100", users=450, gpu_memory_gb=40.0)]
    by_gpus = only(plan(cells, Demand(900)))
    assert ([g.gpu for g in by_gpus.gpus], by_gpus.ranked_by) == (["A100-40GB", "A30-24GB"], "gpus")
    prices = (Price("a30", 0.1), Price("A100-40GB", 16.0, "node"))
    by_cost = only(plan(cells, Demand(900), Supply(prices=prices)))
    assert by_cost.ranked_by == "usd_per_h"
    assert [g.gpu for g in by_cost.gpus] == ["A30-24GB", "A100-40GB"]
    assert [g.best.usd_per_h for g in by_cost.gpus] == pytest.approx([8.0, 16.0])
    partly = only(plan(cells, Demand(900), Supply(prices=prices[:1])))
    assert partly.ranked_by == "gpus"


def test_the_size_of_a_node_may_be_given_by_name_or_by_type() -> None:
    cells = [cell(), cell(gpu_memory_gb=48.0)]
    supply = Supply(gpus_per_node=16, gpus_per_node_of={"A30": 8, "a30-48gb": 4})
    sizes = {g.gpu: g.gpus_per_node for g in only(plan(cells, Demand(1), supply)).gpus}
    assert sizes == {"A30-24GB": 8, "A30-48GB": 4}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"demand": Demand(0)}, "users 0: at least 1"),
        ({"supply": Supply(gpus_per_node=0)}, "GPUs per node 0: must be at least 1"),
        ({"supply": Supply(gpus_per_node_of={"a30": 0})}, "GPUs per node a30=0"),
        ({"supply": Supply(gpus_per_node_of={"h100": 8})}, "GPU 'h100' is not in the matrix"),
        ({"supply": Supply(prices=(Price("a30", -1),))}, "price a30=-1: must be greater than 0"),
        ({"supply": Supply(prices=(Price("a30", 1), Price("A30", 2)))}, "GPU 'a30' has 2 prices"),
        ({"cells": []}, "the matrix has no cells"),
        ({"cells": [cell(), cell()]}, "is there twice (t.csv, TP4; t.csv, TP4)"),
        ({"models": ["llama-13c"]}, "did you mean llama-13b?"),
        ({"models": ["x"]}, "it has llama-13b"),
        ({"scenario": "docqa"}, "scenario 'docqa' is not in the matrix; it has chat"),
    ],
)
def test_a_question_that_makes_no_sense_is_told(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**({"cells": [cell()], "demand": Demand(1)} | arguments))  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_a_plan_goes_to_json_whole() -> None:
    found = plan([cell(), cell(tp=8)], Demand(100), Supply(prices=(Price("a30", 1),)))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Plan) == found


tables = st.lists(
    st.builds(
        cell,
        tp=st.sampled_from([1, 2, 3, 4, 8, 16]),
        users=st.integers(0, 900),
        gpu=st.sampled_from(["A30", "A40", "V100", "A100"]),
        ttft_s=st.floats(0.1, 5),
        tpot_s=st.floats(0.01, 0.2),
        error_rate=st.none() | st.floats(0, 0.1),
        slo=st.none() | st.sampled_from(["ttft.p99<4s", "ttft.p99<6s"]),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda c: (c.gpu, c.tp),
)
ORDERED = ("A30", "A40", "V100", "A100")


def supply_for(cells: list[Cell]) -> Supply:
    names = sorted({c.gpu for c in cells})
    return Supply(prices=tuple(Price(name, 1.0 + ORDERED.index(name)) for name in names))


def best_users(found: Plan) -> dict[str, int]:
    return {gpu.gpu: gpu.best.users_per_node for m in found.models for gpu in m.gpus}


@given(tables, st.integers(1, 10**6), st.integers(1, 10**6))
def test_more_users_never_need_fewer_nodes(cells: list[Cell], a: int, b: int) -> None:
    few, many = sorted((a, b))
    small, large = plan(cells, Demand(few)), plan(cells, Demand(many))
    needed = {g.gpu: g.best.nodes for g in only(large).gpus}
    for gpu in only(small).gpus:
        assert gpu.best.nodes <= needed[gpu.gpu]
        assert (gpu.best.nodes - 1) * gpu.best.users_per_node < few
        assert gpu.best.nodes * gpu.best.users_per_node >= few


@given(
    tables, st.floats(0.5, 5), st.floats(0.5, 5), st.floats(0.02, 0.2), st.floats(0, 0.1),
    st.floats(0, 0.1),
)  # fmt: skip
def test_a_stricter_slo_never_carries_more_users(
    cells: list[Cell], ttft_a: float, ttft_b: float, tpot: float, share_a: float, share_b: float
) -> None:
    tight = Slo((Limit("ttft", "mean", min(ttft_a, ttft_b)), Limit("tpot", "mean", tpot)),
                min(share_a, share_b))  # fmt: skip
    loose = Slo((Limit("ttft", "mean", max(ttft_a, ttft_b)),), max(share_a, share_b))
    allowed = best_users(plan(cells, Demand(1), slo=loose))
    for gpu, users in best_users(plan(cells, Demand(1), slo=tight)).items():
        assert users <= allowed[gpu]


@given(tables, st.sampled_from(ORDERED), st.integers(1, 10**5))
def test_more_gpu_types_never_cost_more(cells: list[Cell], left_out: str, users: int) -> None:
    fewer = [c for c in cells if c.gpu != left_out]
    assume(fewer)

    def best_cost(some: list[Cell]) -> float:
        gpus = only(plan(some, Demand(users), supply_for(some))).gpus
        costs = [g.best.usd_per_h for g in gpus if g.best.usd_per_h is not None]
        assert costs == sorted(costs)
        return min(costs, default=float("inf"))

    assert best_cost(cells) <= best_cost(fewer)

"""What half the context would change, by the ratio of two predictions."""

from __future__ import annotations

import msgspec
import pytest

from servecap import slo as slos
from servecap.cell import Capacity, Cell
from servecap.engine import fast
from servecap.errors import UsageError
from servecap.plan import Demand, plan
from servecap.plan.answer import WhatIf
from servecap.plan.halved import halved
from servecap.plan.outlook import HALF, with_outlook

COMPILED_ONLY = pytest.mark.skipif(not fast.COMPILED, reason="needs the compiled engine")


def cell(**changes: object) -> Cell:
    base = Cell(
        model="llama-13b", gpu="a100", gpu_memory_gb=40, tp=4, scenario="chat", origin="measured",
        provenance="p", avg_context_tokens=465.0, capacity=Capacity(users=450, users_high=None),
        ttft_s=2.8, tpot_s=0.069, requests_per_s=12.0,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def half(cells: list[Cell], demand: Demand) -> list[WhatIf]:
    outlook = with_outlook(plan(cells, demand), cells).outlook
    assert outlook is not None
    return [w for w in outlook.what_if if w.change == HALF]


@COMPILED_ONLY
def test_half_the_context_carries_more_users_on_fewer_nodes() -> None:
    cells = [cell(), cell(tp=2, capacity=Capacity(users=120, users_high=None))]
    before = plan(cells, Demand(100_000)).models[0]
    scaled, other = halved(before, cells, "chat", slos.DEFAULT)
    assert scaled.capacity is not None
    assert 1.2 * 450 < scaled.capacity.users < 4 * 450
    assert (scaled.avg_context_tokens, scaled.ttft_s) == (232.5, 2.8)
    assert other.invalid_reason == "not the best split"
    (found,) = half(cells, Demand(100_000))
    assert found.same_choice
    assert found.nodes == -(-100_000 // (2 * scaled.capacity.users))
    assert found.nodes < before.gpus[0].best.nodes


@COMPILED_ONLY
def test_models_that_share_a_fleet_are_halved_one_by_one() -> None:
    cells = [cell(), cell(model="llama-7b", tp=1, capacity=Capacity(users=30, users_high=None))]
    found = half(cells, Demand(users=1500, users_of={"llama-13b": 1000, "llama-7b": 500}))
    assert [w.model for w in found] == ["llama-13b", "llama-7b"]
    assert all(w.nodes is not None for w in found)


@COMPILED_ONLY
def test_what_the_engine_model_cannot_tell_is_not_known() -> None:
    for changes, why in (
        ({"model": "nonesuch"}, "nonesuch"),
        ({"avg_context_tokens": None}, "tells no context"),
        ({"avg_context_tokens": 1e6}, "no capacity to compare"),
    ):
        (found,) = half([cell(**changes)], Demand(1000))
        assert found.nodes is None
        assert found.answer.startswith("not known: ")
        assert why in found.answer


def test_without_compiler_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "COMPILED", False)
    with pytest.raises(UsageError, match="not compiled"):
        halved(plan([cell()], Demand(1000)).models[0], [cell()], "chat", slos.DEFAULT)

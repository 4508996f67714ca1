"""A plan in words, held against recorded texts.

Record them anew with `UPDATE_GOLDEN=1 pytest tests/report/test_plan_text.py` and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from servecap import slo as slos
from servecap.cell import Capacity, Cell
from servecap.matrix.table import read_csv
from servecap.plan import Demand, Price, Supply, plan
from servecap.report.plan_text import plan_text

CHAT = Path(__file__).resolve().parents[2] / "../shared/data/matrix_chat.csv"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NODES = {"a40": 4}


@pytest.mark.skipif(not CHAT.is_file(), reason="needs ../shared/data/matrix_chat.csv")
@pytest.mark.parametrize(
    ("name", "slo", "supply"),
    [
        ("plan_tolerant", "ttft.mean<3.2s,tpot.mean<110ms", Supply(gpus_per_node_of=NODES)),
        ("plan_strict", "ttft.mean<3s,tpot.mean<100ms", Supply(gpus_per_node_of=NODES)),
        (
            "plan_priced",
            "ttft.mean<3.2s,tpot.mean<110ms",
            Supply(
                gpus_per_node_of=NODES,
                prices=(Price("a30", 0.5), Price("a40", 1.0), Price("v100", 8.0, "node"),
                        Price("a100", 2.0)),
            ),
        ),
    ],
)  # fmt: skip
def test_the_plan_of_the_chat_table(name: str, slo: str, supply: Supply) -> None:
    cells = read_csv(CHAT).cells
    text = plan_text(plan(cells, Demand(10_000), supply, slo=slos.parse(slo)))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 100


def cell(**changes: object) -> Cell:
    fields = {
        "model": "m", "gpu": "g", "tp": 1, "scenario": "chat", "origin": "measured",
        "provenance": "p", "capacity": Capacity(users=5, users_high=None), "ttft_s": 1.0,
        "tpot_s": 0.05,
    }  # fmt: skip
    return Cell(**(fields | changes))  # type: ignore[arg-type]


def test_a_predicted_split_is_marked_wherever_it_is_named() -> None:
    text = plan_text(plan([cell(origin="predicted")], Demand(10)))
    headline, row = text.splitlines()[1], text.splitlines()[5]
    assert "for 40 users (predicted)" in headline
    assert row.endswith("predicted")
    assert "is predicted by an engine model (p)" in text


def test_a_model_without_a_plan_says_so_first() -> None:
    text = plan_text(plan([cell(ttft_s=9.0)], Demand(10)))
    assert "m: no plan, every cell is left out" in text.splitlines()[1]
    assert "m on g, TP1, chat: TTFT 9 s breaks ttft.mean<3s" in text


def test_names_from_a_file_cannot_steer_a_terminal() -> None:
    text = plan_text(plan([cell(model="m\x1b[2J", gpu="g\n")], Demand(10)))
    assert "\x1b" not in text
    assert text.isprintable() or set(filter(lambda c: not c.isprintable(), text)) == {"\n"}


def test_reasons_are_never_cut_short() -> None:
    own = "ttft.mean<3s,tpot.mean<100ms"
    found = plan([cell(tp=tp, slo=own, gpu="a100-40gb") for tp in (1, 2, 3, 4, 8)], Demand(10))
    text = " ".join(plan_text(found).split())
    (gpu,) = found.models[0].gpus
    assert sum(map(len, gpu.reasons)) > 300
    for reason in gpu.reasons:
        assert reason in text

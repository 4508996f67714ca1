"""What a row of degrees says about tensor parallelism."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from servecap.cli import cli
from servecap.engine.gpu_file import Fabric
from servecap.errors import UsageError
from servecap.predict.answer import Answer, Range
from servecap.predict.conclusions import conclusions


def made(
    tp: int,
    users: float,
    *,
    gpu: str = "A30",
    share: float = 0.0,
    fabric: Fabric | None = None,
    context: int | None = None,
    computing: float = 0.0,
) -> Answer:
    return Answer(
        model="m", gpu=gpu, tp=tp, scenario="chat", kind="spec-only",
        max_users=Range(users, users / 2, users * 2), step_shares={"interconnect": share},
        binds="tpot.mean<100ms: host", fabric=fabric, context_tokens=context,
        time_shares={"compute": computing, "bandwidth": 1 - computing},
    )  # fmt: skip


def test_the_degree_is_told_after_which_users_per_gpu_fall() -> None:
    row = [made(8, 200, share=0.4), made(2, 40), made(4, 120, share=0.2), made(1, 10)]
    (said,) = conclusions(row)
    assert said == (
        "m on A30: users per GPU 10 at TP1, 20 at TP2, 30 at TP4, 25 at TP8: more than TP4 does "
        "not pay; at TP8 it is limited by tpot.mean<100ms: host, and the interconnect takes 40% of "
        "a decode step"
    )


def test_where_they_go_on_rising_it_goes_on_paying_and_one_degree_says_nothing() -> None:
    assert conclusions([made(4, 120), made(2, 40)]) == [
        "m on A30: users per GPU 20 at TP2, 30 at TP4: more TP goes on paying"
    ]
    level = [made(2, 40), made(4, 79), made(8, 150)]
    assert conclusions(level)[0].endswith("19.8 at TP4, 18.8 at TP8: more TP goes on paying")
    assert conclusions([made(4, 120), made(2, 0), made(2, 40, gpu="A40")]) == []


def test_pcie_and_links_of_their_own_are_told_apart() -> None:
    rows = [
        *(made(n, users, fabric="pcie") for n, users in ((1, 10), (2, 30), (4, 40))),
        *(made(n, users, gpu="V100", fabric="nvlink-mesh") for n, users in ((1, 10), (2, 30))),
    ]
    assert conclusions(rows)[-1] == (
        "m: more TP pays on PCIe: A30 up to TP2; through links of their own: V100 up to TP2 and "
        "more"
    )
    assert not any("pays on PCIe" in said for said in conclusions(rows[:3]))


def test_how_users_fall_with_the_context_and_where_the_bound_moves() -> None:
    rows = [
        *(made(1, u, context=c, computing=s) for c, u, s in
          ((1024, 50, 0.2), (4096, 20, 0.4), (16384, 0, 0.7))),
        *(made(1, u, gpu="A100", context=c, computing=0.6) for c, u in ((1024, 80), (16384, 40))),
    ]  # fmt: skip
    assert conclusions(rows) == [
        "m on A30, TP1: users by context: 50 at 1,024, 20 at 4,096, 0 at 16,384; what takes most "
        "of the engine's time moves from bandwidth to compute between 4,096 and 16,384 (computing "
        "20% of it at 1,024 tokens, 70% at 16,384)",
        "m on A100, TP1: users by context: 80 at 1,024, 40 at 16,384; what takes most of the "
        "engine's time stays compute (computing 60% of it at 1,024 tokens, 60% at 16,384)",
        "m, from 1,024 to 16,384 tokens users fall by 50% on A100 TP1, 100% on A30 TP1",
    ]


def test_a_sweep_of_contexts_is_predicted_and_concluded_from() -> None:
    words = ["predict", "--model", "llama-3.1-8b", "--gpu", "l4", "--context", "512,1k"]
    done = CliRunner().invoke(cli, [*words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert [c["context_tokens"] for c in told["cells"]] == [512, 1024]
    short, long = (c["max_users"]["value"] for c in told["cells"])
    assert short > long > 0
    for cell in told["cells"]:
        assert sum(cell["time_shares"].values()) == pytest.approx(1.0)
    assert f"users by context: {short:.0f} at 512, {long:.0f} at 1,024" in told["together"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context", "1m"], "no list of tokens like 1k,4k,16k"),
        (["--context", "100"], "leaves no prompt beside an answer of 188 tokens"),
        (["--context", "1k", "--prompt-tokens", "5"], "contradict each other"),
    ],
)
def test_contexts_that_cannot_be_are_told(words: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["predict", "--model", "llama-13b", "--gpu", "a30", *words])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)

"""What a row of degrees says about tensor parallelism."""

from __future__ import annotations

from servecap.predict.answer import Answer, Range
from servecap.predict.conclusions import conclusions


def made(tp: int, users: float, *, gpu: str = "A30", share: float = 0.0) -> Answer:
    return Answer(
        model="m", gpu=gpu, tp=tp, scenario="chat", kind="spec-only",
        max_users=Range(users, users / 2, users * 2), step_shares={"interconnect": share},
        binds="tpot.mean<100ms: host",
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

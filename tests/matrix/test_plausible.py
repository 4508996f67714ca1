"""Figures of one row held against each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.matrix.plausible import Load, Rates, usable_rates

LLAMA_13B_A100_TP1 = Load(users=90, ttft_s=1.11, tpot_s=0.040, context_tokens=145.27)
LLAMA_13B_V100_TP4 = Load(users=160, ttft_s=3.09, tpot_s=0.071, context_tokens=462.87)


def test_a_cycle_shorter_than_first_token_and_thinking_is_impossible() -> None:
    rates = usable_rates(LLAMA_13B_A100_TP1, requests_per_s=36, tokens_per_s=3605)
    assert rates.requests_per_s is None
    assert rates.output_tokens_per_s is None
    assert rates.total_tokens_per_s is None
    assert "36 is impossible" in rates.notes[0]
    assert "every 2.5 s" in rates.notes[0]
    assert "take 3.11 s" in rates.notes[0]


def test_the_think_time_decides_what_is_impossible() -> None:
    fast = Load(users=90, ttft_s=1.11, tpot_s=0.040, think_mean_s=0.5)
    assert usable_rates(fast, requests_per_s=36).requests_per_s == 36


def test_rates_that_contradict_each_other_are_both_dropped() -> None:
    rates = usable_rates(LLAMA_13B_V100_TP4, requests_per_s=14.5, tokens_per_s=3323)
    assert rates == Rates(notes=rates.notes)
    assert "229.2 tokens a request" in rates.notes[0]
    assert "84.7 by Little's law" in rates.notes[0]


def test_a_stated_reading_is_held_against_the_length_it_counts() -> None:
    good = usable_rates(
        LLAMA_13B_V100_TP4, requests_per_s=7.2, tokens_per_s=3323, tokens_counted="total"
    )
    assert (good.requests_per_s, good.total_tokens_per_s, good.notes) == (7.2, 3323, ())
    bad = usable_rates(
        LLAMA_13B_V100_TP4, requests_per_s=14.5, tokens_per_s=3323, tokens_counted="total"
    )
    assert (bad.requests_per_s, bad.total_tokens_per_s) == (None, None)
    assert "instead of 462.87" in bad.notes[0]


@pytest.mark.parametrize(
    ("load", "requests", "tokens", "output", "total"),
    [
        # users 20, cycle 8.7 s: Little's law gives 94 tokens, tokens/s 96 a request
        (Load(users=20, ttft_s=1.29, tpot_s=0.058, context_tokens=390.87), 2.3, 220, 220, None),
        (
            Load(users=450, ttft_s=2.82, tpot_s=0.069, context_tokens=480.5),
            26.3,
            14643,
            None,
            14643,
        ),
        (Load(users=450), 26.3, 14643, None, None),  # no lengths: it cannot be told
    ],
)
def test_unlabelled_tokens_are_what_alone_fits(
    load: Load, requests: float, tokens: float, output: float | None, total: float | None
) -> None:
    rates = usable_rates(load, requests_per_s=requests, tokens_per_s=tokens)
    assert rates.requests_per_s == requests
    assert (rates.output_tokens_per_s, rates.total_tokens_per_s) == (output, total)
    assert "does not say whether prompts are counted" in rates.notes[0]


def test_fewer_tokens_than_requests_means_swapped_columns() -> None:
    rates = usable_rates(Load(users=20), requests_per_s=220, tokens_per_s=2.3)
    assert rates == Rates(notes=rates.notes)
    assert "columns swapped?" in rates.notes[0]


def test_no_user_gets_more_than_one_token_per_tpot() -> None:
    rates = usable_rates(
        LLAMA_13B_A100_TP1, requests_per_s=None, tokens_per_s=3605, tokens_counted="output"
    )
    assert rates.output_tokens_per_s is None
    assert "at most 2250" in rates.notes[0]


def test_tokens_that_stand_for_an_impossible_request_rate_are_dropped() -> None:
    load = Load(users=90, ttft_s=1.11, tpot_s=0.04, context_tokens=100)
    rates = usable_rates(load, requests_per_s=None, total_tokens_per_s=3605)
    assert rates.total_tokens_per_s is None
    assert "36 requests/s" in rates.notes[0]


def test_more_output_than_all_tokens_is_impossible() -> None:
    rates = usable_rates(
        Load(users=9), requests_per_s=None, output_tokens_per_s=50, total_tokens_per_s=40
    )
    assert (rates.output_tokens_per_s, rates.total_tokens_per_s) == (None, None)


def test_a_drain_tail_is_noted_and_the_measured_rate_kept() -> None:
    load = Load(users=180, ttft_s=2.62, tpot_s=0.116, context_tokens=410.9, output_tokens=173.46)
    rates = usable_rates(load, requests_per_s=3.9, tokens_per_s=689, tokens_counted="output")
    assert (rates.requests_per_s, rates.output_tokens_per_s) == (3.9, 689)
    assert "53% of the steady rate" in rates.notes[0]


def test_a_cycle_shorter_than_its_answer_is_impossible() -> None:
    load = Load(users=180, ttft_s=1.0, tpot_s=0.1, output_tokens=200)
    rates = usable_rates(load, requests_per_s=18)  # 10 s against 1 + 2 + 19.9 s
    assert rates.requests_per_s is None
    assert "200 tokens" in rates.notes[0]


@given(
    users=st.integers(1, 5000),
    ttft=st.floats(0.01, 10),
    tpot=st.floats(0.001, 0.5),
    prompt=st.integers(1, 4000),
    output=st.integers(1, 2000),
    think=st.floats(0, 10),
    label=st.sampled_from(["output", "total"]),
)
def test_a_true_closed_loop_is_never_accused(
    users: int, ttft: float, tpot: float, prompt: int, output: int, think: float, label: str
) -> None:
    load = Load(
        users=users, ttft_s=ttft, tpot_s=tpot, context_tokens=prompt + output,
        output_tokens=output, think_mean_s=think,
    )  # fmt: skip
    rate = users / (ttft + (output - 1) * tpot + think)
    rates = usable_rates(
        load,
        requests_per_s=rate,
        tokens_per_s=rate * (output if label == "output" else prompt + output),
        tokens_counted="output" if label == "output" else "total",
    )
    assert rates.requests_per_s == rate
    assert rates.notes == ()

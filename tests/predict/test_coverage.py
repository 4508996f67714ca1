"""Whether intervals hold the truth: servers of known parameters, probed with noise, predicted."""

from __future__ import annotations

import math
from statistics import fmean

import msgspec
import numpy as np
import pytest

from servecap import slo as slos
from servecap.engine import fast
from servecap.predict import calibrate, probing, profile, uncertainty
from servecap.predict.answer import answer
from servecap.predict.calibrate import Measured
from servecap.predict.figures import Case, capacity
from servecap.predict.harness import Harness, Lengths
from servecap.predict.place import place
from servecap.predict.profile import Profile
from servecap.predict.rows import SCENARIOS

pytestmark = pytest.mark.skipif(
    not fast.COMPILED, reason="numba is not installed: without it these take minutes"
)
SLO = slos.parse("ttft.mean<2s,tpot.mean<60ms")
PLACE = place("llama2-7b", "a30", 1)
CHAT = Case(place=PLACE, lengths=SCENARIOS["chat"], harness=Harness(max_running=64))
NOISE = {"ttft_s": 0.08, "tpot_s": 0.04, "requests_per_s": 0.04}
LEVELS = [x for x in probing.plan(64, 2048) if x.users not in (2, 8, 32)]


def truth_of(rng: np.random.Generator) -> Profile:
    """A server such as the priors expect: every parameter is drawn from its own."""
    start = profile.prior("vllm")
    drawn = {
        name: msgspec.structs.replace(
            p, value=float(np.clip(p.value * math.exp(p.spread * rng.normal()), p.low, p.high))
        )
        for name, p in start.parameters.items()
    }
    return msgspec.structs.replace(start, parameters=drawn)


def probed(truth: Profile, rng: np.random.Generator) -> list[Measured]:
    """What the probe plan measures of it, with noise."""
    rows = []
    for level in LEVELS:
        mean = fmean(level.answers)
        lengths = Lengths(
            prompt_tokens=level.prompt_tokens,
            output_tokens=mean,
            prompt_spread=0.0,
            output_spread=float(np.std(level.answers)) / mean,
        )
        harness = Harness(max_running=64, think_s=(0.0, 0.0))
        case = Case(place=PLACE, lengths=lengths, harness=harness)
        row = Measured(case=case, users=level.users, slo=None, expected=NOISE)
        made = calibrate.predicted(row, truth)
        noisy = {name: value * math.exp(NOISE[name] * rng.normal()) for name, value in made.items()}
        rows.append(msgspec.structs.replace(row, **noisy))
    return rows


def held(seeds: range) -> tuple[list[bool], list[float], list[float]]:
    """Of each figure of each server: is the truth inside, and how wide is the interval (log)?
    Of each parameter that the probes told: how many of its standard deviations is it off?"""
    inside, widths, off = [], [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        truth = truth_of(rng)
        fit = calibrate.fit(probed(truth, rng), profile.prior("vllm"), name="it")
        known = uncertainty.with_spreads(fit)
        off += [
            math.log(p.value / truth.parameters[name].value) / p.spread
            for name, p in known.parameters.items()
            if p.identified
        ]
        told = answer(CHAT, known, SLO, seeds=2)
        tuning = truth.tuning(PLACE.gpu)
        real = CHAT.figures(tuning, told.users or 1, seeds=2)
        most = capacity(CHAT, tuning, SLO, seeds=2)[0]
        for found, true in (
            (told.max_users, float(most)),
            (told.ttft_s, real.ttft_s),
            (told.tpot_s, real.tpot_s),
            (told.requests_per_s, real.requests_per_s),
        ):
            assert found is not None
            assert told.kind == "measured"
            inside.append(found.low <= true <= found.high)
            widths.append(math.log(found.high / found.low))
    return inside, widths, off


def test_intervals_of_a_probed_server_hold_its_truth_and_are_narrow() -> None:
    """And the parameters that the probes have told lie within their intervals."""
    inside, widths, off = held(range(5))
    assert fmean(inside) >= 0.6
    assert len(off) >= 10  # at least two parameters of each server are told
    assert fmean(abs(z) <= 1.2816 for z in off) >= 0.6  # 80% intervals
    assert max(map(abs, off)) < 4
    assert float(np.median(widths)) < 0.5  # of data sheets alone: 0.8 to 2.6


@pytest.mark.slow
def test_eighty_of_a_hundred_intervals_hold_the_truth() -> None:
    inside, _, _ = held(range(100, 140))
    assert 0.72 <= fmean(inside) <= 0.93

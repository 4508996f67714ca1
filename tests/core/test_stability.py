"""Drift, stalls and bursts: found where they are, and not where there is only chance."""

from __future__ import annotations

import numpy as np
import pytest
from made import record, run, scenario

from servecap import steady
from servecap.columns import Columns
from servecap.metrics import Stability, Window
from servecap.record import Outcome, Record, Times
from servecap.run import Slice
from servecap.stability import bursts, drift_of, stability

WINDOW = Window(start_s=10.0, end_s=70.0, rule="")


def of(found: list[Record]) -> Stability | None:
    inside = steady.counted(Columns(found).by_end(), WINDOW)
    return stability(run(found, scenario()), WINDOW, inside)


def course(values: np.ndarray) -> list[tuple[float, float | None]]:
    return [(float(i), float(v)) for i, v in enumerate(values)]


@pytest.mark.parametrize("lag", [0.0, 0.5])
def test_the_interval_of_the_drift_holds_the_truth_as_often_as_it_says(lag: float) -> None:
    """Also where neighbours are alike, as far as 24 slices can tell."""
    rng, held, tries = np.random.default_rng(1), 0, 1000
    for _ in range(tries):
        noise = rng.normal(size=24 + 20)
        for i in range(1, len(noise)):
            noise[i] += lag * noise[i - 1]
        found = drift_of(course(10 + np.linspace(-0.5, 0.5, 24) + 0.3 * noise[20:]))
        assert found is not None
        held += found.low_share <= 0.1 <= found.high_share
    assert held / tries > (0.92 if lag == 0 else 0.84)


def test_a_drift_is_told_with_its_size() -> None:
    found = drift_of(course(np.linspace(1.0, 1.5, 24)))
    assert found is not None
    assert found.change_share == pytest.approx(0.4)
    assert found.significant


def test_too_few_slices_tell_nothing() -> None:
    assert drift_of(course(np.linspace(1.0, 2.0, 7))) is None
    assert drift_of([(float(i), None) for i in range(24)]) is None
    assert of([]) is None


def made(failed: list[int], requests: int = 50) -> list[Slice]:
    return [
        Slice(start_s=10.0 * i, end_s=10.0 * i + 10, requests=requests, failed=n)
        for i, n in enumerate(failed)
    ]


def test_chance_makes_no_bursts() -> None:
    rng = np.random.default_rng(2)
    found = sum(bool(bursts(made(rng.binomial(50, 0.05, size=24).tolist()))) for _ in range(300))
    assert found <= 6, "of 300 runs"


def test_bursts_are_found_and_joined() -> None:
    (one,) = bursts(made([0, 1, 0, 0, 20, 45, 8, 0, 0, 1, 0, 0]))
    assert (one.start_s, one.end_s, one.failed, one.requests) == (40.0, 70.0, 73, 150)
    assert bursts(made([50] * 12)) == (), "all fail: that is no burst"


def test_stalls_are_counted_by_answer() -> None:
    def answer(i: int) -> Record:
        one = record(10.0 + i / 4, number=i)
        if i % 10 == 0:
            one.chunk_s[:] = Times([one.end_s - 3.0, one.end_s - 1.5, one.end_s])
        return one

    found = of([answer(i) for i in range(1, 240)])
    assert found is not None
    assert found.stalled == 23
    assert found.gap_max_s == pytest.approx(1.5)


def test_a_server_that_gets_slower_is_seen() -> None:
    slow = [record(10 + i / 4, ttft_s=0.2 + i / 1000, number=i) for i in range(1, 240)]
    slow[100:104] = [record(35.0, outcome=Outcome.TIMEOUT)] * 4
    found = of(slow)
    assert found is not None
    assert found.drifts["ttft"].significant
    assert found.drifts["ttft"].change_share == pytest.approx(0.7, abs=0.1)
    assert not found.drifts["tps"].significant
    assert found.failed == 4
